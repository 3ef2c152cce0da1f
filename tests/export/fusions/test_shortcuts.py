"""1x1 convolutions below the upsampling."""

import numpy as np
import pytest

pytest.importorskip("onnx")

from destseg_export.fusions.shortcuts import move_shortcuts
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
def test_the_answers_stay_beside_what_is_not_upsampled(count):
    graph = upsampled_convolution(1)
    moved, outcome = rewritten(graph, move_shortcuts)
    assert sorted(operators(moved)) == ["Add", "Conv", "Conv", "Resize"]
    assert outcome.changed == ("node_y",)
    assert difference(graph, moved, **upsampled_feed(count)) < ROUNDING


@pytest.mark.parametrize("bias", [True, False])
def test_the_answers_stay_alone(bias):
    """The decoder's shortcuts: everything is upsampled, so the bias goes below, too."""
    graph = _alone(bias)
    moved, outcome = rewritten(graph, move_shortcuts)
    assert sorted(operators(moved)) == ["Conv", "Resize"]
    assert outcome.changed == ("node_y",)
    assert difference(graph, moved, x=random(2, 6, 4, 5)) < ROUNDING


def _alone(bias, size=(8, 10), **extra):
    return make(
        [
            node("Resize", ["x", "", "scales"], "up", mode="linear"),
            node("Conv", ["up", "w", "b"] if bias else ["up", "w"], "y", **extra),
        ],
        {"x": floats("n", 6, 4, 5)},
        {"y": floats("n", 4, *size)},
        {"scales": np.array([1, 1, 2, 2], np.float32), "w": random(4, 6, 1, 1), "b": random(4)},
    )


def test_weights_of_other_channels_are_seen():
    graph = upsampled_convolution(1)
    moved, _ = rewritten(graph, move_shortcuts)
    wrong = change_constant(moved, "w_small3", lambda w: np.roll(w, 1, axis=1))
    assert difference(graph, wrong, **upsampled_feed(1)) > 0.1


def test_a_bias_added_twice_is_seen():
    graph = upsampled_convolution(1)
    moved, _ = rewritten(graph, move_shortcuts)
    wrong = change_constant(moved, "y_rest_bias", lambda b: 2 * b)
    assert difference(graph, wrong, **upsampled_feed(1)) > 0.1


@pytest.mark.parametrize(
    ("extra", "size", "words"),
    [
        ({"strides": [1, 2]}, (8, 5), "groups or strides"),
        ({"pads": [1, 1, 1, 1]}, (10, 12), "expected 0 all around"),
    ],
)
def test_other_convolutions_are_refused_with_the_reason(extra, size, words):
    graph = _alone(True, size, **extra)
    moved, outcome = rewritten(graph, move_shortcuts)
    assert operators(moved) == operators(graph)
    assert words in outcome.refused[0].reason


def test_downsampling_is_refused_because_it_costs_more():
    graph = upsampled_convolution(1, small=(16, 40), large=(8, 20))
    moved, outcome = rewritten(graph, move_shortcuts)
    assert operators(moved) == operators(graph)
    assert "MACs on the small planes" in outcome.refused[0].reason
