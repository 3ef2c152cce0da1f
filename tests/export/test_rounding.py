"""The emulation rounds where a GPU stores half; ONNX Runtime's CPU provider does not."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402 - needs onnx

from destseg_export.half import to_half  # noqa: E402 - needs onnx
from destseg_export.retype import half_constant, half_tensors, round_to_half  # noqa: E402 - same
from destseg_export.rounding import emulate, open_graph  # noqa: E402 - needs onnx
from tests.export.half_cases import types  # noqa: E402 - needs onnx

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
    np.testing.assert_array_equal(round_to_half(x, precision), wanted)
    model = _model([helper.make_node("Identity", ["h"], ["r"])], [len(x)], kind=HALF[precision])
    np.testing.assert_array_equal(_run(emulate(model), x), wanted)
    constant = numpy_helper.to_array(half_constant(x, precision, "c"))
    np.testing.assert_array_equal(constant.astype(np.float32), wanted)
    assert (wanted != x).mean() > 0.9, "control: rounding is there to be seen"


def test_onnx_runtime_computes_through_an_overflow_and_the_emulation_does_not():
    """The reason for this module: 300 * 300 / 300 is infinite in half, on every GPU."""
    weights = [
        half_constant(np.full((1, 1, 1, 1), v, np.float32), "fp16", n)
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
    computed = set(half_tensors(proto.graph)) - {t.name for t in proto.graph.initializer}
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


def test_a_graph_is_run_and_its_file_is_gone(onnx_artifact, frames):
    from destseg_deploy.spec import ModelSpec

    spec = ModelSpec.read(onnx_artifact)
    with open_graph(onnx.load(onnx_artifact), spec) as predictor:
        found = predictor(frames)
        folder = predictor.spec
    assert found.anomaly_map.shape == (3, 64, 64)
    assert folder.artifact.file == spec.artifact.file
