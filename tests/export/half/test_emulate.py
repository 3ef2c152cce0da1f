"""The emulation rounds where a GPU stores half; ONNX Runtime's CPU provider does not."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from destseg_deploy.errors import BackendError, ExportError, ShapeError
from destseg_deploy.loading import load
from destseg_deploy.spec import ModelSpec
from destseg_export.graph.edit import open_model
from destseg_export.half.convert import to_half
from destseg_export.half.emulate import emulate, open_graph, undo
from destseg_export.half.retype import half_values, round_to_half
from tests.export.half.cases import types, with_opset

HALF = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
PRECISIONS = sorted(HALF)


def _model(nodes, shape, constants=(), kind=TensorProto.FLOAT16):
    """A graph that casts x to half, runs nodes from h to r, and casts r to y."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["h"], to=kind),
            *nodes,
            helper.make_node("Cast", ["r"], ["y"], to=TensorProto.FLOAT),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * len(shape))],
        list(constants),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


def _run(model, x):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def _values():
    rng = np.random.default_rng(0)
    scales = np.array([1e-9, 1e-7, 1e-5, 1e-3, 1, 1e3, 1e4, 1e5], np.float32)
    edges = [0, -0.0, 65504, 65519, 65520, 2.0**-24, 2.0**-25, 2.0**-25 * 1.01]
    edges += [1 + k * 2.0**-bits for bits in (8, 11) for k in (1, 3, 5)]  # ties, of bf16 and fp16
    noise = rng.standard_normal((8, 5000)).astype(np.float32) * scales[:, None]
    return np.concatenate([noise.ravel(), np.array(edges, np.float32)])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_storing_rounds_to_nearest_even_as_torch_does(precision):
    """Ours, PyTorch's and the casts of the emulation: subnormals and infinities included."""
    import torch

    x = _values()
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    wanted = torch.from_numpy(x).to(kind).float().numpy()
    found = round_to_half(x, precision)
    assert found.itemsize == 2
    np.testing.assert_array_equal(found.astype(np.float32), wanted)
    model = _model([helper.make_node("Identity", ["h"], ["r"])], [len(x)], kind=HALF[precision])
    np.testing.assert_array_equal(_run(emulate(model), x), wanted)
    assert (wanted != x).mean() > 0.9, "control: rounding is there to be seen"


def test_onnx_runtime_computes_through_an_overflow_and_the_emulation_does_not():
    """The reason for this module: 300 * 300 / 300 is infinite in half, on every GPU."""
    weights = [
        numpy_helper.from_array(np.full((1, 1, 1, 1), v, np.float16), n)
        for v, n in ((300, "up"), (1 / 300, "down"))
    ]
    nodes = [
        helper.make_node("Conv", ["h", "up"], ["large"]),
        helper.make_node("Relu", ["large"], ["relu"]),
        helper.make_node("Conv", ["relu", "down"], ["r"]),
    ]
    model = _model(nodes, [1, 1, 2, 2], weights)
    x = np.full((1, 1, 2, 2), 300, np.float32)
    np.testing.assert_allclose(_run(model, x), 300, rtol=1e-3)
    assert np.isinf(_run(emulate(model), x)).all()
    np.testing.assert_allclose(_run(emulate(model, rounded=False), x), 300, rtol=1e-3)


def test_a_length_overflows_in_its_square():
    """|(300, 400)| = 500 fits, 300 * 300 + 400 * 400 does not; TensorRT stores both."""
    axes = numpy_helper.from_array(np.array([1]), "axes")
    node = helper.make_node("ReduceL2", ["h", "axes"], ["r"], keepdims=1)
    model = _model([node], [2, 2, 1, 1], [axes])
    x = np.array([[300, 400], [3, 4]], np.float32).reshape(2, 2, 1, 1)
    assert _run(emulate(model), x).ravel().tolist() == [np.inf, 5]
    assert _run(model, x).ravel().tolist() == [500, 5]


def test_every_half_tensor_of_the_network_is_stored(onnx_artifact):
    proto, _ = to_half(onnx.load(onnx_artifact), "fp16", islands=())
    emulated = emulate(proto)
    made = {node.output[0]: node for node in emulated.graph.node}
    halves = half_values(open_model(proto))
    computed = {value.name for value in halves if not value.is_initializer()}
    assert len(computed) > 150
    for name in computed:
        back = made[name]
        stored = made[back.input[0]]
        assert (back.op_type, stored.op_type) == ("Cast", "Cast")
        assert [a.i for n in (stored, back) for a in n.attribute] == [
            TensorProto.FLOAT16,
            TensorProto.FLOAT,
        ]
    kinds = types(emulated)
    halves = {name for name, kind in kinds.items() if kind == TensorProto.FLOAT16}
    assert halves
    assert all(name.endswith("_stored") for name in halves)


def test_a_graph_in_memory_keeps_the_contract_of_its_file(onnx_artifact, frames):
    proto, spec = onnx.load(onnx_artifact), ModelSpec.read(onnx_artifact)
    with load(onnx_artifact) as of_file, open_graph(proto, spec, emulated=False) as predictor:
        wanted, found = of_file(frames), predictor(frames)
        with pytest.raises(ShapeError, match=r"got uint8 \(3, 32, 64, 3\)"):
            predictor.runtime.infer(frames[:, :32])
    np.testing.assert_allclose(found.anomaly_map, wanted.anomaly_map, atol=1e-6)
    np.testing.assert_allclose(found.score, wanted.score, atol=1e-6)
    with pytest.raises(BackendError, match="closed"):
        predictor.runtime.infer(frames)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_half_graph_answers_as_before_when_its_rounding_is_undone(
    onnx_artifact, frames, precision
):
    proto = with_opset(onnx.load(onnx_artifact), 22)
    made, report = to_half(proto, precision)
    spec = ModelSpec.read(onnx_artifact)
    found = []
    for graph in (proto, undo(made, report.originals), emulate(made, rounded=False)):
        with open_graph(graph, spec, emulated=False) as predictor:
            found.append(predictor(frames).anomaly_map)
    wanted, undone, rounded = found
    np.testing.assert_allclose(undone, wanted, atol=1e-5)
    assert np.abs(rounded - wanted).max() > 1e-3, "control: the weights alone, rounded"


def test_a_constant_that_is_not_the_nearest_half_or_is_missing_is_refused(onnx_artifact):
    made, report = to_half(onnx.load(onnx_artifact), "fp16")
    name, value = next(iter(report.originals.items()))
    for originals in (
        {**report.originals, name: value * 1.01},
        {**report.originals, "more": value},
    ):
        with pytest.raises(ExportError, match=rf"^({name}|more): "):
            undo(made, originals)
