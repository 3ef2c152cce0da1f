"""INT8 by NNCF: the same layers and no others, and files that do not belong together."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from destseg_bench.speed.contenders import open_artifact
from destseg_bench.speed.latency import find_frames, stack_frames
from destseg_bench.speed.nncf_int8 import BIAS, _float_operators, quantize_with_nncf
from destseg_deploy.errors import DataError
from destseg_deploy.spec import FileRecord, ModelSpec, QuantizationRecord
from tests.bench.calls import refuse, succeed

pytest.importorskip("openvino")
onnx = pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def fused(onnx_artifact, category, tmp_path_factory):
    from destseg_export.fusions.apply import FOR_INT8, fuse_file

    path = tmp_path_factory.mktemp("fused") / "cable-fused.onnx"
    images = sorted(category.glob("test/good/*"))  # fewer than would be drawn without
    fuse_file(onnx_artifact, path, names=FOR_INT8, images=images)
    return path


@pytest.fixture(scope="module")
def layers(fused):
    from destseg_export.int8.qdq import find_layers

    return find_layers(onnx.load(fused), ("segmentation_net",))


def quantized(layers):
    return QuantizationRecord("destseg-export", "u8", tuple(layers))


@pytest.fixture
def int8(fused, layers, tmp_path):
    """What stands for the INT8 artifact: of it only the spec is read."""
    path = tmp_path / "cable-int8.onnx"
    spec = replace(ModelSpec.read(fused), precision="int8", quantization=quantized(layers))
    spec.write(path)
    return path


def test_the_same_layers_and_no_others(fused, int8, layers, category, tmp_path):
    openvino = pytest.importorskip("openvino")
    pytest.importorskip("nncf")

    output = tmp_path / "nncf.xml"
    words = ["nncf", fused, int8, "--normal", category / "train/good", "--images", "4"]
    stdout = succeed(*words, "--output", output).stdout
    assert f"int8     {len(layers)} layers by NNCF" in stdout
    convolutions = {
        operator.get_friendly_name().removesuffix(BIAS): _is_quantised(operator)
        for operator in openvino.Core().read_model(str(output)).get_ops()
        if operator.get_type_name() == "Convolution"
    }
    assert {name for name, quantised in convolutions.items() if quantised} == set(layers)
    assert len(convolutions) > len(layers)
    assert _read_in_8_bit(output).isdisjoint({"Multiply", "Divide", "Sigmoid", "ReduceL2"})
    frames = stack_frames(find_frames(category / "test", 4), ModelSpec.read(fused).size, 4)
    with open_artifact(fused) as exact_one, open_artifact(output) as quantised:
        exact, found = exact_one.runtime.infer(frames), quantised.runtime.infer(frames)
    apart = np.abs(found.anomaly_map - exact.anomaly_map).mean()
    assert 0 < apart < 0.5 * np.abs(exact.anomaly_map[::-1] - exact.anomaly_map).mean()


def _read_in_8_bit(path) -> set[str]:
    """Return the kinds of operators that read a tensor rounded to 8 bit."""
    import openvino

    return {
        operator.get_type_name()
        for operator in openvino.Core().read_model(str(path)).get_ops()
        for value in operator.inputs()
        if value.get_source_output().get_node().get_type_name() == "FakeQuantize"
    }


def test_the_resize_of_the_map_stays_out():
    openvino = pytest.importorskip("openvino")
    import openvino.opset13 as ov

    image = ov.parameter([1, 1, 4, 4], name="image")
    probability = ov.sigmoid(image, name="probability")
    sizes, axes = (ov.constant(np.array(v, np.int64)) for v in ([8, 8], [2, 3]))
    resize = {"mode": "linear", "shape_calculation_mode": "sizes"}
    features = ov.interpolate(image, sizes, axes=axes, **resize, name="features")
    resized = ov.interpolate(probability, sizes, axes=axes, **resize, name="map")
    model = openvino.Model([resized, features], [image], "m")
    assert sorted(_float_operators(model, [])) == ["map", "probability"]


def _is_quantised(convolution) -> bool:
    """Return whether a convolution's weights were rounded to 8 bit."""
    return convolution.input_value(1).get_node().get_type_name() != "Constant"


def test_files_that_do_not_belong_together(fused, int8, onnx_artifact, tmp_path):
    frames = np.zeros((1, *ModelSpec.read(fused).size, 3), np.uint8)
    with pytest.raises(DataError, match=r"expected an fp32 \.onnx that destseg-export fuse wrote"):
        quantize_with_nncf(onnx_artifact, int8, frames, tmp_path / "x.xml")
    with pytest.raises(DataError, match=r"expected an \.onnx that destseg-export quantize wrote"):
        quantize_with_nncf(fused, fused, frames, tmp_path / "x.xml")
    with pytest.raises(DataError, match=r"x\.onnx: expected a name that ends in \.xml"):
        quantize_with_nncf(fused, int8, frames, tmp_path / "x.onnx")
    spec = ModelSpec.read(int8)
    replace(spec, checkpoint=FileRecord("other.safetensors", "0" * 64)).write(int8)
    with pytest.raises(DataError, match="of another checkpoint"):
        quantize_with_nncf(fused, int8, frames, tmp_path / "x.xml")
    assert not list(tmp_path.glob("x.*"))


def test_a_layer_of_another_fusion_is_named(fused, int8, layers, tmp_path):
    pytest.importorskip("nncf")
    spec = ModelSpec.read(int8)
    replace(spec, quantization=quantized([*layers, "fused_otherwise"])).write(int8)
    with pytest.raises(DataError, match="layer 'fused_otherwise' is not in the fused graph"):
        quantize_with_nncf(fused, int8, np.zeros((1, *spec.size, 3), np.uint8), tmp_path / "x.xml")


def test_without_nncf_it_says_what_to_install(fused, int8, category, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nncf", None)
    output = tmp_path / "x.xml"
    words = ["nncf", fused, int8, "--normal", category / "train/good", "--images", "1"]
    refuse("pip install", *words, "--output", output)
    assert not output.exists()
