"""What two graphs must share for a refit: names, types, shapes and nodes, but not the values."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from destseg_deploy.errors import BackendError
from destseg_deploy.runtime.trt.library import load_library
from destseg_export.engine.builder import ParsedNetwork
from destseg_export.engine.site import open_site
from destseg_export.graph.architecture import (
    architecture_hash,
    unmatched_weights,
    weight_differences,
    weight_shapes,
)
from destseg_export.half.convert import to_half
from tests.export.engine.cases import tiny_graph

CABLE = tiny_graph(half=True, seed=0)


def _changed(change) -> onnx.ModelProto:
    graph = tiny_graph(half=True)
    change(graph.graph)
    return graph


def test_other_weights_are_the_same_architecture():
    screw = tiny_graph(half=True, seed=1)
    assert screw != CABLE
    assert architecture_hash(screw) == architecture_hash(CABLE)
    assert weight_differences(CABLE, screw) == []


def test_metadata_and_the_order_of_weights_do_not_matter():
    other = tiny_graph(half=True, seed=1)
    onnx.helper.set_model_props(other, {"destseg": "{}"})
    other.graph.node[0].metadata_props.add(key="stack_trace", value="line 42")
    kept = list(other.graph.initializer)[::-1]
    del other.graph.initializer[:]
    other.graph.initializer.extend(kept)
    assert architecture_hash(other) == architecture_hash(CABLE)


@pytest.mark.parametrize(
    ("other", "differences"),
    [
        (tiny_graph(half=False), [
            "a.weight is float 4x3x3x3, not float16 4x3x3x3",
            "b.weight is float 1x4x3x3, not float16 1x4x3x3",
        ]),
        (tiny_graph(half=True, channels=5), [
            "a.weight is float16 5x3x3x3, not float16 4x3x3x3",
            "b.weight is float16 1x5x3x3, not float16 1x4x3x3",
        ]),
        (tiny_graph(half=True, weight="c.weight"), ["b.weight is missing", "c.weight is unknown"]),
        (_changed(lambda g: g.node[3].attribute[0].ints.__setitem__(0, 2)), []),
        (_changed(lambda g: g.initializer[3].CopyFrom(
            numpy_helper.from_array(np.array([2]), g.initializer[3].name))), []),
        (_changed(lambda g: g.node.append(helper.make_node("Abs", ["score"], ["more"]))), []),
        (_changed(lambda g: g.input[0].type.tensor_type.shape.dim[1].__setattr__(
            "dim_value", 128)), []),
    ],
    ids=["type", "shape", "name", "attribute", "constant", "node", "input"],
)  # fmt: skip
def test_anything_else_is_another_architecture(other, differences):
    assert architecture_hash(other) != architecture_hash(CABLE)
    assert weight_differences(CABLE, other) == differences


# --- the real model, and the names TensorRT gives its weights


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def real(request, onnx_artifact) -> onnx.ModelProto:
    proto = onnx.load(onnx_artifact)
    return proto if request.param == "fp32" else to_half(proto, request.param)[0]


def test_tensorrt_knows_every_weight_by_its_name(real, tmp_path):
    try:
        load_library("tensorrt-rtx")
    except BackendError as error:
        pytest.skip(f"{error} (make builders)")
    assert len(weight_shapes(real)) > 130
    path = tmp_path / "model.onnx"
    onnx.save_model(real, path)
    with open_site("tensorrt-rtx", ["sm86"]) as site:
        network = ParsedNetwork(site, path).network
        assert unmatched_weights(network, real) == []
        # The control: a weight under another name is noticed.
        renamed = onnx.ModelProto()
        renamed.CopyFrom(real)
        name = next(iter(weight_shapes(real)))
        for tensor in renamed.graph.initializer:
            if tensor.name == name:
                tensor.name = f"{name}.other"
        assert unmatched_weights(network, renamed) == [f"{name}.other"]
        assert weight_differences(real, renamed) == [
            f"{name} is missing", f"{name}.other is unknown"
        ]  # fmt: skip
