"""ONNX Script's optimizer, and what it must not drop."""

import numpy as np

from destseg_export.fusions.optimizer import optimize
from tests.export.fusions import cases


def test_what_does_nothing_goes_and_the_answers_stay():
    graph = cases.make(
        [
            cases.node("Relu", ["x"], "r"),
            cases.node("Identity", ["r"], "i"),
            cases.node("Exp", ["i"], "y"),
        ],
        {"x": cases.floats("n", 3)},
        {"y": cases.floats("n", 3)},
        {},
    )
    optimized, outcome = cases.fused(graph, optimize)
    assert cases.operators(optimized) == ["Relu", "Exp"]
    assert outcome.changed == ("node_i",)
    assert cases.difference(graph, optimized, x=cases.random(2, 3)) == 0


def test_an_epsilon_is_kept_and_the_reason_given():
    """Dropped, the length of a pixel of zeros is 0 and the division gives NaN."""
    graph = cases.make(
        [
            cases.node("ReduceL2", ["x", "axes"], "length", keepdims=1),
            cases.node("Add", ["length", "epsilon"], "guarded"),
            cases.node("Div", ["x", "guarded"], "y"),
        ],
        {"x": cases.floats("n", 3)},
        {"y": cases.floats("n", 3)},
        {"axes": np.array([1]), "epsilon": np.float32(1e-12)},
    )
    optimized, outcome = cases.fused(graph, optimize)
    assert cases.operators(optimized) == ["ReduceL2", "Add", "Div"]
    assert outcome.changed == ()
    assert [refusal.node for refusal in outcome.refused] == ["node_guarded"]
    assert "drops this Add" in outcome.refused[0].reason
    assert not cases.run(optimized, x=np.zeros((1, 3), np.float32))[0].any()
