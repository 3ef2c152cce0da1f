"""Q/DQ pairs: where they stand, how far they move values, and what is refused."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from destseg_deploy.errors import ExportError
from destseg_export.int8.qdq import (
    Range,
    add_twins,
    find_layers,
    quantize_layers,
    quantize_weight,
    share_of_macs,
    steps_of,
    tensors_around,
)
from tests.export.fusions import cases

SEGMENTATION = "model.segmentation_net.res"
FEED = cases.random(4, 6, 8, 8)


@pytest.fixture(scope="module")
def block():
    """A residual block and the 1x1 convolution before the sigmoid."""
    spread = np.logspace(-2, 0, 8).astype(np.float32).reshape(8, 1, 1, 1)  # rows of unlike size
    return cases.make(
        [
            cases.node("Conv", ["x", f"{SEGMENTATION}.a", "bias"], "a", pads=[1] * 4),
            cases.node("Relu", ["a"], "a_relu"),
            cases.node("Conv", ["a_relu", f"{SEGMENTATION}.b"], "b", pads=[1] * 4),
            cases.node("Conv", ["x", f"{SEGMENTATION}.short"], "short"),
            cases.node("Add", ["b", "short"], "sum"),
            cases.node("Relu", ["sum"], "y"),
            cases.node("Conv", ["y", "model.segmentation_net.head.4"], "logit"),
            cases.node("Sigmoid", ["logit"], "map"),
        ],
        {"x": cases.floats("n", 6, 8, 8)},
        {"map": cases.floats("n", 1, 8, 8)},
        {
            f"{SEGMENTATION}.a": cases.random(8, 6, 3, 3) * spread,
            f"{SEGMENTATION}.b": cases.random(8, 8, 3, 3, seed=1) / 5,
            f"{SEGMENTATION}.short": cases.random(8, 6, 1, 1, seed=2),
            "bias": cases.random(8),
            "model.segmentation_net.head.4": cases.random(1, 8, 1, 1) / 20,
        },
    )


def _values(proto, names):
    """Return values inside of a graph by name."""
    watched = onnx.ModelProto.FromString(proto.SerializeToString())
    for name in names:
        watched.graph.output.append(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        )
    outputs = [output.name for output in watched.graph.output]
    return dict(zip(outputs, cases.run(watched, x=FEED), strict=True))


@pytest.fixture(scope="module")
def ranges(block):
    names = tensors_around(block, find_layers(block, ["segmentation_net"]))
    found = _values(block, names)
    return {name: Range(float(found[name].min()), float(found[name].max())) for name in names}


def test_the_last_convolution_is_no_layer(block):
    assert find_layers(block, ["segmentation_net"]) == ["node_a", "node_b", "node_short"]
    assert 0.9 < share_of_macs(block, ["node_a", "node_b", "node_short"]) < 1


@pytest.mark.parametrize(("scheme", "largest"), [("u8", 0.01), ("s8", 0.02)])
def test_values_move_little(block, ranges, scheme, largest):
    layers = find_layers(block, ["segmentation_net"])
    quantized = quantize_layers(block, layers, ranges, scheme)
    moved = cases.difference(block, quantized, x=FEED)
    assert 0 < moved < largest
    cut = cases.change_constant(quantized, "a_relu_scale", lambda scale: scale / 3)
    assert cases.difference(block, cut, x=FEED) > 2 * largest, "control: values cut off at a third"


@pytest.mark.parametrize("scheme", ["u8", "s8"])
@pytest.mark.parametrize("output", ["a", "b", "short"])
def test_what_8_bit_add_on_average_is_taken_out_of_the_bias(block, ranges, scheme, output):
    """``a`` has a bias, the other two get one. Each is alone in 8 bit."""
    layer = f"node_{output}"
    graph, added = add_twins(block, find_layers(block, ["segmentation_net"]), ranges, scheme)
    found = dict(zip([o.name for o in graph.graph.output], cases.run(graph, x=FEED), strict=True))
    shift = found[added[layer]].mean(axis=0, dtype=np.float64)
    np.testing.assert_array_equal(found["map"], cases.run(block, x=FEED)[0])

    def mean_error(shifts):
        quantized = quantize_layers(block, [layer], ranges, scheme, shifts)
        error = _values(quantized, [output])[output] - _values(block, [output])[output]
        return np.abs(error.mean(axis=(0, 2, 3), dtype=np.float64)).max()

    assert mean_error({layer: shift}) < 1e-6 < 1e-4 < mean_error({})


def test_a_scale_for_each_channel_beats_one_for_all(block, ranges):
    """The control for per-channel weights: rows of a hundredth of the largest lose their bits."""
    weight = cases.random(8, 6, 3, 3) * np.logspace(-2, 0, 8).reshape(8, 1, 1, 1)
    values, scales = quantize_weight(weight)
    assert values.dtype == np.int8
    assert scales.shape == (8,)
    error = np.abs(values * scales.reshape(8, 1, 1, 1) - weight)
    assert (error <= scales.reshape(8, 1, 1, 1) * 0.51).all()
    one = np.abs(weight).max() / 127
    assert np.abs(np.round(weight[0] / one) * one - weight[0]).max() > 10 * error[0].max()


def test_zero_is_held_exactly_and_types_are_the_schemes():
    scale, zero = steps_of(Range(-0.37, 1.9), "u8")
    assert zero.dtype == np.uint8
    assert (np.round(0 / scale) + zero - zero) * scale == 0
    assert scale == pytest.approx(2.27 / 255)
    scale, zero = steps_of(Range(-0.37, 1.9), "s8")
    assert (zero.dtype, int(zero)) == (np.dtype(np.int8), 0)
    assert scale == pytest.approx(1.9 / 127)
    assert steps_of(Range(0.5, 2.0), "u8")[1] == 0, "a range above zero still holds zero"
    assert steps_of(Range(0.0, 0.0), "u8")[0] == 1.0, "a tensor of zeros has some scale"


def test_pairs_stand_where_runtimes_look(block, ranges):
    quantized = quantize_layers(block, find_layers(block, ["segmentation_net"]), ranges, "u8")
    held = {t.name: numpy_helper.to_array(t) for t in quantized.graph.initializer}
    assert held["x_zero"].dtype == np.uint8
    assert held[f"{SEGMENTATION}.a_quantized"].dtype == np.int8
    assert held["bias"].dtype == np.float32
    makers = {output: n for n in quantized.graph.node for output in n.output}
    for made in quantized.graph.node:
        if made.op_type == "Add" or (made.op_type == "Conv" and made.name != "node_logit"):
            sources = [makers[name].op_type for name in made.input if name in makers]
            assert set(sources) == {"DequantizeLinear"}, made.name
    assert cases.operators(quantized).count("QuantizeLinear") == len(ranges), "one pair a tensor"


def test_onnx_runtime_runs_it_in_integers(block, ranges, tmp_path):
    import onnxruntime as ort

    quantized = quantize_layers(block, find_layers(block, ["segmentation_net"]), ranges, "u8")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(quantized.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = cases.operators(onnx.load(tmp_path / "optimized.onnx"))
    assert found.count("QLinearConv") == 3
    assert "Relu" not in found, "the clipping to [0, 255] is the ReLU"


def test_layers_left_out_stay_in_float(block, ranges):
    quantized = quantize_layers(block, ["node_b"], ranges, "u8")
    names = {t.name for t in quantized.graph.initializer}
    assert f"{SEGMENTATION}.a" in names
    assert f"{SEGMENTATION}.b" not in names


def test_what_cannot_be_quantised_is_refused(block, ranges):
    layers = find_layers(block, ["segmentation_net"])
    quantized = quantize_layers(block, layers, ranges, "u8")
    with pytest.raises(ExportError, match="quantised already"):
        find_layers(quantized, ["segmentation_net"])
    with pytest.raises(ExportError, match="no convolution of teacher_net"):
        find_layers(block, ["teacher_net"])
    with pytest.raises(ExportError, match="scheme 'int4': expected u8 or s8"):
        quantize_layers(block, layers, ranges, "int4")
    with pytest.raises(ExportError, match="range was not measured"):
        quantize_layers(block, layers, {}, "u8")
    foreign = onnx.ModelProto.FromString(block.SerializeToString())
    foreign.graph.node[1].domain = "com.example"
    with pytest.raises(ExportError, match=r"unknown operator com\.example::Relu"):
        find_layers(foreign, ["segmentation_net"])
