"""Two stems in one convolution."""

import pytest

from destseg_export.fusions.stems import join_stems
from tests.export.fusions import cases


def _graph(second_stride=2):
    nodes, outputs = [], {}
    for name, stride in (("t", 2), ("s", second_stride)):
        nodes += [
            cases.node(
                "Conv",
                ["x", f"{name}_w", f"{name}_b"],
                f"{name}_c",
                pads=[3] * 4,
                strides=[stride] * 2,
            ),
            cases.node("Relu", [f"{name}_c"], f"{name}_r"),
            cases.node(
                "MaxPool", [f"{name}_r"], name, kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2]
            ),
        ]
        outputs[name] = cases.floats("n", 4, 8 // stride * 1, 8 // stride * 1)
    constants = {f"{n}_w": cases.random(4, 3, 7, 7, seed=i) / 10 for i, n in enumerate("ts")}
    constants |= {f"{n}_b": cases.random(4, seed=i) for i, n in enumerate("ts")}
    return cases.make(nodes, {"x": cases.floats("n", 3, 16, 16)}, outputs, constants)


@pytest.mark.parametrize("count", [1, 3])
def test_the_answers_stay(count):
    graph = _graph()
    joined, outcome = cases.fused(graph, join_stems)
    assert cases.operators(joined) == ["Conv", "Relu", "MaxPool", "Split"]
    assert len(outcome.changed) == 6
    assert cases.difference(graph, joined, x=cases.random(count, 3, 16, 16)) < cases.ROUNDING


def test_teacher_and_student_the_wrong_way_round_are_seen():
    graph = _graph()
    joined, _ = cases.fused(graph, join_stems)
    split = joined.graph.node[-1]
    split.output[0], split.output[1] = split.output[1], split.output[0]
    assert cases.difference(graph, joined, x=cases.random(1, 3, 16, 16)) > 0.1


def test_another_stride_is_refused_with_the_reason():
    reason = cases.refusal(_graph(second_stride=1), join_stems)
    assert reason == "node_t_c: node_s_c has another kernel, stride or padding"
