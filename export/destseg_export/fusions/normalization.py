"""Normalisation folded into the first convolution.

The host's pixels p become x = (p / 255 - mean) / std = a (p - m) with a = 1 / (255 std) and
m = 255 mean, channel by channel. A convolution of x is one of p - m with the weights a w::

    sum_k w_k x_k = sum_k (a w_k) (p_k - m)

Outside of the image x is padded with 0, which is p = m: padding p with the mean. Subtracting m
before the convolution and padding with 0 is just that, at every border; folding m into the bias
instead would pad with black. Three passes over the pixels become one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from destseg_export.graph import edit

AFFINE = ("Add", "Sub", "Mul", "Div")


@dataclass(frozen=True, eq=False)
class Chain:
    """Steps with constants that together make x = scale * source + offset.

    Attributes:
        source: What the first step reads.
        scale: float64 (1 or 3, 1, 1).
        offset: float64 (1 or 3, 1, 1).
        steps: The nodes, the last one first.
    """

    source: ir.Value
    scale: edit.Floats
    offset: edit.Floats
    steps: tuple[ir.Node, ...]


def fold_normalization(model: ir.Model) -> edit.Outcome:
    """Move the scale of an input's normalisation into the convolutions that read it."""
    return edit.together(_fold(model, node) for node in edit.nodes(model, *AFFINE))


def _fold(model: ir.Model, node: ir.Node) -> edit.Outcome:
    """Fold the steps that end with a node, if convolutions alone read it."""
    convolutions, chain = node.outputs[0].consumers(), _read_chain(node)
    if not convolutions or not chain.steps:
        return edit.Outcome()
    if {reader.op_type for reader in convolutions} <= {"Slice", "Concat"}:
        return edit.refused(node, "tiles are cut out of it before the first convolution")
    if any(reader.op_type != "Conv" for reader in convolutions):
        return edit.Outcome()
    if len(chain.steps) < 2:
        return edit.refused(node, "one step already, nothing to fold")
    if not np.all(chain.scale):
        return edit.refused(node, "its scale is 0")
    weights = list[edit.Floats]()
    for convolution in convolutions:
        weight = edit.floats(convolution.inputs[1])
        if weight is None or len(edit.required(convolution, 1).uses()) > 1:
            return edit.refused(node, f"{convolution.name} has no constant weights of its own")
        if weight.ndim != 4 or weight.shape[1] != 3:
            return edit.refused(
                node, f"{convolution.name} reads {weight.shape[1]} channels, expected 3"
            )
        weights.append(weight * chain.scale)
    name = node.outputs[0].name
    mean = np.broadcast_to(-chain.offset / chain.scale, (3, 1, 1)).copy()
    constant = edit.add_constant(model, f"{name}_mean", mean)
    centred = edit.add_node(model, "Sub", [chain.source, constant], f"{name}_c")
    for convolution, weight in zip(convolutions, weights, strict=True):
        scaled = edit.add_constant(model, f"{edit.required(convolution, 1).name}_pixels", weight)
        convolution.replace_input_with(0, centred)
        convolution.replace_input_with(1, scaled)
    return edit.changed(*chain.steps)


def _read_chain(last: ir.Node) -> Chain:
    """Follow steps with constants upwards, as far as nobody else reads what is between them."""
    scale, offset = np.ones((1, 1, 1)), np.zeros((1, 1, 1))
    steps: list[ir.Node] = []
    node, value = last, last.outputs[0]
    while node.op_type in AFFINE:
        constant = edit.floats(node.inputs[1])
        shared = bool(steps) and len(value.consumers()) > 1
        if constant is None or constant.size not in (1, 3) or shared:
            break
        steps.append(node)
        constant = constant.reshape(-1, 1, 1)
        # What was collected so far is applied after this step: scale * (x op constant) + offset.
        if node.op_type in ("Mul", "Div"):
            scale = scale * constant if node.op_type == "Mul" else scale / constant
        else:
            offset = offset + scale * (constant if node.op_type == "Add" else -constant)
        value = edit.required(node, 0)
        above = value.producer()
        if above is None:
            break
        node = above
    return Chain(value, scale, offset, tuple(steps))
