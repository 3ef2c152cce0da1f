"""Dead and duplicate nodes."""

import pytest

pytest.importorskip("onnx")

from destseg_export.fusions.duplicates import drop_duplicates
from tests.export.fusions.cases import (
    difference,
    floats,
    make,
    node,
    operators,
    random,
    rewritten,
)


def _graph(slope=0.1):
    return make(
        [
            node("LeakyRelu", ["x"], "a", alpha=0.1),
            node("LeakyRelu", ["x"], "b", alpha=slope),
            node("Exp", ["b"], "dead"),
            node("Sub", ["a", "zero"], "c"),
            node("Add", ["c", "b"], "y"),
        ],
        {"x": floats("n", 3)},
        {"y": floats("n", 3)},
        {"zero": random(3), "unused": random(7)},
    )


@pytest.mark.parametrize("count", [1, 3])
def test_the_answers_are_the_same_bits(count):
    graph = _graph()
    lean, outcome = rewritten(graph, drop_duplicates)
    assert operators(lean) == ["LeakyRelu", "Sub", "Add"]
    assert outcome.changed == ("node_dead", "node_b")
    assert [t.name for t in lean.graph.initializer] == ["zero"]
    assert difference(graph, lean, x=random(count, 3)) == 0


def test_another_attribute_is_no_duplicate():
    """The control: taking one for the other would be seen."""
    graph = _graph(slope=0.5)
    lean, outcome = rewritten(graph, drop_duplicates)
    assert operators(lean).count("LeakyRelu") == 2
    assert outcome.changed == ("node_dead",)
    wrong, _ = rewritten(_graph(), drop_duplicates)
    assert difference(graph, wrong, x=-abs(random(1, 3))) > 0.1


def test_outputs_keep_their_makers():
    graph = make(
        [node("Relu", ["x"], "a"), node("Relu", ["x"], "b")],
        {"x": floats("n", 3)},
        {"a": floats("n", 3), "b": floats("n", 3)},
        {},
    )
    lean, outcome = rewritten(graph, drop_duplicates)
    assert outcome.changed == ()
    assert operators(lean) == ["Relu", "Relu"]
