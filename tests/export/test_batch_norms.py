"""BatchNorm folding against ONNX Runtime, which computes it unfolded."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402 - needs onnx

from destseg_deploy.errors import ExportError  # noqa: E402 - after onnx
from destseg_export.batch_norms import fold_batch_norms  # noqa: E402 - needs onnx


def _model(*, bias: bool, first: str = "Conv", twice: bool = False):
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.standard_normal((5, 3, 3, 3)),
        "b": rng.standard_normal(5),
        "gamma": rng.uniform(0.5, 2, 5),
        "beta": rng.standard_normal(5),
        "mean": rng.standard_normal(5),
        "variance": rng.uniform(0.1, 3, 5),
    }
    inputs = ["x", "w", "b"] if bias else ["x", "w"]
    nodes = [
        helper.make_node(first, inputs if first == "Conv" else ["x"], ["c"], "first"),
        helper.make_node(
            "BatchNormalization", ["c", "gamma", "beta", "mean", "variance"], ["y"], "norm",
            epsilon=1e-3,
        ),
    ]  # fmt: skip
    outputs = ["y"]
    if twice:
        nodes.append(helper.make_node("Relu", ["c"], ["z"], "other"))
        outputs.append("z")
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 8, 8])],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, [None] * 4) for o in outputs],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _run(model):
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["y"], {"x": x})[0]


@pytest.mark.parametrize("bias", [True, False])
def test_the_folded_convolution_gives_the_same(bias):
    model = _model(bias=bias)
    wanted = _run(model)
    assert fold_batch_norms(model) == ["norm"]
    assert [node.op_type for node in model.graph.node] == ["Conv"]
    assert model.graph.node[0].input[2] == ("b" if bias else "w_bias")
    np.testing.assert_allclose(_run(model), wanted, atol=5e-6)


@pytest.mark.parametrize("constant", ["gamma", "beta", "mean", "variance"])
def test_each_statistic_counts(constant):
    """Control: the comparison above would see any of them missing."""
    model = _model(bias=True)
    wanted = _run(model)
    tensor = next(t for t in model.graph.initializer if t.name == constant)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + 0.01, constant))
    fold_batch_norms(model)
    assert np.abs(_run(model) - wanted).max() > 1e-3


def test_a_graph_without_is_left_alone(onnx_artifact):
    model = onnx.load(onnx_artifact)
    before = model.SerializeToString(deterministic=True)
    assert fold_batch_norms(model) == []
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("case", [{"first": "Relu"}, {"twice": True}])
def test_one_that_cannot_be_folded_is_refused_by_name(case):
    with pytest.raises(ExportError, match="norm: BatchNorm that follows no convolution of its own"):
        fold_batch_norms(_model(bias=False, **case))
