"""Multiply-accumulate operations of a graph: what its convolutions and matrix products cost.

A convolution costs out_channels * out_height * out_width * in_channels / groups * kernel; a
product (..., m, k) x (k, n) costs m * k * n times the leading sizes. One MAC is two FLOP. Resizes,
sums and activations are not counted.
"""

from __future__ import annotations

import re
from math import prod

import onnx_ir as ir

from destseg_deploy.errors import ExportError
from destseg_export.graph.edit import nodes, required


def count_macs(model: ir.Model) -> int:
    """Return the MACs for one image.

    Args:
        model: A graph whose first axis is the batch, symbolic or fixed.

    Raises:
        ExportError: If another size than the batch is not known.
    """
    return sum(macs_of(node) for node in nodes(model, "Conv", "MatMul"))


def macs_of(node: ir.Node) -> int:
    """Return the MACs of a convolution or a matrix product for one image."""
    # The first axis of an output is the batch, of a convolution's weights the output channels.
    out = _tiles(node) * prod(_sizes(node.outputs[0])[1:])
    if node.op_type == "Conv":
        return out * prod(_sizes(required(node, 1))[1:])
    return out * _sizes(required(node, 0))[-1]


def _tiles(node: ir.Node) -> int:
    """Return how many tiles of an image a node's output holds: 1 but for a network over tiles."""
    size = (node.outputs[0].shape or (None,))[0]
    graph = node.graph
    batch = (graph.inputs[0].shape or (None,))[0] if graph is not None and graph.inputs else None
    if isinstance(size, int) and isinstance(batch, int):
        return max(1, size // batch)
    found = re.match(r"(\d+)\*", str(size))  # torch writes 9*batch
    return int(found[1]) if found else 1


def _sizes(value: ir.Value) -> list[int]:
    """Return a value's shape; only its first size may be unknown, and counts as 1 then."""
    shape = list(value.shape or ())
    sizes = [size if isinstance(size, int) else 1 for size in shape[:1]]
    sizes += [size for size in shape[1:] if isinstance(size, int)]
    if not shape or len(sizes) != len(shape):
        raise ExportError(
            f"{value.name}: its shape {value.shape} is not known, so its cost is not."
        )
    return sizes
