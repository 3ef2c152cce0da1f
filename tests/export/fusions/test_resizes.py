"""Resizes with constant scales."""

import numpy as np
import pytest

pytest.importorskip("onnx")

from destseg_export.fusions.resizes import exact_scales, fix_resizes
from tests.export.fusions.cases import (
    change_constant,
    difference,
    floats,
    make,
    node,
    operators,
    random,
    rewritten,
)


def _graph(target, mode="linear"):
    return make(
        [
            node("Relu", ["x"], "r"),
            node("Shape", ["r"], "shape", start=0, end=2),
            node("Concat", ["shape", "target"], "sizes", axis=0),
            node("Resize", ["r", "", "", "sizes"], "up", mode=mode),
            node("Neg", ["up"], "y"),
        ],
        {"x": floats("n", 3, 4, 6)},
        {"y": floats("n", 3, *target)},
        {"target": np.array(target)},
    )


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("target", [(8, 24), (4, 6), (2, 3)])
def test_the_answers_are_the_same_bits(count, target):
    graph = _graph(target)
    fixed, outcome = rewritten(graph, fix_resizes)
    assert not {"Shape", "Concat"} & set(operators(fixed))
    assert ("Resize" in operators(fixed)) == (target != (4, 6))
    assert outcome.changed == ("node_up",)
    assert difference(graph, fixed, x=random(count, 3, 4, 6)) == 0


def test_a_wrong_scale_is_seen():
    graph = _graph((8, 24))
    fixed, _ = rewritten(graph, fix_resizes)
    scale = np.array([1, 1, 2, 4.1], np.float32)  # 24.6 pixels, cut to 24
    wrong = change_constant(fixed, "up_scales", lambda value: scale)
    assert difference(graph, wrong, x=random(1, 3, 4, 6)) > 1e-2


def test_a_ratio_that_float32_does_not_hold_is_refused_with_the_reason():
    graph = _graph((8, 7))
    fixed, outcome = rewritten(graph, fix_resizes)
    assert operators(fixed) == operators(graph)
    assert outcome.refused[0].reason == "(8, 7) / (4, 6) is not exact in float32"
    assert exact_scales((3,), (7,)) is None
    assert exact_scales((4,), (7,)) is not None


def test_another_mode_is_refused_with_the_reason():
    graph = _graph((8, 24), mode="cubic")
    _, outcome = rewritten(graph, fix_resizes)
    assert outcome.changed == ()
    assert outcome.refused[0].reason == "mode 'cubic', expected 'linear'"
