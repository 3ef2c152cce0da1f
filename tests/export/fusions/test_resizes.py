"""Resizes with constant scales."""

import numpy as np
import pytest

from destseg_export.fusions.resizes import exact_scales, fix_resizes, linear_matrix
from tests.export.fusions import cases


def _graph(target, mode="linear", **attributes):
    return cases.make(
        [
            cases.node("Relu", ["x"], "r"),
            cases.node("Shape", ["r"], "shape", start=0, end=2),
            cases.node("Concat", ["shape", "target"], "sizes", axis=0),
            cases.node("Resize", ["r", "", "", "sizes"], "up", mode=mode, **attributes),
            cases.node("Neg", ["up"], "y"),
        ],
        {"x": cases.floats("n", 3, 4, 6)},
        {"y": cases.floats("n", 3, *target)},
        {"target": np.array(target)},
    )


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("target", [(8, 24), (4, 6), (2, 3)])
def test_the_answers_are_the_same_bits(count, target):
    graph = _graph(target)
    fixed, outcome = cases.fused(graph, fix_resizes)
    assert not {"Shape", "Concat"} & set(cases.operators(fixed))
    assert ("Resize" in cases.operators(fixed)) == (target != (4, 6))
    assert outcome.changed == ("node_up",)
    assert cases.difference(graph, fixed, x=cases.random(count, 3, 4, 6)) == 0


def test_a_wrong_scale_is_seen():
    graph = _graph((8, 24))
    fixed, _ = cases.fused(graph, fix_resizes)
    scale = np.array([1, 1, 2, 4.1], np.float32)  # 24.6 pixels, cut to 24
    wrong = cases.change_constant(fixed, "up_scales", lambda value: scale)
    assert cases.difference(graph, wrong, x=cases.random(1, 3, 4, 6)) > 1e-2


def test_a_ratio_that_float32_does_not_hold_is_refused_with_the_reason():
    reason = cases.refusal(_graph((8, 7)), fix_resizes)
    assert reason == "node_up: (8, 7) / (4, 6) is not exact in float32"
    assert exact_scales((3,), (7,)) is None
    assert exact_scales((4,), (7,)) is not None


def test_another_mode_is_refused_with_the_reason():
    reason = cases.refusal(_graph((8, 24), mode="cubic"), fix_resizes)
    assert reason == "node_up: mode 'cubic', expected 'linear'"


@pytest.mark.parametrize(
    ("small", "large"), [((4, 6), (8, 24)), ((1, 1), (7, 5)), ((5, 9), (13, 11)), ((8, 8), (3, 8))]
)
def test_a_linear_resize_is_two_products_with_matrices(small, large):
    resize = cases.node("Resize", ["x", "", "", "sizes"], "y", mode="linear")
    graph = cases.make(
        [resize],
        {"x": cases.floats(2, 3, *small)},
        {"y": cases.floats(2, 3, *large)},
        {"sizes": np.array([2, 3, *large])},
    )
    planes = cases.random(2, 3, *small)
    rows, columns = map(linear_matrix, small, large)
    (wanted,) = cases.run(graph, x=planes)
    np.testing.assert_allclose(rows @ planes @ columns.T, wanted, atol=cases.ROUNDING)
    aligned = np.maximum(
        0, 1 - np.abs(np.linspace(0, small[0] - 1, large[0])[:, None] - np.arange(small[0]))
    )
    if small[0] > 1:  # a control: corners aligned
        assert np.abs(aligned @ planes @ columns.T - wanted).max() > 1e-2


def test_corners_aligned_is_refused():
    graph = _graph((8, 24), coordinate_transformation_mode="align_corners")
    reason = cases.refusal(graph, fix_resizes)
    assert reason == "node_up: coordinates 'align_corners', expected 'half_pixel'"
