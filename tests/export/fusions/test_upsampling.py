"""Upsampling as products of matrices."""

import numpy as np
import pytest

from destseg_export.fusions.upsampling import LARGEST, linear_matrix, multiply_to_upsample
from tests.export.fusions import cases


def _graph(small, large, transform="half_pixel"):
    return cases.make(
        [
            cases.node(
                "Resize",
                ["x", "", "", "sizes"],
                "y",
                mode="linear",
                coordinate_transformation_mode=transform,
            )
        ],
        {"x": cases.floats(2, 3, *small)},
        {"y": cases.floats(2, 3, *large)},
        {"sizes": np.array([2, 3, *large])},
    )


@pytest.mark.parametrize(
    ("small", "large"), [((4, 6), (8, 24)), ((1, 1), (7, 5)), ((5, 9), (13, 11)), ((8, 8), (3, 8))]
)
def test_the_answers_stay(small, large):
    graph = _graph(small, large)
    multiplied, outcome = cases.fused(graph, multiply_to_upsample)
    assert cases.operators(multiplied) == ["MatMul", "MatMul"]
    assert outcome.changed == ("node_y",)
    assert cases.difference(graph, multiplied, x=cases.random(2, 3, *small)) < cases.ROUNDING


def test_corners_aligned_is_seen_and_refused():
    graph = _graph((4, 6), (8, 24))
    multiplied, _ = cases.fused(graph, multiply_to_upsample)
    aligned = np.maximum(0, 1 - np.abs(np.linspace(0, 3, 8)[:, None] - np.arange(4)))
    wrong = cases.change_constant(multiplied, "y_rows", lambda value: aligned.astype(np.float32))
    assert cases.difference(graph, wrong, x=cases.random(2, 3, 4, 6)) > 1e-2
    reason = cases.refusal(_graph((4, 6), (8, 24), "align_corners"), multiply_to_upsample)
    assert reason == "node_y: coordinates 'align_corners', expected 'half_pixel'"


def test_large_planes_are_refused_with_the_reason():
    graph = _graph((LARGEST + 1, 4), (80, 8))
    assert f"expected up to {LARGEST}" in cases.refusal(graph, multiply_to_upsample)


def test_rows_sum_to_one():
    np.testing.assert_allclose(linear_matrix(5, 13).sum(axis=1), 1, atol=1e-15)
