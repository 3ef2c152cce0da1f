"""BatchNorm folding against ONNX Runtime, which computes it unfolded."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from destseg_export.fusions.batch_norms import fold_batch_norms
from tests.export.fusions.cases import change_constant, fused, operators, refusal, run


def _model(*, bias: bool, first: str = "Conv", twice: bool = False):
    rng, channels = np.random.default_rng(0), 3 if first == "Conv" else 5
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
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, channels, 8, 8])],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, [None] * 4) for o in outputs],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _run(model):
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    return run(model, x=x)[0]


@pytest.mark.parametrize("bias", [True, False])
def test_the_folded_convolution_gives_the_same(bias):
    model = _model(bias=bias)
    folded, outcome = fused(model, fold_batch_norms)
    assert outcome.changed == ("norm",)
    assert operators(folded) == ["Conv"]
    assert folded.graph.node[0].input[2] == ("b" if bias else "w_bias")
    np.testing.assert_allclose(_run(folded), _run(model), atol=5e-6)


@pytest.mark.parametrize("constant", ["gamma", "beta", "mean", "variance"])
def test_each_statistic_counts(constant):
    """Control: the comparison above would see any of them missing."""
    model = _model(bias=True)
    wrong = change_constant(model, constant, lambda value: value + np.float32(0.01))
    assert np.abs(_run(fused(wrong, fold_batch_norms)[0]) - _run(model)).max() > 1e-3


def test_a_graph_without_is_left_alone(onnx_artifact):
    assert refusal(onnx.load(onnx_artifact), fold_batch_norms) == ""


@pytest.mark.parametrize("case", [{"first": "Relu"}, {"twice": True}])
def test_one_that_cannot_be_folded_is_refused_by_name(case):
    reason = refusal(_model(bias=False, **case), fold_batch_norms)
    assert reason.startswith("norm: BatchNorm that follows no convolution of its own")
