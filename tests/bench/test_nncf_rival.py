"""NNCF as a rival: the same layers in INT8, no others, and files that do not belong together."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from destseg_bench.cpu_setups import list_setups
from destseg_bench.latency import find_frames, stack_frames
from destseg_bench.nncf_rival import BIAS, _others, write_rival
from destseg_deploy.errors import DataError
from destseg_deploy.runtime.ort import OrtRuntime
from destseg_deploy.spec import FileRecord, ModelSpec

pytest.importorskip("openvino")
onnx = pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def fused(onnx_artifact, tmp_path_factory):
    from destseg_export.fuse_file import fuse_file
    from destseg_export.fusing import FOR_INT8

    path = tmp_path_factory.mktemp("fused") / "cable-fused.onnx"
    fuse_file(onnx_artifact, path, names=FOR_INT8)
    return path


@pytest.fixture(scope="module")
def layers(fused):
    from destseg_export.qdq import find_layers

    return find_layers(onnx.load(fused), ("segmentation_net",))


@pytest.fixture
def int8(fused, layers, tmp_path):
    """What stands for the INT8 artifact: of it only the spec is read."""
    path = tmp_path / "cable-int8.onnx"
    spec = replace(ModelSpec.read(fused), precision="int8", parity={"layers": layers})
    spec.write(path)
    return path


def test_the_same_layers_and_no_others(fused, int8, layers, category, tmp_path):
    openvino = pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    from destseg_bench.cli.nncf import nncf
    from destseg_deploy.runtime.openvino_runtime import OpenVinoRuntime

    output = tmp_path / "rival.xml"
    arguments = [str(fused), str(int8), "--normal", str(category / "train/good"), "--images", "4"]
    done = CliRunner().invoke(nncf, [*arguments, "--output", str(output)])
    assert done.exit_code == 0, done.output
    assert f"int8     {len(layers)} layers by NNCF" in done.stdout
    convolutions = {
        operator.get_friendly_name().removesuffix(BIAS): _is_quantised(operator)
        for operator in openvino.Core().read_model(str(output)).get_ops()
        if operator.get_type_name() == "Convolution"
    }
    assert {name for name, quantised in convolutions.items() if quantised} == set(layers)
    assert len(convolutions) > len(layers)
    assert _read_in_8_bit(output).isdisjoint({"Multiply", "Divide", "Sigmoid", "ReduceL2"})
    frames = stack_frames(find_frames(category / "test", 4), ModelSpec.read(fused).size, 4)
    exact = OrtRuntime(fused).infer(frames)
    rival = OpenVinoRuntime(output)
    found = rival.infer(frames)
    rival.close()
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
    assert sorted(_others(model, [])) == ["map", "probability"]


def _is_quantised(convolution) -> bool:
    """Return whether a convolution's weights were rounded to 8 bit."""
    return convolution.input_value(1).get_node().get_type_name() != "Constant"


def test_files_that_do_not_belong_together(fused, int8, onnx_artifact, tmp_path):
    frames = np.zeros((1, *ModelSpec.read(fused).size, 3), np.uint8)
    with pytest.raises(DataError, match=r"expected an fp32 \.onnx that destseg-export fuse wrote"):
        write_rival(onnx_artifact, int8, frames, tmp_path / "x.xml")
    with pytest.raises(DataError, match=r"expected an \.onnx that destseg-export quantize wrote"):
        write_rival(fused, fused, frames, tmp_path / "x.xml")
    with pytest.raises(DataError, match=r"x\.onnx: expected a name that ends in \.xml"):
        write_rival(fused, int8, frames, tmp_path / "x.onnx")
    spec = ModelSpec.read(int8)
    replace(spec, checkpoint=FileRecord("other.safetensors", "0" * 64)).write(int8)
    with pytest.raises(DataError, match="of another checkpoint"):
        write_rival(fused, int8, frames, tmp_path / "x.xml")
    assert not list(tmp_path.glob("x.*"))


def test_a_layer_of_another_fusion_is_named(fused, int8, layers, tmp_path):
    pytest.importorskip("nncf")
    spec = ModelSpec.read(int8)
    replace(spec, parity={"layers": [*layers, "fused_otherwise"]}).write(int8)
    with pytest.raises(DataError, match="layer 'fused_otherwise' is not in the fused graph"):
        write_rival(fused, int8, np.zeros((1, *spec.size, 3), np.uint8), tmp_path / "x.xml")


def test_without_nncf_it_says_what_to_install(fused, int8, category, tmp_path, monkeypatch):
    from destseg_bench.cli.nncf import nncf

    monkeypatch.setitem(sys.modules, "nncf", None)
    output = tmp_path / "x.xml"
    arguments = [str(fused), str(int8), "--normal", str(category / "train/good"), "--images", "1"]
    done = CliRunner().invoke(nncf, [*arguments, "--output", str(output)])
    assert done.exit_code == 1
    assert "pip install" in done.output
    assert len(done.output.strip().splitlines()) == 1
    assert not output.exists()


def test_openvinos_format_meets_openvino_alone(tmp_path):
    files = [tmp_path / name for name in ("a.safetensors", "a-plain.onnx", "a.onnx", "rival.xml")]
    names = [s.name for s in list_setups(*files[:3], files[3:], compiled=False)]
    assert [name for name in names if "rival" in name] == [
        "openvino, rival",
        "openvino-bf16, rival",
    ]
