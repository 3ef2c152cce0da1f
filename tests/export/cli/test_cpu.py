"""destseg-export fuse and quantize, as a user meets them."""

import numpy as np
import pytest
from click.testing import CliRunner

from destseg_deploy.loading import load
from destseg_deploy.spec import Accuracy, ModelSpec, QuantizationRecord
from destseg_export.cli.cpu import fuse_command, quantize_command
from destseg_export.fusions import apply as fuse_file
from destseg_export.fusions.apply import FOR_INT8
from destseg_export.int8 import quantize
from tests.export.fusions.cases import change_constant
from tests.unchanged import unchanged


@pytest.fixture
def fuse_arguments(onnx_artifact, category, few_drawn) -> list[str]:
    """The artifact, and three images: without them 16 would be drawn to compare on."""
    return [str(onnx_artifact), "--verify-images", str(category / "test/good")]


def test_fuse_writes_the_same_answers(onnx_artifact, fuse_arguments, frames, tmp_path):
    target = tmp_path / "fused" / "cable-fp32.onnx"
    result = CliRunner().invoke(fuse_command, [*fuse_arguments, "--output", str(target)])
    assert result.exit_code == 0, result.output
    assert "pooled-branch: 1 nodes" in result.stderr
    assert "GMAC an image" in result.stdout
    with load(onnx_artifact) as plain, load(target) as fused:
        np.testing.assert_allclose(fused(frames).score, plain(frames).score, atol=5e-5)
    spec = ModelSpec.read(target)
    assert spec.fusion.parity.map_max_abs < 1e-4 < spec.fusion.parity.control
    assert spec.threshold == ModelSpec.read(onnx_artifact).threshold
    assert "shortcuts" in spec.fusion.fusions


def test_fuse_for_int8_applies_what_quantize_does(onnx_artifact, fuse_arguments, tmp_path):
    target = tmp_path / "for-int8.onnx"
    arguments = [*fuse_arguments, "--for-int8", "--without", "stems", "--output", str(target)]
    result = CliRunner().invoke(fuse_command, arguments)
    assert result.exit_code == 0, result.output
    applied = ModelSpec.read(target).fusion.fusions
    assert "pooled-branch" in applied
    assert set(applied) <= set(FOR_INT8) - {"stems"}


def test_a_fusion_that_moves_answers_writes_nothing(fuse_arguments, tmp_path, monkeypatch):
    right = fuse_file.fuse

    def wrong(proto, names):
        fused, report = right(proto, ["products"])
        return change_constant(fused, fused.graph.initializer[-1].name, np.negative), report

    monkeypatch.setattr(fuse_file, "fuse", wrong)
    with unchanged(tmp_path):
        result = CliRunner().invoke(
            fuse_command, [*fuse_arguments, "--output", str(tmp_path / "x.onnx")]
        )
    assert result.exit_code == 1
    assert "Error: x.onnx: differs from the graph before the fusions on" in result.stderr


def test_each_takes_no_file_of_its_own(onnx_artifact, tmp_path):
    arguments = [str(onnx_artifact), "--each", str(tmp_path / "v"), "--without", "stems"]
    result = CliRunner().invoke(fuse_command, arguments)
    assert result.exit_code == 2
    assert "drop --output, --without and --for-int8" in result.output
    assert not (tmp_path / "v").exists()


def test_an_unknown_rewrite_is_refused(onnx_artifact, tmp_path):
    result = CliRunner().invoke(
        fuse_command,
        [str(onnx_artifact), "--output", str(tmp_path / "x.onnx"), "--without", "stem"],
    )
    assert result.exit_code == 1
    assert "fusion 'stem': expected one of" in result.stderr
    assert not list(tmp_path.iterdir())


def test_quantize_passes_its_options_on(onnx_artifact, tmp_path, monkeypatch):
    """What the function does is tested beside it."""
    asked = {}

    def made(source, output, normal, *, labelled, options, report, advance):
        asked.update(locals())
        advance(1, 2, "a")
        advance(2, 2, "b")
        report("a line behind the bar")
        record = QuantizationRecord(
            "destseg-export",
            "s8",
            layers=("a",),
            given_back=("b",),
            share_of_macs=0.8,
            images="test images of cable",
            count=4,
            fp32=Accuracy(0.7, 0.9),
            int8=Accuracy(0.69, 0.9),
        )
        from dataclasses import replace

        return replace(ModelSpec.read(source), quantization=record)

    monkeypatch.setattr(quantize, "quantize_artifact", made)
    arguments = [
        str(onnx_artifact),
        *("--normal", str(tmp_path), "--for", "tensorrt", "--max-drop", "1.5", "--images", "8"),
        *("--part", "segmentation_net", "--part", "teacher_net"),
    ]
    result = CliRunner().invoke(quantize_command, arguments)
    assert result.exit_code == 0, result.output
    options = asked["options"]
    assert asked["output"] == onnx_artifact.with_name("cable-int8.onnx")
    assert (options.scheme, options.max_drop, options.images) == ("s8", 1.5, 8)
    assert options.parts == ("segmentation_net", "teacher_net")
    assert "a line behind the bar\n" in result.stderr
    assert "given back  b" in result.stdout
    assert "pixel AP    0.7000 -> 0.6900" in result.stdout
    assert "threshold   0.5000, set for fp32" in result.stdout
    assert f"destseg-threshold {asked['output']} --good" in result.stdout


def test_quantize_says_in_one_line_what_is_wrong(onnx_artifact, tmp_path):
    with unchanged(tmp_path):
        result = CliRunner().invoke(
            quantize_command, [str(onnx_artifact), "--normal", str(tmp_path)]
        )
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {tmp_path}: no images in it")
    assert "Traceback" not in result.output
