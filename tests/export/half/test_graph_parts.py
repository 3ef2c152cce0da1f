"""Parts of a graph: every node has one, and another graph is refused."""

from collections import Counter

import onnx
import onnx_ir as ir
import pytest

from destseg_deploy.errors import ExportError
from destseg_export.half.graph_parts import PARTS, SIZE, split_into_parts


@pytest.fixture
def graph(onnx_artifact):
    return ir.from_proto(onnx.load(onnx_artifact)).graph


def _first(graph, operator):
    return next(node for node in graph if node.op_type == operator)


def test_every_part_is_there(graph):
    parts = split_into_parts(graph)
    counts = Counter(zip(parts, (node.op_type for node in graph), strict=True))
    assert set(parts) == {*PARTS, SIZE}
    assert counts["stem", "Conv"] == counts["stem", "MaxPool"] == 2, "teacher and student"
    assert counts["trunk", "Conv"] == 63
    assert counts["trunk", "Add"] == 24
    assert counts["trunk", "Resize"] == 4, "three in the decoder, one behind the pooled branch"
    assert counts["product", "Resize"] == 3
    assert counts["map", "Resize"] == 1
    assert counts["norm", "Div"] == 6
    assert counts["pixels", "Div"] == 2
    assert counts["score", "ReduceMean"] == counts["pool", "ReduceMean"] == 1


def test_the_logit_is_the_last_convolution(graph):
    parts = split_into_parts(graph)
    last = [n for part, n in zip(parts, graph, strict=True) if part == "logit"]
    assert [node.inputs[1].name for node in last] == ["model.segmentation_net.head.4.weight"]


def test_scopes_and_names_do_not_matter(graph):
    """The teacher's nodes have no scope, and another exporter names nodes otherwise."""
    before = split_into_parts(graph)
    for i, node in enumerate(graph):
        node.metadata_props.clear()
        node.name = f"n{i}"
    assert split_into_parts(graph) == before


def test_an_unexpected_operator_is_refused_by_name(graph):
    relu = _first(graph, "Relu")
    relu.op_type = "Tanh"
    with pytest.raises(ExportError, match=f"{relu.name}: no Tanh is expected after 'stem'"):
        split_into_parts(graph)


def test_a_missing_step_is_refused(graph):
    """Without the first norm the graph is valid, and not this network."""
    length = _first(graph, "ReduceL2")
    (guarded,) = length.outputs[0].consumers()
    (div,) = guarded.outputs[0].consumers()
    div.outputs[0].replace_all_uses_with(div.inputs[0])
    graph.remove(div)
    with pytest.raises(ExportError, match="Neg is expected after 'trunk'"):
        split_into_parts(graph)


def test_another_number_of_convolutions_is_refused(graph):
    relu = _first(graph, "Relu")
    weight = _first(graph, "Conv").inputs[1]
    relu.append(ir.node("Conv", [relu.outputs[0], weight], name="more"))
    with pytest.raises(ExportError, match="the graph has 64 Conv in 'trunk', expected 63"):
        split_into_parts(graph)


def test_a_graph_without_a_score_is_refused(graph):
    top = _first(graph, "TopK")
    top.op_type = "ReduceMean"
    with pytest.raises(ExportError, match="0 TopK in 'score', expected 1"):
        split_into_parts(graph)
