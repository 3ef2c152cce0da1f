"""Constant upsampling as matrix products.

Bilinear interpolation to a constant size is linear and separable::

    resize(x) = rows @ x @ columns.T

Row i of such a matrix reads the source at (i + 0.5) * source / target - 0.5, not below 0, between
its two neighbours; beyond the last sample it repeats that one. That is ONNX's Resize with
``linear`` and ``half_pixel``, and PyTorch's ``align_corners=False``.

A product over an axis of h samples costs h MACs per value where interpolation costs two, but runs
as a matrix product. It is applied up to ``LARGEST`` samples.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from destseg_export.graph import edit

LARGEST = 32
"""Samples of an axis; beyond, the product costs more than it saves."""


def multiply_to_upsample(model: ir.Model) -> edit.Outcome:
    """Replace each linear resize of small planes by two matrix products."""
    return edit.together(_multiply(model, node) for node in edit.nodes(model, "Resize"))


def _multiply(model: ir.Model, node: ir.Node) -> edit.Outcome:
    sizes = resized(node)
    if isinstance(sizes, str):
        return edit.refused(node, sizes)
    before, after = sizes
    if max(before) > LARGEST:
        return edit.refused(node, f"{before} samples, expected up to {LARGEST}")
    name = node.outputs[0].name
    rows = edit.add_constant(model, f"{name}_rows", linear_matrix(before[0], after[0]))
    columns = edit.add_constant(model, f"{name}_columns", linear_matrix(before[1], after[1]).T)
    wide = edit.add_node(model, "MatMul", [node.inputs[0], columns], f"{name}_wide")
    edit.substitute(node.outputs[0], edit.add_node(model, "MatMul", [rows, wide], f"{name}_high"))
    return edit.changed(node)


def resized(node: ir.Node) -> tuple[tuple[int, int], tuple[int, int]] | str:
    """Return height and width before and after a Resize that ``linear_matrix`` describes.

    Returns:
        The two sizes, or why the Resize is another one.
    """
    before, after = edit.plane(node.inputs[0]), edit.plane(node.outputs[0])
    mode = node.attributes.get_string("mode", "nearest")
    transform = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    if mode != "linear":
        return f"mode {mode!r}, expected 'linear'"
    if transform != "half_pixel":
        return f"coordinates {transform!r}, expected 'half_pixel'"
    if node.attributes.get_int("antialias", 0) or "axes" in node.attributes:
        return "antialiased or with axes, expected neither"
    if before is None or after is None:
        return "its height or width is known at run time only"
    return before[1:], after[1:]


def linear_matrix(source: int, target: int) -> edit.Floats:
    """Return float64 (target, source); each row sums to 1."""
    at = np.maximum((np.arange(target) + 0.5) * source / target - 0.5, 0)
    lower = np.minimum(np.floor(at).astype(int), source - 1)
    upper = np.minimum(lower + 1, source - 1)
    share = at - lower
    matrix = np.zeros((target, source))
    rows = np.arange(target)
    # At the last sample both neighbours are the same column, so the shares must add up there.
    np.add.at(matrix, (rows, lower), 1 - share)
    np.add.at(matrix, (rows, upper), share)
    return matrix
