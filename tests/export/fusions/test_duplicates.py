"""Dead and duplicate nodes."""

import pytest

from destseg_export.fusions.duplicates import drop_duplicates
from tests.export.fusions import cases


def _graph(slope=0.1):
    return cases.make(
        [
            cases.node("LeakyRelu", ["x"], "a", alpha=0.1),
            cases.node("LeakyRelu", ["x"], "b", alpha=slope),
            cases.node("Exp", ["b"], "dead"),
            cases.node("Sub", ["a", "zero"], "c"),
            cases.node("Add", ["c", "b"], "y"),
        ],
        {"x": cases.floats("n", 3)},
        {"y": cases.floats("n", 3)},
        {"zero": cases.random(3), "unused": cases.random(7)},
    )


@pytest.mark.parametrize("count", [1, 3])
def test_the_answers_are_the_same_bits(count):
    graph = _graph()
    lean, outcome = cases.fused(graph, drop_duplicates)
    assert cases.operators(lean) == ["LeakyRelu", "Sub", "Add"]
    assert outcome.changed == ("node_b", "node_dead")
    assert [t.name for t in lean.graph.initializer] == ["zero"]
    assert cases.difference(graph, lean, x=cases.random(count, 3)) == 0


def test_another_attribute_is_no_duplicate():
    """The control: taking one for the other would be seen."""
    graph = _graph(slope=0.5)
    lean, outcome = cases.fused(graph, drop_duplicates)
    assert cases.operators(lean).count("LeakyRelu") == 2
    assert outcome.changed == ("node_dead",)
    wrong, _ = cases.fused(_graph(), drop_duplicates)
    assert cases.difference(graph, wrong, x=-abs(cases.random(1, 3))) > 0.1


def test_outputs_keep_their_names():
    graph = cases.make(
        [cases.node("Relu", ["x"], "a"), cases.node("Relu", ["x"], "b")],
        {"x": cases.floats("n", 3)},
        {"a": cases.floats("n", 3), "b": cases.floats("n", 3)},
        {},
    )
    lean, _ = cases.fused(graph, drop_duplicates)
    assert cases.operators(lean) == ["Relu", "Identity"]
    assert list(lean.graph.output) == list(graph.graph.output)
    assert cases.difference(graph, lean, x=cases.random(2, 3)) == 0
