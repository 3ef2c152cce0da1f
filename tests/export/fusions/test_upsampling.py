"""Upsampling as products of matrices."""

import numpy as np
import pytest

pytest.importorskip("onnx")

from destseg_export.fusions.interpolation import linear_matrix
from destseg_export.fusions.upsampling import LARGEST, multiply_to_upsample
from tests.export.fusions.cases import (
    ROUNDING,
    change_constant,
    difference,
    floats,
    make,
    node,
    operators,
    random,
    rewritten,
)


def _graph(small, large, transform="half_pixel"):
    return make(
        [
            node(
                "Resize",
                ["x", "", "", "sizes"],
                "y",
                mode="linear",
                coordinate_transformation_mode=transform,
            )
        ],
        {"x": floats(2, 3, *small)},
        {"y": floats(2, 3, *large)},
        {"sizes": np.array([2, 3, *large])},
    )


@pytest.mark.parametrize(
    ("small", "large"), [((4, 6), (8, 24)), ((1, 1), (7, 5)), ((5, 9), (13, 11)), ((8, 8), (3, 8))]
)
def test_the_answers_stay(small, large):
    graph = _graph(small, large)
    multiplied, outcome = rewritten(graph, multiply_to_upsample)
    assert operators(multiplied) == ["MatMul", "MatMul"]
    assert outcome.changed == ("node_y",)
    assert difference(graph, multiplied, x=random(2, 3, *small)) < ROUNDING


def test_corners_aligned_is_seen_and_refused():
    graph = _graph((4, 6), (8, 24))
    multiplied, _ = rewritten(graph, multiply_to_upsample)
    aligned = np.maximum(0, 1 - np.abs(np.linspace(0, 3, 8)[:, None] - np.arange(4)))
    wrong = change_constant(multiplied, "y_rows", lambda value: aligned.astype(np.float32))
    assert difference(graph, wrong, x=random(2, 3, 4, 6)) > 1e-2
    _, outcome = rewritten(_graph((4, 6), (8, 24), transform="align_corners"), multiply_to_upsample)
    assert outcome.refused[0].reason == "coordinates 'align_corners', expected 'half_pixel'"


def test_large_planes_are_refused_with_the_reason():
    _, outcome = rewritten(_graph((LARGEST + 1, 4), (80, 8)), multiply_to_upsample)
    assert outcome.changed == ()
    assert f"expected up to {LARGEST}" in outcome.refused[0].reason


def test_rows_sum_to_one():
    np.testing.assert_allclose(linear_matrix(5, 13).sum(axis=1), 1, atol=1e-15)
