"""destseg-export: what it passes on, and that a refusal leaves everything as it was."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from destseg_deploy.spec import (
    BatchRange,
    FileRecord,
    ModelSpec,
    ParityRecord,
    RegionSpec,
    spec_path,
)
from destseg_export import pipeline as whole_way
from destseg_export import to_onnx
from destseg_export.cli import export, inspect
from destseg_export.cutting import Cut
from destseg_export.engine.site import NoGpuError
from destseg_export.parity import Verification
from destseg_export.to_onnx import OnnxOptions
from tests.unchanged import unchanged


def _run(command, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def _misused(*arguments: object) -> str:
    """Run an export whose options are refused, with status 2; return the line that says why."""
    result = _run(export, *arguments)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    return result.stderr.splitlines()[-1]


def _refused(*arguments: object) -> str:
    """Run an export that must end with status 1; return the line that says why."""
    result = _run(export, *arguments)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == 1
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert [line.startswith("Error: ") for line in lines] == [False] * (len(lines) - 1) + [True]
    return lines[-1]


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    """No engine is built here, whatever this machine has; test_engine_cli is about engines."""

    def open_site(builder, targets, *, device):
        raise NoGpuError("no GPU to build for.")

    monkeypatch.setattr(whole_way, "open_site", open_site)


@pytest.fixture
def traced(onnx_artifact, monkeypatch) -> list[ModelSpec]:
    """Skip the tracing, which takes 6 s: the graph is the one that was traced already.

    Everything after it is real: staging, ONNX Runtime, the comparison, the gate, the move.
    """
    asked = []

    def trace(model, spec, opset):
        asked.append((spec, opset))
        return onnx.load(onnx_artifact)

    monkeypatch.setattr(to_onnx, "trace", trace)
    return asked


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


# --- exports


def test_an_export_is_written_and_told(checkpoint, traced, images, tmp_path):
    out = tmp_path / "out"
    call = ("--checkpoint", checkpoint, "--output", out, "--batch", "1:2:4")
    result = _run(export, *call, "--verify-images", images)
    assert result.exit_code == 0, result.output
    model = out / "cable-fp32.onnx"
    assert sorted(out.iterdir()) == [spec_path(model), model]
    spec = ModelSpec.read(model)
    spec.check_artifact(model)
    assert spec.input.batch == BatchRange(1, 2, 4)
    assert result.stdout.splitlines()[:3] == [
        f"model    {model}",
        "input    image: uint8 (N, 64, 64, 3) RGB",
        "batch    1:2:4",
    ]
    assert result.stdout.splitlines()[4:] == [
        "skipped  engine: no NVIDIA GPU here, so no engine was built",
        f"cpu      destseg-export fuse {model} saves a sixth of its work",
    ]
    assert result.stderr.splitlines()[0] == f"tracing {checkpoint.name}"
    assert result.stderr.splitlines()[1].startswith("comparing with PyTorch on 27 images of ")
    assert [opset for _, opset in traced] == [18]


def test_the_category_names_the_files_and_finds_the_checkpoint(checkpoint, monkeypatch):
    seen = []

    def record(path, output, *, options, **others):
        seen.append((str(path), str(output), options.category))
        return ModelSpec.read(checkpoint)

    monkeypatch.setattr(to_onnx, "export_onnx", record)
    result = _run(export, "--category", "screw")
    assert result.exit_code == 0, result.output
    assert seen == [("artifacts/screw.safetensors", "artifacts/screw-fp32.onnx", "screw")]
    assert result.stdout.startswith("model    artifacts/screw-fp32.onnx\n")


def test_options_reach_the_exporter(checkpoint, images, tmp_path, monkeypatch):
    seen = {}

    def record(path, output, **options):
        seen.update(options, path=path, output=output)
        return replace(
            ModelSpec.read(checkpoint), parity=ParityRecord("x", "images", 2, 1e-6, 1e-6, 0.5)
        )

    monkeypatch.setattr(to_onnx, "export_onnx", record)
    out = ("--output", tmp_path / "out", "--category", "screw", "--checkpoint", checkpoint)
    result = _run(
        export, *out, "--input-size", "1024x1280", "--map-size", "64X32", "--batch", "4",
        "--opset", 21, "--verify-images", images, "--max-map-difference", 0.5,
        "--max-score-difference", 0.25,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert seen.pop("report") is not None
    assert seen == {
        "path": checkpoint,
        "output": tmp_path / "out/screw-fp32.onnx",
        "options": OnnxOptions(
            "screw", (1024, 1280), (64, 32), BatchRange(4, 4, 4), opset=21, precision="fp32"
        ),
        "verification": Verification(sorted(images.iterdir()), 0.5, 0.25),
    }


@pytest.mark.parametrize(
    ("roi", "region"), [("1,2,30,40", RegionSpec(1, 2, 30, 40)), ("roi.png", Path("roi.png"))]
)
def test_tiles_and_a_region_are_passed_on(roi, region, checkpoint, tmp_path, monkeypatch):
    seen = []

    def record(path, output, **options):
        seen.append(options["options"])
        return ModelSpec.read(checkpoint)

    monkeypatch.setattr(to_onnx, "export_onnx", record)
    words = ("--scale", 0.5, "--overlap", 8, "--tile-batch", 2, "--roi", roi)
    result = _run(export, "--checkpoint", checkpoint, "--output", tmp_path, *words)
    assert result.exit_code == 0, result.output
    assert seen == [OnnxOptions(precision="fp32", cut=Cut(0.5, 8, 2, region))]
    wrong = _run(export, "--checkpoint", checkpoint, "--roi", "1,2,3")
    assert wrong.exit_code == 2
    assert "expected X,Y,WIDTH,HEIGHT" in wrong.output


def test_an_official_checkpoint_gives_its_category(checkpoint, tmp_path, monkeypatch):
    outputs = []

    def record(path, output, **options):
        outputs.append(output.name)
        return ModelSpec.read(checkpoint)

    monkeypatch.setattr(to_onnx, "export_onnx", record)
    official = tmp_path / "DeSTSeg_MVTec_5000_metal_nut.pckl"
    assert _run(export, "--checkpoint", official, "--output", tmp_path).exit_code == 0
    assert outputs == ["metal_nut-fp32.onnx"]


# --- refusals


@pytest.mark.parametrize(
    "words",
    [
        ("--max-map-difference", "inf"),
        ("--max-map-difference", "nan"),
        ("--max-score-difference", "1"),
        ("--max-score-difference", "-0.001"),
        ("--opset", "0"),
        ("--opset", "-18"),
        ("--opset", "\u0661\u0668"),
        ("--batch", "\u0664"),
        ("--batch", "1:\u0664:8"),
        ("--batch", "9" * 5000),
        ("--input-size", f"{'9' * 5000}x64"),
        ("--input-size", "6\u0664x64"),
    ],
)
def test_values_that_switch_a_check_off_are_usage_errors(checkpoint, tmp_path, words):
    with unchanged(tmp_path):
        line = _misused("--checkpoint", checkpoint, "--output", tmp_path / "out", *words)
    assert line.startswith("Error: ")
    assert words[1] in line


def test_the_gate_writes_no_file_and_keeps_an_older_export(checkpoint, traced, images, tmp_path):
    """No two back ends agree to 1e-12; without the option these very files pass (see above)."""
    model = tmp_path / "out/cable-fp32.onnx"
    model.parent.mkdir()
    model.write_text("an older export")
    spec_path(model).write_text("its spec")
    call = ("--checkpoint", checkpoint, "--output", model.parent, "--batch", "1:2:4")
    with unchanged(tmp_path):
        line = _refused(*call, "--verify-images", images, "--max-map-difference", 1e-12)
    assert "cable-fp32.onnx: differs from PyTorch on 27 images" in line
    assert "(allowed 1e-12)" in line
    assert "Nothing was written." in line
    assert model.read_text() == "an older export"
    assert spec_path(model).read_text() == "its spec"


def test_images_that_are_all_the_same_prove_nothing(checkpoint, traced, images, tmp_path):
    for path in sorted(images.iterdir())[1:]:
        shutil.copy(images / "0.png", path)
    call = ("--checkpoint", checkpoint, "--output", tmp_path / "out", "--batch", "1:2:4")
    line = _refused(*call, "--verify-images", images)
    assert "the 3 images are all the same" in line
    assert "--verify-images" in line
    assert not (tmp_path / "out").exists()


def test_images_to_compare_on_are_checked(checkpoint, traced, images, tmp_path):
    call = ("--checkpoint", checkpoint, "--output", tmp_path / "out", "--batch", "1:2:4")
    (tmp_path / "out").mkdir()
    (tmp_path / "empty").mkdir()
    damaged = images / "1.png"
    damaged.write_bytes(damaged.read_bytes()[:50])
    with unchanged(tmp_path):
        assert str(tmp_path / "empty") in _refused(*call, "--verify-images", tmp_path / "empty")
        assert str(damaged) in _refused(*call, "--verify-images", images)
    damaged.unlink()
    (images / "2.png").unlink()
    with unchanged(tmp_path):
        assert "1 images, expected at least 2" in _refused(*call, "--verify-images", images)


def test_a_wrong_checkpoint_is_refused_before_anything_is_written(checkpoint, tmp_path):
    gone = tmp_path / "gone.safetensors"
    lonely = tmp_path / "lonely.safetensors"
    lonely.symlink_to(checkpoint)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(checkpoint.read_bytes()[:100_000])
    replace(ModelSpec.read(checkpoint), artifact=FileRecord.of(cut)).write(cut)
    other = tmp_path / "other.safetensors"
    other.symlink_to(checkpoint)
    spec = ModelSpec.read(checkpoint)
    replace(spec, artifact=FileRecord("screw.safetensors", "c" * 64)).write(other)
    said = {gone: "no such file", lonely: "no spec", cut: "damaged", other: "mixed up"}
    with unchanged(tmp_path):
        for path, words in said.items():
            line = _refused("--checkpoint", path, "--output", tmp_path / "out")
            assert str(path) in line
            assert words in line


def test_an_opset_nobody_writes_is_refused(checkpoint, tmp_path):
    with unchanged(tmp_path):
        line = _misused("--checkpoint", checkpoint, "--output", tmp_path / "out", "--opset", 11)
    assert "opset 11: expected 18 to 23" in line


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        *(
            (name, value, "expected HEIGHTxWIDTH such as 1024x1280")
            for name in ("--input-size", "--map-size")
            for value in ("", "1024", "axb", "0x64", "-64x64", "64x", "64x64x3", "1.5x2", "²x3")
        ),
        *(
            ("--batch", value, "such as 1:1:16")
            for value in ("", "0", "a", "1:2", "8:4:2", "1:2:3:4", "-1", "²")
        ),
        ("--opset", "new", "valid integer"),
        ("--max-map-difference", "small", "valid float"),
    ],
)
def test_options_that_cannot_be_read_are_misuse(checkpoint, tmp_path, option, value, words):
    with unchanged(tmp_path):
        out = ("--checkpoint", checkpoint, "--output", tmp_path / "out")
        result = _run(export, *out, option, value)
    assert (result.exit_code, result.stdout) == (2, "")
    line = result.stderr.splitlines()[-1]
    assert line.startswith("Error: ")
    assert option.lstrip("-") in line
    assert words in line


def test_something_to_export_must_be_named():
    result = _run(export)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == (
        "Error: Missing option '--category' (or '--checkpoint')."
    )


# --- inspect


def test_inspect_tells_an_export_from_a_checkpoint(checkpoint, onnx_artifact):
    said = {path: _run(inspect, path).stdout for path in (checkpoint, onnx_artifact)}
    assert "(checkpoint, fp32, category cable)" in said[checkpoint]
    assert "parity      not an export\n" in said[checkpoint]
    assert "(onnx, fp32, category cable)" in said[onnx_artifact]
    assert " of them drawn (another image's map: " in said[onnx_artifact]
    assert "threshold   0.500000 (set by hand)\n" in said[onnx_artifact]
    assert _run(export, "inspect", checkpoint).stdout == said[checkpoint]


def test_inspect_shows_a_spec_with_little_in_it(onnx_artifact, tmp_path):
    path = tmp_path / "cable.onnx"
    path.symlink_to(onnx_artifact)
    spec = ModelSpec.read(onnx_artifact)
    replace(spec, threshold=None, teacher=None, tools={}, parity=None).write(path)
    result = _run(inspect, path)
    assert result.exit_code == 0, result.output
    assert "threshold   none" in result.stdout
    assert "teacher     unknown" in result.stdout


def test_inspect_of_a_spec_whose_model_is_gone_says_so(onnx_artifact, tmp_path):
    shutil.copy(spec_path(onnx_artifact), tmp_path / "cable-fp32.json")
    result = _run(inspect, tmp_path / "cable-fp32.json")
    assert result.exit_code == 1
    assert f"{tmp_path / 'cable-fp32.onnx'}: no such file, only its spec" in result.stderr


def _described(folder: Path, onnx_artifact: Path, **artifact: str) -> Path:
    """Write the spec of an artifact alone, with the name of its file edited."""
    data = json.loads(spec_path(onnx_artifact).read_text())
    data["artifact"].update(artifact)
    file = folder / "cable-fp32.json"
    file.write_text(json.dumps(data))
    return file


@pytest.mark.parametrize("name", ["/etc/passwd", "../cable-fp32.onnx", "..", "", "a\\b", "a\nb"])
def test_inspect_of_a_spec_that_names_a_path_is_one_line(name, onnx_artifact, tmp_path):
    result = _run(inspect, _described(tmp_path, onnx_artifact, file=name))
    assert result.exit_code == 1
    assert "artifact: file is " in result.stderr
    assert result.stderr.count("\n") == 1


def test_inspect_follows_no_link_that_a_spec_names(onnx_artifact, tmp_path):
    file = _described(tmp_path, onnx_artifact)
    (tmp_path / "cable-fp32.onnx").symlink_to(onnx_artifact)
    result = _run(inspect, file)
    assert result.exit_code == 1
    assert "cable-fp32.json names it and it is a symbolic link" in result.stderr
    assert _run(inspect, tmp_path / "cable-fp32.onnx").exit_code == 0, "the user named this one"


def test_inspect_says_whether_edits_are_noticed(onnx_artifact, tmp_path):
    assert "digest      fits\n" in _run(inspect, onnx_artifact).stdout
    artifact = tmp_path / "cable-fp32.onnx"
    shutil.copy(onnx_artifact, artifact)
    spec = ModelSpec.read(onnx_artifact)
    old = Path(__file__).parents[2] / "deploy/format1/cable-fp32.json"
    data = json.loads(old.read_text())
    data["artifact"]["sha256"] = spec.artifact.sha256
    data["checkpoint"] = {"file": spec.checkpoint.file, "sha256": spec.checkpoint.sha256}
    data["input"]["batch"] = {"min": 1, "opt": 2, "max": 4}
    spec_path(artifact).write_text(json.dumps(data))
    said = _run(inspect, artifact).stdout
    assert "digest      none in format 1: an edit of the spec is not noticed\n" in said


def test_inspect_names_a_threshold_that_was_edited(onnx_artifact, tmp_path):
    shutil.copy(onnx_artifact, tmp_path / "cable-fp32.onnx")
    file = _described(tmp_path, onnx_artifact)
    data = json.loads(file.read_text())
    data["threshold"] |= {"score": 0.25, "rule": "false-reject rate 1 %", "images": 100}
    file.write_text(json.dumps(data))
    assert "threshold   0.250000 (set by hand)\n" in _run(inspect, file).stdout
    data["output"]["top_k"] = 7
    file.write_text(json.dumps(data))
    result = _run(inspect, file)
    assert result.exit_code == 1
    assert "its digest does not fit" in result.stderr
