"""destseg-export with engines: what it prints, passes on and refuses, and inspect and refit."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from destseg_deploy.device import Device
from destseg_deploy.spec import FileRecord, ModelSpec, ParityRecord, spec_path
from destseg_deploy.testing import fake_spec
from destseg_export import pipeline as whole_way
from destseg_export import to_onnx
from destseg_export.cli import export
from destseg_export.cli import printing as telling
from destseg_export.cli.printing import Bar
from destseg_export.engine.build import build_engine
from destseg_export.engine.options import BuildOptions
from destseg_export.engine.site import NoGpuError
from destseg_export.parity import Verification
from tests.export.engine.cases import GpuMachine, write_model
from tests.unchanged import unchanged


def _run(*words: object) -> Result:
    return CliRunner().invoke(export, [str(word) for word in words])


@pytest.fixture
def machine(monkeypatch) -> GpuMachine:
    return GpuMachine(monkeypatch)


@pytest.fixture
def tiny(monkeypatch) -> None:
    """Replace the tracing: tiny models."""

    def export_onnx(checkpoint, path, *, options, verification, report):
        name = options.category or "cable"
        return ModelSpec.read(write_model(path.parent, options.precision, category=name))

    monkeypatch.setattr(to_onnx, "export_onnx", export_onnx)


@pytest.fixture
def call(tmp_path) -> tuple[object, ...]:
    return ("--checkpoint", tmp_path / "cable.safetensors", "--output", tmp_path)


def test_the_whole_way_is_told(machine, tiny, call, tmp_path):
    result = _run(*call)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    heads = [line.split()[0] for line in lines]
    model = ["model", "input", "batch", "parity"]
    assert heads == [*model, *model, "engine", "fits", "half", "parity"]
    assert lines[8:11] == [
        f"engine   {tmp_path / 'cable-fp16.engine'}",
        f"fits     sm_90 ({machine.device.name}), TensorRT 11.4.0.106",
        "half     2 of 2 convolutions, read from the engine",
    ]
    assert lines[11].startswith("parity   map 0.0e+00, score 0.0e+00 on 4 frames of noise")
    assert "building with TensorRT 11.4.0.106 for sm_90" in result.stderr


def test_the_second_run_builds_nothing(machine, tiny, call):
    first = _run(*call)
    second = _run(*call)
    assert second.stdout == first.stdout
    assert "already built from cable-fp16.onnx for sm_90" in second.stderr
    assert len(machine.library.configs) == 1
    assert "already built" not in _run(*call, "--rebuild").stderr
    assert len(machine.library.configs) == 2


def test_an_engine_that_was_not_run_says_so():
    parity = ParityRecord(
        "cable-fp16.onnx", "images of x", 16, 1e-3, 2e-4, 0.5, rounding="emulated fp16"
    )
    spec = replace(fake_spec(), kind="engine", parity=parity)
    assert telling.parity_line(spec) == (
        "of cable-fp16.onnx, the engine was not run: map 1.0e-03, score 2.0e-04 on 16 images of x "
        "(another image's map: 5.0e-01), emulated fp16"
    )


def test_without_a_gpu_the_reason_is_one_line(tiny, call, monkeypatch):
    def open_site(builder, targets, *, device):
        raise NoGpuError("no GPU to build for (no driver).")

    monkeypatch.setattr(whole_way, "open_site", open_site)
    result = _run(*call)
    assert result.exit_code == 0, result.output
    skipped = "skipped  engine: no NVIDIA GPU here, so no engine was built"
    assert result.stdout.splitlines()[-2] == skipped
    assert "no driver" not in result.output
    lines = _run(*call, "-v").stdout.splitlines()
    assert lines[-3:-1] == [skipped, "cause    no GPU to build for (no driver)."]
    result = _run(*call, "--format", "engine")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: no GPU to build for (no driver).\n"


def test_options_reach_the_builder(call, tmp_path, monkeypatch):
    asked = {}

    def export_all(checkpoint, folder, **options):
        asked.update(options)
        return iter(())

    monkeypatch.setattr(whole_way, "export_all", export_all)
    result = _run(
        *call, "--format", "engine", "--precision", "bf16", "--builder", "tensorrt-rtx",
        "--target", "8.9,sm86", "--device", "cuda:1", "--workspace", 512, "--timing-cache",
        tmp_path / "t", "--refittable", "--tf32", "--rebuild", "--max-map-difference", 0.5,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert asked["engine"] == BuildOptions(
        builder="tensorrt-rtx", targets=("sm_86", "sm_89"), device=Device("cuda", 1),
        workspace_mib=512, refit=True, tf32=True, timing_cache=tmp_path / "t", rebuild=True,
    )  # fmt: skip
    assert (asked["form"], asked["onnx"].precision) == ("engine", "bf16")
    assert asked["verification"] == Verification(None, 0.5, None)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--target", "ampere"), "expected a compute capability such as sm86 or 8.6"),
        (("--target", ""), "expected a compute capability"),
        (("--device", "cpu"), "expected cuda or cuda:<index>"),
        (("--device", "cuda:"), "expected cpu, cuda, cuda:<index>"),
        (("--device", "cuda:x"), "expected cpu, cuda, cuda:<index>"),
        (("--workspace", "0"), "not in the range"),
        (("--precision", "fp8"), "is not one of"),
        (("--format", "plan"), "is not one of"),
        (("--builder", "trt"), "is not one of"),
        (("--format", "onnx", "--target", "sm86"), "--target is about an engine"),
        (("--format", "onnx", "--rebuild"), "--rebuild is about an engine"),
        (("--format", "onnx", "--device", "cuda:1"), "--device is about an engine"),
    ],
)
def test_options_that_make_no_sense_are_misuse(words, said, call, tmp_path):
    with unchanged(tmp_path):
        result = _run(*call, *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr.splitlines()[-1]


def test_the_bar_appears_with_the_first_stage_and_goes_with_the_last(monkeypatch):
    events = []

    class Shown:
        def __enter__(self):
            events.append("open")
            return lambda done, total, text: events.append((done, total, text))

        def __exit__(self, *error):
            events.append("closed")

    monkeypatch.setattr(telling, "progress", lambda label: Shown())
    bar = Bar("building")
    assert events == []
    bar.share("timing", 0.5)
    bar.share("built", 1.0)
    bar.share("late", 0.2)
    bar.close()
    assert events == ["open", (500, 1000, "timing"), (1000, 1000, "built"), "closed"]


# --- inspect


@pytest.fixture
def engine(monkeypatch, tmp_path) -> Path:
    GpuMachine(monkeypatch)
    path = tmp_path / "out/cable-fp16.engine"
    build_engine(write_model(tmp_path), path, options=BuildOptions(refit=True, workspace_mib=256))
    return path


def test_inspect_prints_the_record(engine):
    result = _run("inspect", engine)
    assert result.exit_code == 0, result.output
    record = ModelSpec.read(engine).engine
    for line in (
        f"artifact    {engine} (engine, fp16, category cable)",
        "fits        sm_90 (NVIDIA Fake GPU), TensorRT 11.4.0.106",
        "half        2 of 2 convolutions, read from the engine",
        f"flags       refit, workspace=256MiB; built in {record.build_seconds:.1f} s",
        f"built from  cable-fp16.onnx, sha256 {record.onnx_sha256[:12]}",
    ):
        assert line in result.stdout.splitlines()
    assert "header" not in result.stdout
    assert ModelSpec.from_json(_run("inspect", engine, "--json").stdout).engine == record
    assert _run("inspect", spec_path(engine)).stdout == result.stdout


def _rtx_file(path: Path) -> None:
    path.write_bytes(b"vtrt" + bytes(20) + bytes((1, 7, 1, 116)) + b"vtrt\x0c" + bytes(31))


def test_inspect_adds_what_a_raw_rtx_engine_says(engine):
    _rtx_file(engine)
    spec = ModelSpec.read(engine)
    fitting = replace(spec, artifact=FileRecord.of(engine))
    fitting.write(engine)
    line = "header      TensorRT-RTX 1.7.1.116 for sm_86, sm_89"
    assert line in _run("inspect", engine).stdout.splitlines()


@pytest.mark.parametrize("fault", ["spec gone", "truncated", "another's spec", "spec damaged"])
def test_inspect_names_a_file_that_is_not_what_its_spec_says(fault, engine):
    if fault == "truncated":
        engine.write_bytes(engine.read_bytes()[:-10])
    elif fault == "spec gone":
        spec_path(engine).unlink()
        _rtx_file(engine)
    elif fault == "another's spec":
        _rtx_file(engine)
    else:
        spec_path(engine).write_text("{")
    result = _run("inspect", engine)
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert "cable-fp16" in line
    words = {
        "spec gone": "no spec", "truncated": "is damaged or the pair was mixed up",
        "another's spec": "is damaged or the pair was mixed up", "spec damaged": "not JSON",
    }  # fmt: skip
    assert words[fault] in line
    known = "The file's own header says: TensorRT-RTX 1.7.1.116 for sm_86, sm_89."
    assert (known in line) == (fault in ("spec gone", "another's spec"))


def test_inspect_of_a_broken_record_is_one_line(engine):
    spec = ModelSpec.read(engine)
    replace(spec, engine=replace(spec.engine, targets="sm_90")).write(engine)
    result = _run("inspect", engine)
    assert (result.exit_code, result.stdout) == (1, "")
    assert 'targets is "sm_90", expected a list' in result.stderr


# --- refit


def test_refit_does_it(engine, tmp_path):
    screw = write_model(tmp_path / "screw", category="screw")
    out = tmp_path / "new/screw-fp16.engine"
    result = _run("refit", engine, "--from", screw, "--output", out)
    assert result.exit_code == 0, result.output
    assert ModelSpec.read(out).category == "screw"
    assert result.stdout.splitlines()[0] == f"engine   {out}"


def test_refit_refuses_in_one_line(engine, tmp_path):
    plain = tmp_path / "plain.engine"
    shutil.copy(engine, plain)
    spec = ModelSpec.read(engine)
    replace(spec, engine=replace(spec.engine, flags=())).write(plain)
    with unchanged(tmp_path):
        result = _run("refit", plain, "--from", "x.onnx", "--output", tmp_path / "new.engine")
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"Error: {plain}: not refittable. Build one that is")
    assert _run("refit", plain, "--output", "x").exit_code == 2
