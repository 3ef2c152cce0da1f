"""Teacher and student stems in one convolution.

Convolutions of the same input with the same geometry are one with their weights stacked, and ReLU
and max-pooling act on each channel alone::

    [pool(relu(w1 * x + b1)), pool(relu(w2 * x + b2))] = split(pool(relu([w1; w2] * x + [b1; b2])))

The input is then read, and laid out for the matrix product, once. The MACs stay the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from destseg_export.graph import edit


@dataclass(frozen=True, eq=False)
class Stem:
    """Convolution, ReLU and max-pooling, each read by the next one only.

    Attributes:
        steps: The three nodes.
        weight: float64 (O, C, K, K); None when it is not constant.
        bias: float64 (O,); None when there is none or it is not constant.
    """

    steps: tuple[ir.Node, ir.Node, ir.Node]
    weight: edit.Floats | None
    bias: edit.Floats | None


def join_stems(model: ir.Model) -> edit.Outcome:
    """Join the stems that read the same value."""
    convolutions = edit.nodes(model, "Conv")
    sources = dict.fromkeys(node.inputs[0] for node in convolutions)
    groups = [[node for node in convolutions if node.inputs[0] is source] for source in sources]
    return edit.together(_join(model, group) for group in groups)


def _join(model: ir.Model, convolutions: Sequence[ir.Node]) -> edit.Outcome:
    stems = [stem for node in convolutions if (stem := _read_stem(node)) is not None]
    if len(stems) < 2:
        return edit.Outcome()
    first, weights, biases = stems[0].steps, list[edit.Floats](), list[edit.Floats]()
    for stem in stems:
        convolution, pool = stem.steps[0], stem.steps[2]
        pairs = zip(first, stem.steps, strict=True)
        if any(a.attributes != b.attributes for a, b in pairs):
            return edit.refused(
                first[0], f"{convolution.name} has another kernel, stride or padding"
            )
        if stem.weight is None or stem.bias is None:
            return edit.refused(first[0], f"{convolution.name} has no constant weights and bias")
        if len(pool.outputs) > 1:
            return edit.refused(first[0], f"{pool.name} also returns indices")
        weights.append(stem.weight)
        biases.append(stem.bias)
    value = edit.required(first[0], 0)
    constants = [
        edit.add_constant(model, f"{edit.required(first[0], i).name}_stems", np.concatenate(parts))
        for i, parts in ((1, weights), (2, biases))
    ]
    for node in first:
        inputs = [value, *constants] if node is first[0] else [value]
        name = f"{node.outputs[0].name}_stems"
        value = edit.add_node(model, node.op_type, inputs, name, node.attributes)
    _split(model, value, stems, [len(weight) for weight in weights])
    return edit.changed(*(node for stem in stems for node in stem.steps))


def _read_stem(convolution: ir.Node) -> Stem | None:
    """Return the stem that begins with a convolution, or None when ReLU or pooling is missing."""
    relu = edit.only_reader(convolution.outputs[0], "Relu")
    pool = None if relu is None else edit.only_reader(relu.outputs[0], "MaxPool")
    if relu is None or pool is None:
        return None
    weight, bias, *_ = (*(edit.floats(value) for value in convolution.inputs[1:]), None)
    return Stem((convolution, relu, pool), weight, bias)


def _split(model: ir.Model, value: ir.Value, stems: Sequence[Stem], channels: list[int]) -> None:
    """Give each stem's readers its channels of the joined value, (N, sum of channels, H, W)."""
    name = stems[0].steps[0].outputs[0].name
    sizes = edit.add_constant(model, f"{name}_channels", np.array(channels, np.int64))
    split = ir.node(
        "Split", [value, sizes], {"axis": 1}, num_outputs=len(stems), name=f"{name}_split"
    )
    model.graph.append(split)
    for stem, output in zip(stems, split.outputs, strict=True):
        edit.substitute(stem.steps[2].outputs[0], output)
