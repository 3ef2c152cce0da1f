"""Bilinear interpolation of one axis as a matrix: ``upsampled = matrix @ values``.

Row i reads the source at (i + 0.5) * source / target - 0.5, not below 0, between its two
neighbours; beyond the last sample it repeats that one. That is ONNX's Resize with ``linear`` and
``half_pixel``, and PyTorch's ``align_corners=False``.
"""

from __future__ import annotations

import numpy as np
import onnx

from destseg_export.fusions.graph import Floats, Graph, attribute


def linear_matrix(source: int, target: int) -> Floats:
    """Return float64 (target, source); each row sums to 1."""
    at = np.maximum((np.arange(target) + 0.5) * source / target - 0.5, 0)
    lower = np.minimum(np.floor(at).astype(int), source - 1)
    upper = np.minimum(lower + 1, source - 1)
    share = at - lower
    matrix = np.zeros((target, source))
    rows = np.arange(target)
    np.add.at(matrix, (rows, lower), 1 - share)
    np.add.at(matrix, (rows, upper), share)
    return matrix


def why_not_linear(graph: Graph, node: onnx.NodeProto) -> str | None:
    """Return why a Resize is none that ``linear_matrix`` describes, or None when it is."""
    mode = attribute(node, "mode", "nearest")
    transform = attribute(node, "coordinate_transformation_mode", "half_pixel")
    if mode != "linear":
        return f"mode {mode!r}, expected 'linear'"
    if transform != "half_pixel":
        return f"coordinates {transform!r}, expected 'half_pixel'"
    if attribute(node, "antialias", 0) or attribute(node, "axes", None) is not None:
        return "antialiased or with axes, expected neither"
    if graph.plane(node.input[0]) is None or graph.plane(node.output[0]) is None:
        return "its height or width is known at run time only"
    return None
