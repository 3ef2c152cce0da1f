"""ONNX Script's optimizer, and what it must not drop."""

import numpy as np
import pytest

pytest.importorskip("onnxscript")

from destseg_export.fusions.optimizer import optimize
from tests.export.fusions.cases import (
    difference,
    floats,
    make,
    node,
    operators,
    random,
    rewritten,
    run,
)


def test_what_does_nothing_goes_and_the_answers_stay():
    graph = make(
        [node("Relu", ["x"], "r"), node("Identity", ["r"], "i"), node("Exp", ["i"], "y")],
        {"x": floats("n", 3)},
        {"y": floats("n", 3)},
        {},
    )
    optimized, outcome = rewritten(graph, optimize)
    assert operators(optimized) == ["Relu", "Exp"]
    assert outcome.changed == ("node_i",)
    assert difference(graph, optimized, x=random(2, 3)) == 0


def test_an_epsilon_is_kept_and_the_reason_given():
    """Dropped, the length of a pixel of zeros is 0 and the division gives NaN."""
    graph = make(
        [
            node("ReduceL2", ["x", "axes"], "length", keepdims=1),
            node("Add", ["length", "epsilon"], "guarded"),
            node("Div", ["x", "guarded"], "y"),
        ],
        {"x": floats("n", 3)},
        {"y": floats("n", 3)},
        {"axes": np.array([1]), "epsilon": np.float32(1e-12)},
    )
    optimized, outcome = rewritten(graph, optimize)
    assert operators(optimized) == ["ReduceL2", "Add", "Div"]
    assert outcome.changed == ()
    assert [refusal.node for refusal in outcome.refused] == ["node_guarded"]
    assert "drops this Add" in outcome.refused[0].reason
    assert not run(optimized, x=np.zeros((1, 3), np.float32))[0].any()
