"""Larger kernels below the upsampling."""

import numpy as np
import pytest

pytest.importorskip("onnx")

from destseg_export.fusions.below_upsampling import move_below, tap_matrix
from destseg_export.fusions.kernels import move_kernels, move_twofold_kernels
from destseg_export.fusions.macs import count_macs
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
    upsampled_convolution,
    upsampled_feed,
)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (3, 2), (5, 1), (3, 12)])
def test_the_answers_stay(count, kernel, dilation):
    """A dilation beyond the plane leaves the middle tap alone, and is right, too."""
    graph = upsampled_convolution(kernel, dilation=dilation)
    moved, outcome = rewritten(graph, move_twofold_kernels)
    assert "Resize" not in operators(moved)
    assert outcome.changed == ("node_y",)
    assert count_macs(moved) < count_macs(graph)
    assert difference(graph, moved, **upsampled_feed(count)) < 3 * ROUNDING


@pytest.mark.parametrize("bias", [True, False])
def test_two_upsampled_inputs_share_the_last_product(bias):
    """As in the decoder, nothing is left above; the bias passes through the middle tap."""
    graph = make(
        [
            node("Resize", ["a", "", "twice"], "a_up", mode="linear"),
            node("Resize", ["b", "", "fourfold"], "b_up", mode="linear"),
            node("Concat", ["a_up", "b_up"], "joined", axis=1),
            node("Conv", ["joined", "w", *["bias"] * bias], "y", pads=[1] * 4),
        ],
        {"a": floats("n", 5, 8, 6), "b": floats("n", 7, 4, 3)},
        {"y": floats("n", 4, 16, 12)},
        {
            "twice": np.array([1, 1, 2, 2], np.float32),
            "fourfold": np.array([1, 1, 4, 4], np.float32),
            "w": random(4, 12, 3, 3) / 5,
            "bias": random(4),
        },
    )
    moved, _ = rewritten(graph, move_all)
    assert operators(moved).count("MatMul") == 3
    assert operators(moved).count("Conv") == 2
    feed = {"a": random(2, 5, 8, 6), "b": random(2, 7, 4, 3)}
    assert difference(graph, moved, **feed) < 3 * ROUNDING
    (columns,) = [t.name for t in moved.graph.initializer if t.name.endswith("_columns")]
    wrong = change_constant(moved, columns, lambda m: np.roll(m, 1, axis=0))
    assert difference(graph, wrong, **feed) > 0.1


def move_all(graph):
    return move_below(graph, lambda kernel, small, large: True)


@pytest.mark.parametrize(
    ("fold", "mine", "other"),
    [(4, move_kernels, move_twofold_kernels), (2, move_twofold_kernels, move_kernels)],
)
def test_each_rewrite_takes_its_planes(fold, mine, other):
    graph = upsampled_convolution(3, small=(4, 5), large=(4 * fold, 5 * fold))
    assert rewritten(graph, mine)[1].changed == ("node_y",)
    assert rewritten(graph, other)[1].changed == ()


def test_a_border_that_repeats_pixels_is_seen():
    """Padding is zero; repeating the edge is what the interpolation, not the convolution, does."""
    graph = upsampled_convolution(3)
    moved, _ = rewritten(graph, move_twofold_kernels)
    (rows,) = [t.name for t in moved.graph.initializer if t.name.endswith("_rows")]

    def repeat(matrix):
        matrix[0, :4] = matrix[0, 4:8]
        return matrix

    assert difference(graph, change_constant(moved, rows, repeat), **upsampled_feed(1)) > 0.1


def test_taps_in_another_order_are_seen():
    graph = upsampled_convolution(3)
    moved, _ = rewritten(graph, move_twofold_kernels)

    def swap(weight):
        return weight.reshape(4, 3, 3, -1).transpose(0, 2, 1, 3).reshape(weight.shape)

    wrong = change_constant(moved, "w_small3", swap)
    assert difference(graph, wrong, **upsampled_feed(1)) > 0.1


def test_the_middle_tap_is_the_interpolation_itself():
    matrix = tap_matrix(5, 10, 3, 1)
    np.testing.assert_array_equal(matrix[:-1, 5:10], matrix[1:, :5])
    np.testing.assert_array_equal(matrix[1:, 5:10], matrix[:-1, 10:])
    assert not matrix[0, :5].any()
    assert not matrix[-1, 10:].any()


def test_upsampling_too_little_is_refused_because_it_costs_more():
    graph = upsampled_convolution(3, small=(8, 20), large=(8, 20))
    moved, outcome = rewritten(graph, move_twofold_kernels)
    assert operators(moved) == operators(graph)
    assert "MACs on the small planes" in outcome.refused[0].reason
