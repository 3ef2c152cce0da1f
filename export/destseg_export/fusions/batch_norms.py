"""BatchNorm folded into the convolution before it.

y = gamma (w * x + b - mean) / sqrt(variance + epsilon) + beta is one convolution, with
s = gamma / sqrt(variance + epsilon)::

    w' = s w        b' = s (b - mean) + beta

It is folded in float64 and rounded to float32 once. Half comes after that: a half BatchNorm beside
a half convolution would round twice, and in fp16 a small variance is 0.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from destseg_export.graph import edit


def fold_batch_norms(model: ir.Model) -> edit.Outcome:
    """Fold each BatchNorm into the convolution before it, where nothing else reads that one.

    torch 2.13's exporter folds all of them itself; older ones leave them. Weights keep their names;
    a convolution without bias gets one named ``<weight>_bias``, as the exporter names it.

    Args:
        model: An FP32 graph in eval form.
    """
    norms = edit.nodes(model, "BatchNormalization")
    return edit.together(_fold(model, norm) for norm in norms)


def _fold(model: ir.Model, norm: ir.Node) -> edit.Outcome:
    convolution = edit.producer(norm.inputs[0], "Conv")
    if convolution is None or edit.only_reader(convolution.outputs[0], norm.op_type) is None:
        reason = "BatchNorm that follows no convolution of its own, so it cannot be folded"
        return edit.refused(norm, reason)
    if len(edit.required(convolution, 1).uses()) > 1:
        return edit.refused(norm, "BatchNorm behind weights that several convolutions share")
    values = [edit.floats(value) for value in (*convolution.inputs[1:], *norm.inputs[1:5])]
    constants = [value for value in values if value is not None]
    if len(constants) < len(values):
        return edit.refused(norm, "BatchNorm whose weights or statistics are computed")
    weight, *bias, gamma, beta, mean, variance = constants
    scale = gamma / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
    shift = scale * ((bias[0] if bias else 0.0) - mean) + beta
    _set(edit.required(convolution, 1), weight * scale[:, None, None, None])
    if bias:
        _set(edit.required(convolution, 2), shift)
    else:
        convolution.resize_inputs(3)
        name = f"{edit.required(convolution, 1).name}_bias"
        convolution.replace_input_with(2, edit.add_constant(model, name, shift))
    edit.substitute(norm.outputs[0], convolution.outputs[0])
    return edit.changed(norm)


def _set(constant: ir.Value, value: edit.Floats) -> None:
    constant.const_value = ir.tensor(value.astype(np.float32), name=constant.name)
