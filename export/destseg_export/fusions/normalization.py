"""Normalisation folded into the first convolution.

The host's pixels p become x = (p / 255 - mean) / std = a (p - m) with a = 1 / (255 std) and
m = 255 mean, channel by channel. A convolution of x is one of p - m with the weights a w::

    sum_k w_k x_k = sum_k (a w_k) (p_k - m)

Outside of the image x is padded with 0, which is p = m: padding p with the mean. Subtracting m
before the convolution and padding with 0 is just that, at every border; folding m into the bias
instead would pad with black. Three passes over the pixels become one.
"""

from __future__ import annotations

import numpy as np
import onnx

from destseg_export.fusions.graph import Floats, Graph, Outcome, Refusal

AFFINE = ("Add", "Sub", "Mul", "Div")


def fold_normalization(graph: Graph) -> Outcome:
    """Move the scale of an input's normalisation into the convolutions that read it."""
    changed: list[str] = []
    refused: list[Refusal] = []
    for node in graph.nodes(*AFFINE):
        if not graph.readers(node.output[0]) or node.name in changed:
            continue
        readers = graph.readers(node.output[0])
        if any(reader.op_type != "Conv" for reader in readers):
            continue
        source, scale, offset, steps = _chain(graph, node)
        if len(steps) < 2:
            refused.append(Refusal(node.name, "one step already, nothing to fold"))
            continue
        if reason := _why_not(graph, readers, scale):
            refused.append(Refusal(node.name, reason))
            continue
        _fold(graph, node, source, scale, offset)
        changed += [step.name for step in steps]
    graph.sort()
    graph.prune()
    return Outcome(tuple(changed), tuple(refused))


def _chain(graph: Graph, last: onnx.NodeProto) -> tuple[str, Floats, Floats, list[onnx.NodeProto]]:
    """Follow steps with constants upwards; return source, scale, offset and the steps."""
    scale, offset = np.ones((1, 1, 1)), np.zeros((1, 1, 1))
    steps: list[onnx.NodeProto] = []
    node: onnx.NodeProto | None = last
    tensor = last.output[0]
    while node is not None and node.op_type in AFFINE:
        value = graph.floats(node.input[1])
        if value is None or value.size not in (1, 3) or (steps and len(graph.readers(tensor)) > 1):
            break
        steps.append(node)
        value = value.reshape(-1, 1, 1)
        if node.op_type in ("Mul", "Div"):
            scale = scale * value if node.op_type == "Mul" else scale / value
        else:
            offset = offset + scale * (value if node.op_type == "Add" else -value)
        tensor = node.input[0]
        node = graph.maker(tensor)
    return tensor, scale, offset, steps


def _why_not(graph: Graph, convolutions: list[onnx.NodeProto], scale: Floats) -> str | None:
    for convolution in convolutions:
        weight = graph.floats(convolution.input[1])
        if weight is None or len(graph.readers(convolution.input[1])) > 1:
            return f"{convolution.name} has no constant weights of its own"
        if weight.ndim != 4 or weight.shape[1] != 3:
            return f"{convolution.name} reads {weight.shape[1]} channels, expected 3"
    if not np.all(scale):
        return "its scale is 0"
    return None


def _fold(graph: Graph, node: onnx.NodeProto, source: str, scale: Floats, offset: Floats) -> None:
    mean = np.broadcast_to(-offset / scale, (3, 1, 1)).copy()
    name = node.output[0]
    centred = graph.add_node("Sub", [source, graph.add_constant(f"{name}_mean", mean)], f"{name}_c")
    for convolution in graph.readers(name):
        weight = graph.floats(convolution.input[1])
        assert weight is not None  # _why_not looked
        scaled = graph.add_constant(f"{convolution.input[1]}_pixels", weight * scale)
        convolution.input[0], convolution.input[1] = centred, scaled
