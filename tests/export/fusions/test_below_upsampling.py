"""Convolutions below the upsampling: larger kernels, 1x1 shortcuts and the pooled branch."""

import numpy as np
import pytest

from destseg_export.fusions.below_upsampling import (
    move_below,
    move_kernels,
    move_shortcuts,
    move_twofold_kernels,
    take_out_pooled_branch,
    tap_matrix,
)
from destseg_export.graph.edit import open_model
from destseg_export.graph.macs import count_macs
from tests.export.fusions import cases

POINT = {"small": (1, 1), "large": (8, 20)}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (3, 2), (5, 1), (3, 12)])
def test_kernels_stay(count, kernel, dilation):
    """A dilation beyond the plane leaves the middle tap alone, and is right, too."""
    graph = cases.upsampled_convolution(kernel, dilation=dilation)
    moved, outcome = cases.fused(graph, move_twofold_kernels)
    assert "Resize" not in cases.operators(moved)
    assert outcome.changed == ("node_y",)
    assert count_macs(open_model(moved)) < count_macs(open_model(graph))
    assert cases.difference(graph, moved, **cases.upsampled_feed(count)) < 3 * cases.ROUNDING


@pytest.mark.parametrize("bias", [True, False])
def test_two_upsampled_inputs_share_the_last_product(bias):
    """As in the decoder, nothing is left above; the bias passes through the middle tap."""
    graph = cases.make(
        [
            cases.node("Resize", ["a", "", "twice"], "a_up", mode="linear"),
            cases.node("Resize", ["b", "", "fourfold"], "b_up", mode="linear"),
            cases.node("Concat", ["a_up", "b_up"], "joined", axis=1),
            cases.node("Conv", ["joined", "w", *["bias"] * bias], "y", pads=[1] * 4),
        ],
        {"a": cases.floats("n", 5, 8, 6), "b": cases.floats("n", 7, 4, 3)},
        {"y": cases.floats("n", 4, 16, 12)},
        {
            "twice": np.array([1, 1, 2, 2], np.float32),
            "fourfold": np.array([1, 1, 4, 4], np.float32),
            "w": cases.random(4, 12, 3, 3) / 5,
            "bias": cases.random(4),
        },
    )
    moved, _ = cases.fused(graph, move_all)
    assert cases.operators(moved).count("MatMul") == 3
    assert cases.operators(moved).count("Conv") == 2
    feed = {"a": cases.random(2, 5, 8, 6), "b": cases.random(2, 7, 4, 3)}
    assert cases.difference(graph, moved, **feed) < 3 * cases.ROUNDING
    (columns,) = [t.name for t in moved.graph.initializer if t.name.endswith("_columns")]
    wrong = cases.change_constant(moved, columns, lambda m: np.roll(m, 1, axis=0))
    assert cases.difference(graph, wrong, **feed) > 0.1


def move_all(graph):
    return move_below(graph, lambda kernel, small, large: True)


@pytest.mark.parametrize(
    ("fold", "mine", "other"),
    [(4, move_kernels, move_twofold_kernels), (2, move_twofold_kernels, move_kernels)],
)
def test_each_rewrite_takes_its_planes(fold, mine, other):
    graph = cases.upsampled_convolution(3, small=(4, 5), large=(4 * fold, 5 * fold))
    assert cases.fused(graph, mine)[1].changed == ("node_y",)
    assert cases.fused(graph, other)[1].changed == ()


def _repeat_the_edge(rows):
    """Padding is zero; repeating the edge is what the interpolation, not the convolution, does."""
    rows[0, :4] = rows[0, 4:8]
    return rows


def _swap_the_taps(weight):
    return weight.reshape(4, 3, 3, -1).transpose(0, 2, 1, 3).reshape(weight.shape)


@pytest.mark.parametrize(
    ("ending", "change"), [("_rows", _repeat_the_edge), ("w_small3", _swap_the_taps)]
)
def test_a_wrong_border_or_order_of_taps_is_seen(ending, change):
    graph = cases.upsampled_convolution(3)
    moved, _ = cases.fused(graph, move_twofold_kernels)
    (name,) = [t.name for t in moved.graph.initializer if t.name.endswith(ending)]
    assert (
        cases.difference(
            graph, cases.change_constant(moved, name, change), **cases.upsampled_feed(1)
        )
        > 0.1
    )


def test_the_middle_tap_is_the_interpolation_itself():
    matrix = tap_matrix(5, 10, 3, 1)
    np.testing.assert_array_equal(matrix[:-1, 5:10], matrix[1:, :5])
    np.testing.assert_array_equal(matrix[1:, 5:10], matrix[:-1, 10:])
    assert not matrix[0, :5].any()
    assert not matrix[-1, 10:].any()


@pytest.mark.parametrize("count", [1, 3])
def test_shortcuts_stay_beside_what_is_not_upsampled(count):
    graph = cases.upsampled_convolution(1)
    moved, outcome = cases.fused(graph, move_shortcuts)
    assert sorted(cases.operators(moved)) == ["Add", "Conv", "Conv", "Resize"]
    assert outcome.changed == ("node_y",)
    assert cases.difference(graph, moved, **cases.upsampled_feed(count)) < cases.ROUNDING


@pytest.mark.parametrize("bias", [True, False])
def test_shortcuts_stay_alone(bias):
    """The decoder's shortcuts: everything is upsampled, so the bias goes below, too."""
    graph = _alone(bias)
    moved, outcome = cases.fused(graph, move_shortcuts)
    assert sorted(cases.operators(moved)) == ["Conv", "Resize"]
    assert outcome.changed == ("node_y",)
    assert cases.difference(graph, moved, x=cases.random(2, 6, 4, 5)) < cases.ROUNDING


def _alone(bias, size=(8, 10), **extra):
    return cases.make(
        [
            cases.node("Resize", ["x", "", "scales"], "up", mode="linear"),
            cases.node("Conv", ["up", "w", "b"] if bias else ["up", "w"], "y", **extra),
        ],
        {"x": cases.floats("n", 6, 4, 5)},
        {"y": cases.floats("n", 4, *size)},
        {
            "scales": np.array([1, 1, 2, 2], np.float32),
            "w": cases.random(4, 6, 1, 1),
            "b": cases.random(4),
        },
    )


@pytest.mark.parametrize(
    ("constant", "change"),
    [("w_small3", lambda w: np.roll(w, 1, axis=1)), ("y_rest_bias", lambda b: 2 * b)],
    ids=["other channels", "bias added twice"],
)
def test_a_wrong_shortcut_is_seen(constant, change):
    graph = cases.upsampled_convolution(1)
    wrong = cases.change_constant(cases.fused(graph, move_shortcuts)[0], constant, change)
    assert cases.difference(graph, wrong, **cases.upsampled_feed(1)) > 0.1


@pytest.mark.parametrize(
    ("extra", "size", "words"),
    [
        ({"strides": [1, 2]}, (8, 5), "groups or strides"),
        ({"pads": [1, 1, 1, 1]}, (10, 12), "expected 0 all around"),
    ],
)
def test_other_convolutions_are_refused_with_the_reason(extra, size, words):
    assert words in cases.refusal(_alone(True, size, **extra), move_shortcuts)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_the_pooled_branch_stays(count, bias):
    graph = cases.upsampled_convolution(3, bias=bias, **POINT)
    taken_out, outcome = cases.fused(graph, take_out_pooled_branch)
    assert "Resize" not in cases.operators(taken_out)
    assert outcome.changed == ("node_y",)
    assert count_macs(open_model(taken_out)) < count_macs(open_model(graph))
    assert (
        cases.difference(graph, taken_out, **cases.upsampled_feed(count, **POINT)) < cases.ROUNDING
    )


def test_the_pooled_branch_has_nine_variants():
    """What the branch adds differs at four corners, along four edges and inside, nowhere else."""
    graph = cases.upsampled_convolution(3, **POINT)
    feed = cases.upsampled_feed(1, **POINT)
    feed["a"] = np.zeros_like(feed["a"])
    (answer,) = cases.run(cases.fused(graph, take_out_pooled_branch)[0], **feed)
    patterns = {tuple(np.round(answer[0, :, i, j], 5)) for i in range(8) for j in range(20)}
    assert len(patterns) == 9


@pytest.mark.parametrize("axis", ["rows", "columns"])
def test_a_wrong_border_variant_is_seen(axis):
    graph = cases.upsampled_convolution(3, **POINT)
    taken_out, _ = cases.fused(graph, take_out_pooled_branch)
    (name,) = [t.name for t in taken_out.graph.initializer if t.name.endswith(f"_{axis}")]

    def as_inside(matrix):
        matrix[:] = 1
        return matrix

    wrong = cases.change_constant(taken_out, name, as_inside)
    assert cases.difference(graph, wrong, **cases.upsampled_feed(1, **POINT)) > 0.1


def test_the_pooled_branch_takes_planes_of_one_pixel_only():
    assert cases.refusal(cases.upsampled_convolution(3), take_out_pooled_branch) == ""


@pytest.mark.parametrize(
    ("kernel", "small", "fusion"),
    [(1, (16, 40), move_shortcuts), (3, (8, 20), move_twofold_kernels)],
)
def test_upsampling_too_little_is_refused_because_it_costs_more(kernel, small, fusion):
    graph = cases.upsampled_convolution(kernel, small=small, large=(8, 20))
    assert "MACs on the small planes" in cases.refusal(graph, fusion)
