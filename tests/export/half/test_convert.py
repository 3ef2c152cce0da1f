"""The conversion to half: what becomes half, what does not, and what is refused."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from destseg_deploy.errors import ExportError
from destseg_export.half.convert import ISLANDS, to_half
from tests.export.half.cases import types, with_opset

HALF = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


@pytest.fixture(scope="module")
def fp32(onnx_artifact):
    return onnx.load(onnx_artifact)


@pytest.fixture(scope="module", params=["fp16", "bf16"])
def converted(fp32, request):
    """(precision, half graph, report)."""
    proto = fp32 if request.param == "fp16" else with_opset(fp32, 22)
    return request.param, *to_half(proto, request.param)


def _nodes(proto, operator):
    return [node for node in proto.graph.node if node.op_type == operator]


def test_all_convolutions_but_the_stems_and_the_logits_are_half(converted):
    precision, proto, report = converted
    kinds = types(proto)
    convolutions = _nodes(proto, "Conv")
    found = {node.input[1].removeprefix("model."): kinds[node.input[1]] for node in convolutions}
    single = {name for name, kind in found.items() if kind == TensorProto.FLOAT}
    assert single == {
        "teacher_net.encoder.conv1.weight",
        "student_net.encoder.conv1.weight",
        "segmentation_net.head.4.weight",
    }
    assert set(found.values()) == {TensorProto.FLOAT, HALF[precision]}
    assert [kinds[node.output[0]] for node in convolutions] == list(found.values())
    assert {kinds[node.output[0]] for node in _nodes(proto, "MaxPool")} == {TensorProto.FLOAT}
    assert (report.half_convolutions, report.convolutions) == (63, 66)


@pytest.mark.parametrize("operator", ["ReduceL2", "Div", "Mul", "Neg", "Sigmoid", "TopK"])
def test_what_half_cannot_hold_stays_fp32(converted, operator):
    _, proto, _ = converted
    kinds = types(proto)
    assert {kinds[node.output[0]] for node in _nodes(proto, operator)} == {TensorProto.FLOAT}


def test_the_trunk_between_convolutions_is_half(converted):
    precision, proto, _ = converted
    kinds = types(proto)
    found = [kinds[node.output[0]] for node in _nodes(proto, "Relu")]
    assert sorted(found) == sorted([TensorProto.FLOAT] * 2 + [HALF[precision]] * (len(found) - 2))
    residual = [n for n in _nodes(proto, "Add") if not n.name.endswith("_epsilon")]
    assert len(residual) == 24
    assert {kinds[node.output[0]] for node in residual} == {HALF[precision]}
    resized = sorted(kinds[node.output[0]] for node in _nodes(proto, "Resize"))
    assert resized == sorted([HALF[precision]] * 4 + [TensorProto.FLOAT] * 4)


def test_input_and_outputs_are_unchanged(fp32, converted):
    _, proto, _ = converted
    for side in ("input", "output"):
        kept = [value.SerializeToString() for value in getattr(fp32.graph, side)]
        assert [value.SerializeToString() for value in getattr(proto.graph, side)] == kept


def test_names_are_kept_and_only_casts_are_new(fp32, converted):
    """A refit finds its weights by name."""
    precision, proto, report = converted
    before = [node.name for node in fp32.graph.node]
    after = [node.name for node in proto.graph.node]
    new = [node for node in proto.graph.node if node.name not in set(before)]
    assert [name for name in after if name in set(before)] == before
    assert {node.op_type for node in new} == {"Cast"}
    assert len(new) == report.casts == 2 + 6 + 2 + 1 + 1, "stems, features, pool, product, logit"
    assert {t.name for t in fp32.graph.initializer} == {t.name for t in proto.graph.initializer}
    assert {node.name for node in new} == {f"{node.output[0]}_cast" for node in new}
    assert {node.output[0].rsplit("_", 1)[1] for node in new} == {precision, "fp32"}


def test_weights_are_rounded_once_to_nearest_even(fp32, converted):
    precision, proto, report = converted
    before = {t.name: numpy_helper.to_array(t) for t in fp32.graph.initializer}
    assert len(report.weights) == 63 * 2, "weights and biases"
    half = {t.name: t for t in proto.graph.initializer if t.data_type == HALF[precision]}
    assert set(half) == {weight.name for weight in report.weights}
    for name, tensor in half.items():
        wanted = before[name].astype(np.float16) if precision == "fp16" else _bf16(before[name])
        found = numpy_helper.to_array(tensor).astype(np.float32)
        np.testing.assert_array_equal(found, wanted.astype(np.float32), err_msg=name)


def _bf16(value):
    import torch

    return torch.from_numpy(value.copy()).to(torch.bfloat16).float().numpy()


def test_the_conversion_is_deterministic_and_leaves_its_input_alone(fp32, converted):
    precision, proto, _ = converted
    if precision == "bf16":
        fp32 = with_opset(fp32, 22)
    before = fp32.SerializeToString(deterministic=True)
    again, _ = to_half(fp32, precision)
    assert fp32.SerializeToString(deterministic=True) == before
    same = proto.SerializeToString(deterministic=True)
    assert again.SerializeToString(deterministic=True) == same


def test_the_report_says_what_stayed_and_why(fp32, converted):
    precision, _, report = converted
    names = {node.name for node in fp32.graph.node}
    assert list(report.islands) == list(ISLANDS)
    assert all(set(nodes) <= names and nodes for nodes in report.islands.values())
    lines = report.lines()
    assert lines[0].startswith(f"63 of 66 convolutions in {precision}, 12 casts")
    for part, reason in ISLANDS.items():
        assert any(part in line and reason in line for line in lines)
    assert report.record().half_convolutions == 63


def test_without_islands_everything_is_half_but_input_and_outputs(fp32):
    proto, report = to_half(fp32, "fp16", islands=())
    kinds = types(proto)
    floats = {name for name, kind in kinds.items() if kind == TensorProto.FLOAT}
    assert floats == {"anomaly_map", "score"}
    assert report.half_convolutions == 66
    assert report.islands == {}


def test_an_fp32_constant_that_both_sides_read_stands_beside_its_half_copy(fp32):
    """Normalisation reads mean and deviation; without that island they are half."""
    shared = onnx.ModelProto()
    shared.CopyFrom(fp32)
    weight = _nodes(shared, "Conv")[1].input[2]
    _nodes(shared, "Conv")[-1].input[2] = weight  # a bias that logits and trunk share
    proto, report = to_half(shared, "fp16")
    constants = {t.name: t.data_type for t in proto.graph.initializer}
    assert constants[weight] == TensorProto.FLOAT
    assert constants[f"{weight}_fp16"] == TensorProto.FLOAT16
    assert f"{weight}_fp16" in {w.name for w in report.weights}


def test_the_scales_of_a_resize_stay_float32(fp32):
    """In ONNX they are, whatever the tensor's type; fusions write them instead of sizes."""
    scaled = onnx.ModelProto()
    scaled.CopyFrom(fp32)
    scales = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
    scaled.graph.initializer.append(scales)
    resize = _nodes(scaled, "Resize")[0]
    resize.input[:] = [resize.input[0], "", "scales"]
    proto, report = to_half(scaled, "fp16")
    assert types(proto)[resize.output[0]] == TensorProto.FLOAT16
    assert {t.name: t.data_type for t in proto.graph.initializer}["scales"] == TensorProto.FLOAT
    assert "scales" not in {weight.name for weight in report.weights}


def test_a_constant_node_is_taken_like_an_initializer(fp32):
    lifted = onnx.ModelProto()
    lifted.CopyFrom(fp32)
    bias = next(t for t in lifted.graph.initializer if t.name.endswith("res.0.conv1.bias"))
    node = helper.make_node("Constant", [], [bias.name], "constant", value=bias)
    lifted.graph.initializer.remove(bias)
    lifted.graph.node.insert(0, node)
    proto, _ = to_half(lifted, "fp16")
    assert not _nodes(proto, "Constant")
    kinds = {t.name: t.data_type for t in proto.graph.initializer}
    assert kinds[bias.name] == TensorProto.FLOAT16


@pytest.mark.parametrize("precision", ["int8", "fp32", "half"])
def test_another_precision_is_refused(fp32, precision):
    with pytest.raises(ExportError, match=f"precision '{precision}': to_half makes fp16 or bf16"):
        to_half(fp32, precision)


def test_an_unknown_island_is_refused(fp32):
    with pytest.raises(ExportError, match="island 'trunk': expected some of pixels, stem"):
        to_half(fp32, "fp16", islands=["norm", "trunk"])


def test_a_graph_that_is_half_already_is_refused(converted):
    precision, proto, _ = converted
    with pytest.raises(ExportError, match="half already"):
        to_half(proto, precision)


def test_bf16_needs_an_opset_that_has_its_convolutions(fp32):
    with pytest.raises(ExportError, match=r"opset 18: ONNX has bf16 .* --opset 22"):
        to_half(fp32, "bf16")


def test_a_weight_beyond_fp16_is_refused_by_name(fp32):
    large = onnx.ModelProto()
    large.CopyFrom(fp32)
    tensor = next(t for t in large.graph.initializer if t.name.endswith("layer2.0.conv1.weight"))
    value = numpy_helper.to_array(tensor).copy()
    value[3, 2, 1, 0] = -7e4
    tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    words = rf"{tensor.name}: 1 of {value.size} weights are beyond fp16's 65504 .*7e\+04.*bf16"
    with pytest.raises(ExportError, match=words):
        to_half(large, "fp16")
    assert to_half(with_opset(large, 22), "bf16")[1].half_convolutions == 63
