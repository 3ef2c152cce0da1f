"""Resizes with constant scales, and none where nothing is resized.

``Resize`` to a size that was put together at run time from a tensor's shape and two constants is
one with constant scales, if float32 holds target / source exactly: both then read the same places.
A linear resize to the size that the plane has reads each pixel at its own place, with weight 1::

    (i + 0.5) * 1 - 0.5 = i
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import onnx_ir as ir

from destseg_export.graph import edit


def fix_resizes(model: ir.Model) -> edit.Outcome:
    """Take out resizes to the same size; give the others constant scales."""
    return edit.together(_fix(model, node) for node in edit.nodes(model, "Resize"))


def _fix(model: ir.Model, node: ir.Node) -> edit.Outcome:
    sizes, output = resized(node), node.outputs[0]
    if isinstance(sizes, str):
        return edit.refused(node, sizes)
    before, after = sizes
    if before == after and not output.is_graph_output():
        output.replace_all_uses_with(edit.required(node, 0))
        return edit.changed(node)
    if len(node.inputs) < 4 or node.inputs[3] is None:  # it has scales already
        return edit.Outcome()
    scales = exact_scales(before, after)
    if scales is None:
        return edit.refused(node, f"{after} / {before} is not exact in float32")
    node.resize_inputs(3)
    node.replace_input_with(2, edit.add_constant(model, f"{output.name}_scales", scales))
    return edit.changed(node)


def exact_scales(before: tuple[int, ...], after: tuple[int, ...]) -> np.ndarray | None:
    """Return float32 scales of (N, C, H, W), or None when float32 does not hold one of them."""
    exact = [Fraction(b, a) for a, b in zip(before, after, strict=True)]
    scales = np.array([1, 1, *map(float, exact)], np.float32)
    return scales if [Fraction(float(scale)) for scale in scales[2:]] == exact else None


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
    """Return the matrix of a linear resize of an axis, float64 (target, source).

    Bilinear interpolation to a constant size is linear and separable: ``rows @ x @ columns.T``. Row
    i reads the source at (i + 0.5) * source / target - 0.5, not below 0, between its two
    neighbours; beyond the last sample it repeats that one. That is ONNX's Resize with ``linear``
    and ``half_pixel``, and PyTorch's ``align_corners=False``. Each row sums to 1.
    """
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
