"""Lengths divided out once: rounding, underflow and zeros."""

import numpy as np
import pytest

from destseg_export.fusions.products import divide_lengths_once
from tests.export.fusions import cases

BOUND = 7 * 2.0**-24
"""What the rewrite's file promises for values in [-1, 0]."""


def _graph(epsilon=True, student_divided=True):
    nodes = []
    for name in "ts":
        nodes.append(cases.node("ReduceL2", [name, "axes"], f"{name}_l", keepdims=1))
        length = f"{name}_l"
        if epsilon:
            nodes.append(cases.node("Add", [length, "epsilon"], f"{name}_e"))
            length = f"{name}_e"
        nodes.append(cases.node("Div", [name, length], f"{name}_u"))
    nodes.append(cases.node("Neg", ["t_u"], "negative"))
    nodes.append(cases.node("Mul", ["negative", "s_u" if student_divided else "s"], "y"))
    return cases.make(
        nodes,
        {"t": cases.floats("n", 5, 4, 6), "s": cases.floats("n", 5, 4, 6)},
        {"y": cases.floats("n", 5, 4, 6)},
        {"axes": np.array([1]), "epsilon": np.float32(1e-12)},
    )


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("scale", [1.0, 1e-9, 400.0])
def test_the_answers_stay_within_the_bound(count, scale):
    graph = _graph()
    once, outcome = cases.fused(graph, divide_lengths_once)
    assert cases.operators(once).count("Div") == 1
    assert "Neg" not in cases.operators(once)
    assert len(outcome.changed) == 4
    feed = {
        "t": np.abs(cases.random(count, 5, 4, 6)),
        "s": cases.random(count, 5, 4, 6, seed=1) * scale,
    }
    assert cases.difference(graph, once, **feed) < BOUND


def test_a_pixel_of_zeros_stays_zero():
    graph = _graph()
    once, _ = cases.fused(graph, divide_lengths_once)
    zeros = np.zeros((1, 5, 4, 6), np.float32)
    assert not cases.run(once, t=zeros, s=zeros)[0].any()
    assert cases.difference(graph, once, t=zeros, s=cases.random(1, 5, 4, 6)) == 0


def test_without_epsilon_both_are_nan():
    graph = _graph(epsilon=False)
    once, _ = cases.fused(graph, divide_lengths_once)
    zeros = np.zeros((1, 5, 4, 6), np.float32)
    assert np.isnan(cases.run(graph, t=zeros, s=zeros)[0]).all()
    assert np.isnan(cases.run(once, t=zeros, s=zeros)[0]).all()


def test_a_lost_sign_is_seen():
    graph = _graph()
    once, _ = cases.fused(graph, divide_lengths_once)
    wrong = cases.change_constant(once, "y_sign", np.negative)
    feed = {"t": cases.random(1, 5, 4, 6), "s": cases.random(1, 5, 4, 6, seed=1)}
    assert cases.difference(graph, wrong, **feed) > 0.5


def test_a_lost_epsilon_is_seen():
    graph = _graph()
    once, _ = cases.fused(graph, divide_lengths_once)
    wrong = cases.change_constant(once, "epsilon", np.zeros_like)
    zeros = np.zeros((1, 5, 4, 6), np.float32)
    assert cases.difference(graph, wrong, t=zeros, s=zeros) == np.inf


def test_one_unit_factor_alone_is_refused_with_the_reason():
    graph = _graph(student_divided=False)
    once, outcome = cases.fused(graph, divide_lengths_once)
    assert cases.operators(once)[-2:] == ["Neg", "Mul"]
    assert outcome.changed == ()
    assert outcome.refused[0].node == "node_y"
    assert "only one factor" in outcome.refused[0].reason
