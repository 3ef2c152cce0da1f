"""Lengths divided out once: rounding, underflow and zeros."""

import numpy as np
import pytest

pytest.importorskip("onnx")

from destseg_export.fusions.products import divide_lengths_once
from tests.export.fusions.cases import (
    change_constant,
    difference,
    floats,
    make,
    node,
    operators,
    random,
    rewritten,
    run,
)

BOUND = 7 * 2.0**-24
"""What the rewrite's file promises for values in [-1, 0]."""


def _graph(epsilon=True, student_divided=True):
    nodes = []
    for name in "ts":
        nodes.append(node("ReduceL2", [name, "axes"], f"{name}_l", keepdims=1))
        length = f"{name}_l"
        if epsilon:
            nodes.append(node("Add", [length, "epsilon"], f"{name}_e"))
            length = f"{name}_e"
        nodes.append(node("Div", [name, length], f"{name}_u"))
    nodes.append(node("Neg", ["t_u"], "negative"))
    nodes.append(node("Mul", ["negative", "s_u" if student_divided else "s"], "y"))
    return make(
        nodes,
        {"t": floats("n", 5, 4, 6), "s": floats("n", 5, 4, 6)},
        {"y": floats("n", 5, 4, 6)},
        {"axes": np.array([1]), "epsilon": np.float32(1e-12)},
    )


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("scale", [1.0, 1e-9, 400.0])
def test_the_answers_stay_within_the_bound(count, scale):
    graph = _graph()
    once, outcome = rewritten(graph, divide_lengths_once)
    assert operators(once).count("Div") == 1
    assert "Neg" not in operators(once)
    assert len(outcome.changed) == 4
    feed = {"t": np.abs(random(count, 5, 4, 6)), "s": random(count, 5, 4, 6, seed=1) * scale}
    assert difference(graph, once, **feed) < BOUND


def test_a_pixel_of_zeros_stays_zero():
    graph = _graph()
    once, _ = rewritten(graph, divide_lengths_once)
    zeros = np.zeros((1, 5, 4, 6), np.float32)
    assert not run(once, t=zeros, s=zeros)[0].any()
    assert difference(graph, once, t=zeros, s=random(1, 5, 4, 6)) == 0


def test_without_epsilon_both_are_nan():
    graph = _graph(epsilon=False)
    once, _ = rewritten(graph, divide_lengths_once)
    zeros = np.zeros((1, 5, 4, 6), np.float32)
    assert np.isnan(run(graph, t=zeros, s=zeros)[0]).all()
    assert np.isnan(run(once, t=zeros, s=zeros)[0]).all()


def test_a_lost_sign_is_seen():
    graph = _graph()
    once, _ = rewritten(graph, divide_lengths_once)
    wrong = change_constant(once, "y_sign", np.negative)
    feed = {"t": random(1, 5, 4, 6), "s": random(1, 5, 4, 6, seed=1)}
    assert difference(graph, wrong, **feed) > 0.5


def test_a_lost_epsilon_is_seen():
    graph = _graph()
    once, _ = rewritten(graph, divide_lengths_once)
    wrong = change_constant(once, "epsilon", np.zeros_like)
    zeros = np.zeros((1, 5, 4, 6), np.float32)
    assert difference(graph, wrong, t=zeros, s=zeros) == np.inf


def test_one_unit_factor_alone_is_refused_with_the_reason():
    graph = _graph(student_divided=False)
    once, outcome = rewritten(graph, divide_lengths_once)
    assert operators(once)[-2:] == ["Neg", "Mul"]
    assert outcome.changed == ()
    assert outcome.refused[0].node == "node_y"
    assert "only one factor" in outcome.refused[0].reason
