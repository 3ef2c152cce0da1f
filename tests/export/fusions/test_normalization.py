"""Normalisation in the first convolution: the same values, at the borders too."""

import numpy as np
import pytest

from destseg_export.fusions.normalization import fold_normalization
from tests.export.fusions import cases

MEAN = np.array([0.485, 0.456, 0.406], np.float32).reshape(3, 1, 1)
STD = np.array([0.229, 0.224, 0.225], np.float32).reshape(3, 1, 1)


def _graph(also_read=False):
    nodes = [
        cases.node("Div", ["pixels", "255"], "unit"),
        cases.node("Sub", ["unit", "mean"], "centred"),
        cases.node("Div", ["centred", "std"], "x"),
        cases.node("Conv", ["x", "teacher"], "t", pads=[3, 3, 3, 3], strides=[2, 2]),
        cases.node("Conv", ["x", "student", "bias"], "s", pads=[3, 3, 3, 3], strides=[2, 2]),
    ]
    outputs = {"t": cases.floats("n", 4, 8, 9), "s": cases.floats("n", 4, 8, 9)}
    if also_read:
        nodes.append(cases.node("Relu", ["x"], "r"))
        outputs["r"] = cases.floats("n", 3, 16, 18)
    return cases.make(
        nodes,
        {"pixels": cases.floats("n", 3, 16, 18)},
        outputs,
        {
            "255": np.float32(255),
            "mean": MEAN,
            "std": STD,
            "teacher": cases.random(4, 3, 7, 7) / 10,
            "student": cases.random(4, 3, 7, 7, seed=1) / 10,
            "bias": cases.random(4),
        },
    )


def _pixels(count):
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, 16, 18)).astype(np.float32)
    pixels[:, :, :2] = 255  # far from the mean, where padding is next to it
    return pixels


@pytest.mark.parametrize("count", [1, 3])
def test_the_answers_stay(count):
    graph = _graph()
    folded, outcome = cases.fused(graph, fold_normalization)
    assert cases.operators(folded) == ["Sub", "Conv", "Conv"]
    assert len(outcome.changed) == 3
    assert outcome.refused == ()
    assert cases.difference(graph, folded, pixels=_pixels(count)) < 2 * cases.ROUNDING


def test_a_forgotten_mean_is_seen_at_the_border_alone():
    """Black instead of the mean around the image: the interior is right when a bias makes up."""
    graph = _graph()
    folded, _ = cases.fused(graph, fold_normalization)
    (mean,) = [t.name for t in folded.graph.initializer if t.name.endswith("_mean")]
    wrong = cases.change_constant(folded, mean, np.zeros_like)
    assert cases.difference(graph, wrong, pixels=_pixels(1)) > 0.1


def test_a_tensor_that_others_read_is_left():
    cases.refusal(_graph(also_read=True), fold_normalization)


def test_shared_weights_are_refused_with_the_reason():
    graph = _graph()
    graph.graph.node[4].input[1] = "teacher"
    reason = cases.refusal(graph, fold_normalization)
    assert reason == "node_x: node_t has no constant weights of its own"


def test_one_step_is_nothing_to_fold():
    folded, _ = cases.fused(_graph(), fold_normalization)
    assert "nothing to fold" in cases.refusal(folded, fold_normalization)


def test_a_product_of_features_is_no_normalisation():
    """Of such a one it was said that tiles are cut out of it, of a model without tiles."""
    graph = cases.make(
        [
            cases.node("Mul", ["t", "s"], "product"),
            cases.node("Concat", ["product", "t"], "y", axis=1),
        ],
        {"t": cases.floats("n", 3, 4, 4), "s": cases.floats("n", 3, 4, 4)},
        {"y": cases.floats("n", 6, 4, 4)},
        {},
    )
    assert cases.refusal(graph, fold_normalization) == ""
