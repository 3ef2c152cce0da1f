"""The epsilon of feature lengths: dropped by the exporter, back in the graph."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from destseg_export.graph.edit import open_model
from destseg_export.graph.epsilon import keep_epsilon
from tests.export.fusions.cases import run


def _unit_length():
    """x / |x| as the exporter writes it."""
    graph = helper.make_graph(
        [
            helper.make_node("ReduceL2", ["x", "axes"], ["length"], "length", keepdims=1),
            helper.make_node("Div", ["x", "length"], ["y"], "unit"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 2, 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 2, 1])],
        [numpy_helper.from_array(np.array([1]), "axes")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_zeros_stay_zeros_as_in_pytorch():
    torch = pytest.importorskip("torch")
    from destseg_deploy.models.destseg import normalize

    x = np.array([0, 3, 0, 4, 0, 12], np.float32).reshape(1, 3, 2, 1)
    assert np.isnan(run(_unit_length(), x=x)).sum() == 3, "control: what the exporter writes"
    model = open_model(_unit_length())
    assert keep_epsilon(model) == ["unit"]
    (found,) = run(ir.to_proto(model), x=x)
    np.testing.assert_array_equal(found, normalize(torch.from_numpy(x)).numpy())


def test_it_is_put_back_once():
    model = open_model(_unit_length())
    keep_epsilon(model)
    before = ir.to_proto(model)
    assert keep_epsilon(model) == []
    assert ir.to_proto(model) == before


def test_an_export_has_all_six(onnx_artifact):
    graph = onnx.load(onnx_artifact).graph
    lengths = {node.output[0] for node in graph.node if node.op_type == "ReduceL2"}
    guards = [node for node in graph.node if node.op_type == "Add" and node.input[0] in lengths]
    assert len(guards) == len(lengths) == 6
    assert {node.input[1] for node in guards} == {"norm_epsilon"}
    divisors = {node.input[1] for node in graph.node if node.op_type == "Div"}
    assert not lengths & divisors


def test_a_pixel_without_features_is_finite_in_an_export(model, onnx_artifact):
    """All of the student's last features 0: PyTorch answers, and the graph the same."""
    import copy

    import torch

    from destseg_deploy.models.inference import InferenceGraph

    dead = copy.deepcopy(model)
    proto = onnx.load(onnx_artifact)
    last = "model.student_net.decoder_layer1.1.conv2.bias"
    bias = next(t for t in proto.graph.initializer if t.name == last)
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) - 1e6, last))
    with torch.no_grad():
        dead.student_net.decoder_layer1[1].bn2.bias.sub_(1e6)
        frames = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
        wanted, _ = InferenceGraph(dead, network_size=(64, 64), top_k=6)(frames)
    found, _ = run(proto, image=frames.numpy())
    assert np.isfinite(wanted.numpy()).all()
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4)
