"""Graphs run in memory: INT8 sums are exact wherever the budget is measured."""

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from destseg_deploy.errors import ExportError
from destseg_deploy.runtime.int8_kernels import EXACT
from destseg_export.graph.run import open_session


def graph(*, quantised):
    nodes = [helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT)]
    if quantised:
        ends = ["scale", "zero"]
        nodes.append(helper.make_node("QuantizeLinear", ["x", *ends], ["q"]))
        nodes.append(helper.make_node("DequantizeLinear", ["q", *ends], ["y"]))
    else:
        nodes.append(helper.make_node("Identity", ["x"], ["y"]))
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 2, 2, 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2, 2, 3])
    constants = [
        numpy_helper.from_array(np.float32(2), "scale"),
        numpy_helper.from_array(np.uint8(0), "zero"),
    ]
    made = helper.make_graph(nodes, "g", [image], [y], constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize("quantised", [True, False])
@pytest.mark.parametrize("saturates", [True, False])
def test_exact_kernels_are_asked_for_where_sums_would_be_wrong(monkeypatch, quantised, saturates):
    asked = []
    real = ort.InferenceSession

    def noted(model, options, **more):
        try:
            asked.append(options.get_session_config_entry(EXACT))
        except RuntimeError:  # it was not set
            asked.append(None)
        return real(model, options, **more)

    monkeypatch.setattr("destseg_export.graph.run.ort_saturates", lambda ort: saturates)
    monkeypatch.setattr(ort, "InferenceSession", noted)
    run = open_session(graph(quantised=quantised), ["y"])
    assert asked == ["1" if quantised and saturates else None]
    images = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    (found,) = run(images)
    assert np.abs(found - images).max() <= (1 if quantised else 0)


def test_what_onnx_runtime_refuses_or_fails_on_is_one_line():
    """A gather of an index that the images lead out of fails in the run, not before."""
    made = graph(quantised=False)
    made.graph.node[1].CopyFrom(helper.make_node("Gather", ["x", "index"], ["y"], axis=0))
    made.graph.initializer.append(numpy_helper.from_array(np.array([3]), "index"))
    run = open_session(made, ["y"])
    assert run(np.zeros((4, 2, 2, 3), np.uint8))[0].shape == (1, 2, 2, 3)
    with pytest.raises(ExportError, match=r"ONNX Runtime fails on the graph \(.*indices.*\)\. Exp"):
        run(np.zeros((1, 2, 2, 3), np.uint8))
    made.graph.node[1].op_type = "NoSuchOperator"
    with pytest.raises(ExportError, match=r"ONNX Runtime refuses the graph \(.*\)\. Export it"):
        open_session(made, ["y"])
