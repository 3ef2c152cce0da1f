"""Multiply-accumulate operations of a graph: what its convolutions and matrix products cost.

A convolution costs out_channels * out_height * out_width * in_channels / groups * kernel; a
product (..., m, k) x (k, n) costs m * k * n times the leading sizes. One MAC is two FLOP. Resizes,
sums and activations are not counted.
"""

from __future__ import annotations

from math import prod

import onnx

from destseg_deploy.errors import ExportError
from destseg_export.fusions.graph import Graph


def count_macs(proto: onnx.ModelProto) -> int:
    """Return the MACs for one image.

    Args:
        proto: A graph whose first axis is the batch, symbolic or fixed.

    Raises:
        ExportError: If another size than the batch is not known.
    """
    graph = Graph(proto)
    return sum(macs_of(graph, node) for node in graph.nodes("Conv", "MatMul"))


def macs_of(graph: Graph, node: onnx.NodeProto) -> int:
    """Return the MACs of a convolution or a matrix product for one image."""
    out = _per_image(graph, node.output[0])
    if node.op_type == "Conv":
        return prod(out) * prod(_sizes(graph, node.input[1])[1:])
    inner = (graph.shape(node.input[0]) or ["?"])[-1]
    if not isinstance(inner, int):
        raise ExportError(f"{node.name}: a product over an axis of unknown size.")
    return prod(out) * inner


def _per_image(graph: Graph, tensor: str) -> list[int]:
    return _sizes(graph, tensor, skip=1)


def _sizes(graph: Graph, tensor: str, skip: int = 0) -> list[int]:
    shape = graph.shape(tensor)
    sizes = [size for size in (shape or ["?"])[skip:] if isinstance(size, int)]
    if shape is None or len(sizes) != len(shape) - skip:
        raise ExportError(f"{tensor}: its shape {shape} is not known, so its cost is not either.")
    return sizes
