"""The commands, from drawing a sample to judging parts, and one line for whatever is wrong."""

import errno
import importlib
import json
import os
import pickle
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from click.testing import CliRunner, Result

from destseg_deploy.cli.evaluate import evaluate
from destseg_deploy.cli.predict import predict
from destseg_deploy.cli.sample import sample
from destseg_deploy.cli.threshold import threshold
from destseg_deploy.cli.train import train
from destseg_deploy.device import Device
from destseg_deploy.options import OpenVinoOptions, OrtOptions, TensorRtOptions, TorchOptions
from destseg_deploy.spec import FileRecord, ModelSpec, TeacherRecord, spec_path
from destseg_export.cli import export, inspect
from tests.unchanged import unchanged

ROOT = Path(__file__).resolve().parents[3]
COMMANDS = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "threshold": threshold,
    "sample": sample,
    "export": export,
    "inspect": inspect,
}
DEFECTS = 8
QUIET = ("--threads", 1)
"""ONNX Runtime's threads wait by spinning, which is slow where other tests run too."""
QUICK = ("--size", 64, "--batch-size", 2, "--steps", "10,10", "--teacher", "random")


def _run(name: str, *arguments: object) -> Result:
    return CliRunner().invoke(COMMANDS[name], [str(argument) for argument in arguments])


def _done(name: str, *arguments: object) -> Result:
    result = _run(name, *arguments)
    assert result.exit_code == 0, result.output
    return result


def _refused(name: str, *arguments: object) -> str:
    """Run a command that must end with one line on stderr and status 1; return the line."""
    result = _run(name, *arguments)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.endswith("\n")
    assert result.stderr.count("\n") == 1
    return result.stderr


def _misused(name: str, *arguments: object) -> str:
    """Run a command that click must refuse with status 2; return the last line."""
    result = _run(name, *arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("Usage: ")
    line = result.stderr.splitlines()[-1]
    assert line.startswith("Error: ")
    return line


@dataclass(frozen=True)
class Shop:
    """One pass through the commands: 96 px frames, a 64 px network, the resize in the graph."""

    root: Path
    said: dict[str, Result]

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def category(self) -> Path:
        return self.data / "cable"

    @property
    def checkpoint(self) -> Path:
        return self.root / "artifacts/cable.safetensors"

    @property
    def onnx(self) -> Path:
        return self.root / "artifacts/cable-fp32.onnx"

    def linked(self, artifact: Path, folder: Path) -> Path:
        """Return an artifact whose spec can be changed: a link, and a copy of the spec."""
        folder.mkdir(parents=True, exist_ok=True)
        link = folder / artifact.name
        link.symlink_to(artifact)
        shutil.copy(spec_path(artifact), spec_path(link))
        return link


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Shop:
    root = tmp_path_factory.mktemp("shop")
    made = Shop(root, {})
    counts = ("--train", 6, "--good", 3, "--per-defect", 1)
    made.said["sample"] = _done("sample", "--output", made.data, "--size", 96, *counts)
    out = ("--output", root / "artifacts")
    made.said["train"] = _done(
        "train", "--category", "cable", "--data", made.data, *out, *QUICK, "--holdout", 0.3
    )
    sizes = ("--input-size", "96x96", "--batch", "1:2:4")
    made.said["export"] = _done(
        "export", "--checkpoint", made.checkpoint, "--format", "onnx", *out, *sizes
    )
    return made


@pytest.fixture
def artifact(shop, tmp_path) -> Path:
    """The exported model, with a spec that may be changed."""
    return shop.linked(shop.onnx, tmp_path / "model")


@pytest.fixture
def bench(shop, tmp_path) -> Path:
    """A copy of the category, to be damaged; its folder holds nothing else."""
    return Path(shutil.copytree(shop.category, tmp_path / "bench/cable"))


def _cut(path: Path, source: Path, *, mended: bool) -> Path:
    """Write the first half of an artifact, and its spec, with a hash that fits if wanted."""
    path.parent.mkdir(parents=True)
    whole = source.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    spec = ModelSpec.read(source)
    (replace(spec, artifact=FileRecord.of(path)) if mended else spec).write(path)
    return path


# --- help


@pytest.mark.parametrize("name", COMMANDS)
def test_help_and_version(name):
    for flag in ("-h", "--help"):
        shown = _done(name, flag).stdout
        assert shown.startswith("Usage: ")
        assert "--version" in shown
    assert version("destseg-deploy") in _done(name, "--version").stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name):
    command = COMMANDS[name]
    assert command.help
    options = [p for p in command.params if p.param_type_name == "option"]
    assert [option.name for option in options if not option.help] == []


# --- the way through


def test_sample_says_where_it_is(shop):
    assert shop.said["sample"].stdout == f"{shop.category}\n"
    assert len(list(shop.category.glob("train/good/*.png"))) == 6
    assert len(list(shop.category.glob("test/*/*.png"))) == 3 + DEFECTS


def test_train_says_what_it_made(shop):
    lines = shop.said["train"].stdout.splitlines()
    assert lines[0] == f"checkpoint  {shop.checkpoint}"
    assert lines[1].startswith("trained     4 images, ")
    assert lines[2].startswith("threshold   score > 0.")
    assert lines[3].startswith("rule        highest score: 2 good images can guarantee")
    assert shop.said["train"].stderr.startswith(f"note: {shop.checkpoint}: no folder of textures")
    spec = ModelSpec.read(shop.checkpoint)
    assert (spec.category, spec.size) == ("cable", (64, 64))
    recipe = spec.training.recipe
    assert (recipe["student_steps"], recipe["segmentation_steps"]) == (10, 10)
    assert (recipe["batch_size"], recipe["holdout"]) == (2, 0.3)
    assert spec.teacher == TeacherRecord("random")


def test_export_says_what_it_made(shop):
    lines = shop.said["export"].stdout.splitlines()
    assert lines[0] == f"model    {shop.onnx}"
    assert lines[1] == "input    image: uint8 (N, 96, 96, 3) RGB"
    assert lines[2] == "batch    1:2:4"
    assert lines[3].startswith("parity   map ")
    assert f" images of {shop.category}/test, 29 of them drawn" in lines[3]
    assert shop.said["export"].stderr.startswith("tracing cable.safetensors\ncomparing with")


def test_only_what_was_asked_for_was_written(shop):
    assert sorted(path.name for path in shop.root.iterdir()) == ["artifacts", "data"]
    assert sorted(path.name for path in (shop.root / "artifacts").iterdir()) == [
        "cable-fp32.json",
        "cable-fp32.onnx",
        "cable-losses.csv",
        "cable.json",
        "cable.safetensors",
    ]
    assert [path.name for path in shop.data.iterdir()] == ["cable"]


def test_evaluate_prints_a_table_and_the_same_as_json(shop):
    arguments = (shop.onnx, "--data", shop.data, *QUIET)
    with unchanged(shop.root):
        table = _done("evaluate", *arguments).stdout.splitlines()
        found = json.loads(_done("evaluate", *arguments, "--json").stdout)
    assert table[0] == f"{arguments[0]} on {shop.category}: 11 images, 8 anomalous"
    values = {line[2:14].strip(): line[15:] for line in table[1:8]}
    pixel = found["pixel"]
    assert values == {
        "image AUROC": f"{found['image_auroc']:.4f}",
        "image F1-max": f"{found['image_f1_max']:.4f}",
        "pixel AUROC": f"{pixel['auroc']:.4f}",
        "pixel AP": f"{pixel['ap']:.4f}",
        "PRO@0.3": f"{pixel['pro']:.4f}",
        "IAP": f"{pixel['iap']:.4f}",
        "IAP@90": f"{pixel['iap_at_recall']:.4f}",
    }
    rejected, missed = found["judged"].values()
    words = f": {rejected} of 3 good parts rejected, {missed} of 8 defects missed"
    assert table[8].endswith(words)
    assert table[9].split() == ["defect", "images", "AUROC", "lowest", "score"]
    assert [line.split() for line in table[10:]] == [
        [row["defect"], "1", f"{row['image_auroc']:.4f}", f"{row['lowest_score']:.4f}"]
        for row in found["defects"]
    ]
    assert len(found["defects"]) == DEFECTS
    assert (found["images"], found["anomalous"], found["data"]) == (11, 8, str(shop.category))


def test_checkpoint_and_export_measure_the_same(shop):
    found = [
        json.loads(_done("evaluate", path, "--data", shop.data, "--json", *QUIET).stdout)
        for path in (shop.checkpoint, shop.onnx)
    ]
    assert found[0]["pixel"]["auroc"] == pytest.approx(found[1]["pixel"]["auroc"], abs=1e-3)


def test_evaluate_names_masks_that_vanish(shop, bench):
    dot = np.zeros((96, 96), np.uint8)
    dot[40, 41] = 255
    Image.fromarray(dot).save(bench / "ground_truth/poke/000_mask.png")
    result = _done("evaluate", shop.onnx, "--data", bench.parent, *QUIET)
    image = bench / "test/poke/000.png"
    note = f"note: the mask of {image} has no pixel left at the map's size\n"
    assert result.stderr.startswith(note)


def test_predict_prints_and_writes(shop, tmp_path):
    out = tmp_path / "out"
    result = _done("predict", shop.onnx, shop.category / "test", "--output", out, *QUIET)
    lines = [line.split(maxsplit=2) for line in result.stdout.splitlines()]
    images = sorted(str(path) for path in shop.category.glob("test/*/*.png"))
    assert [image for _, _, image in lines] == images
    assert {verdict for _, verdict, _ in lines} <= {"OK", "NG"}
    count = sum(verdict == "NG" for _, verdict, _ in lines)
    assert result.stderr == f"11 images, {count} NG\nwritten to {out}\n"
    assert len((out / "predictions.csv").read_text().splitlines()) == 12
    assert len(list(out.glob("overlays/*/*.png"))) == 11
    assert sorted(path.name for path in out.iterdir()) == [
        ".pictures.json",
        "overlays",
        "overview.png",
        "predictions.csv",
    ]


def test_predict_as_json_is_the_table(shop, tmp_path):
    arguments = (shop.onnx, shop.category / "test/good", "--format", "json", "--json")
    result = _done("predict", *arguments, "--output", tmp_path, "--no-overlays", "--threads", 1)
    assert json.loads(result.stdout) == json.loads((tmp_path / "predictions.json").read_text())
    assert result.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.json"]


def test_a_checkpoint_takes_images_of_any_size(shop, tmp_path):
    image = tmp_path / "wide.png"
    Image.fromarray(np.full((40, 200), 90, np.uint8)).save(image)
    result = _done("predict", shop.checkpoint, image, "--output", tmp_path / "out")
    remark, count, *_ = result.stderr.splitlines()
    assert remark.startswith("note: images of 200x40 pixels are resized to 64x64")
    assert count.startswith("1 image, ")


def test_threshold_shows_and_sets(shop, artifact, tmp_path):
    shown = _done("threshold", artifact).stdout.splitlines()
    assert [line.split()[0] for line in shown] == ["threshold", "rule"]
    by_hand = _done("threshold", artifact, "--value", 1, "--pixel", 0.25).stdout
    assert (
        by_hand == "threshold   score > 1.000000, outline above 0.250000\nrule        set by hand\n"
    )
    assert _done("threshold", artifact).stdout == by_hand

    images = (shop.category / "test/good", shop.category / "test/poke")
    predict = ("predict", artifact, *images, "--output", tmp_path / "out", *QUIET)
    assert _done(*predict).stderr.startswith("4 images, 0 NG")
    _done("threshold", artifact, "--value", 0)
    assert _done(*predict).stderr.startswith("4 images, 4 NG")

    normal = ("--normal", shop.category / "test/good")
    said = _done("threshold", artifact, *normal, "--false-reject-rate", 0.5, *QUIET).stdout
    assert "rule        false-reject rate 50 %: rank 2 of the scores of 3 good images" in said
    said = _done("threshold", artifact, "--labelled", shop.category, *QUIET).stdout
    assert "on 8 anomalous and 3 good images" in said


def test_without_a_threshold_nothing_is_called_ok(shop, artifact, tmp_path):
    replace(ModelSpec.read(artifact), threshold=None).write(artifact)
    way_out = f"destseg-threshold {artifact} --good FOLDER"
    assert _done("threshold", artifact).stdout == f"threshold   none yet: {way_out}\n"
    out = ("--output", tmp_path / "out")
    result = _done("predict", artifact, shop.category / "test/good", *out)
    assert {line.split()[1] for line in result.stdout.splitlines()} == {"-"}
    assert result.stderr.startswith(f"3 images, no threshold yet: {way_out}\n")
    evaluate = ("evaluate", artifact, "--data", shop.data, *QUIET)
    assert "good parts rejected" not in _done(*evaluate).stdout
    assert json.loads(_done(*evaluate, "--json").stdout)["judged"] is None


def test_inspect_says_what_the_spec_says(shop):
    lines = _done("inspect", shop.onnx).stdout.splitlines()
    told = {line[:12].strip(): line[12:] for line in lines}
    assert told["artifact"] == f"{shop.onnx} (onnx, fp32, category cable)"
    assert told["input"] == "image: uint8 (N, 96, 96, 3) RGB, batch 1:2:4"
    assert told["network"].startswith("64x64, resize ")
    assert told["teacher"] == "random"
    assert told["made with"].startswith(f"destseg-deploy {version('destseg-deploy')}, torch ")
    assert "{" not in "".join(lines)
    for path in (shop.onnx, shop.checkpoint):
        assert _done("inspect", path, "--json").stdout == spec_path(path).read_text()
    assert _done("inspect", spec_path(shop.onnx)).stdout.splitlines() == lines


# --- what reaches the library


class _Stop(Exception):
    pass


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", ("onnxruntime", None, OrtOptions())),
        ("--device cuda:1 --threads 3", ("onnxruntime", Device("cuda", 1), OrtOptions(threads=3))),
        (
            "--device cuda --ort-tensorrt --ort-cache there --ort-cuda-graph",
            (
                "onnxruntime",
                Device("cuda"),
                OrtOptions(tensorrt=True, cache=Path("there"), cuda_graph=True),
            ),
        ),
        (
            "--no-ort-arena --no-ort-spinning --ort-worker-cores 1,0",
            ("onnxruntime", None, OrtOptions(arena=False, spinning=False, worker_cores=(1, 0))),
        ),
        ("--backend openvino", ("openvino", None, OpenVinoOptions())),
        (
            "--openvino-precision bf16 --no-openvino-pinning --openvino-streams 2 --threads 4",
            ("openvino", None, OpenVinoOptions(4, "bf16", streams=2, pinning=False)),
        ),
        ("--device gpu", ("openvino", Device("gpu"), OpenVinoOptions())),
    ],
)
def test_options_reach_the_runtime(shop, artifact, tmp_path, monkeypatch, flags, expected):
    def record(artifact, **how):
        raise _Stop(how)

    good = shop.category / "test/good"
    for command, arguments in (
        ("evaluate", ("--data", shop.data)),
        ("predict", (good, "--output", tmp_path)),
        ("threshold", ("--normal", good)),
    ):
        module = importlib.import_module(f"destseg_deploy.cli.{command}")
        monkeypatch.setattr(module, "load", record)
        stopped = _run(command, artifact, *arguments, *flags.split()).exception
        assert isinstance(stopped, _Stop), stopped
        (how,) = stopped.args
        assert how == dict(zip(("backend", "device", "options"), expected, strict=True))


def test_options_of_engines_and_checkpoints_are_read(tmp_path):
    from destseg_deploy.cli.options import read_runtime_options

    values = {"backend": None, "device": None, "threads": 0, "tuned": False}
    read = partial(read_runtime_options, tmp_path / "a.engine")
    found = read({**values, "tensorrt_contexts": 3, "tensorrt_cuda_graph": False})
    assert found["options"] == TensorRtOptions(contexts=3, cuda_graph=False)
    found = read_runtime_options(tmp_path / "a.pth", {**values, "torch_tf32": True, "threads": 2})
    assert found["options"] == TorchOptions(threads=2, tf32=True)
    with pytest.raises(click.UsageError, match="--threads is for this machine's CPU, and tensorrt"):
        read({**values, "threads": 2})


def test_openvino_serves_every_command(shop, artifact, tmp_path):
    pytest.importorskip("openvino")
    good = shop.category / "test/good"
    printed = {}
    for backend in ("onnxruntime", "openvino"):
        where = ("--backend", backend, *QUIET)
        scored = _done("predict", artifact, good, "--output", tmp_path / backend, *where)
        measured = _done("evaluate", artifact, "--data", shop.data, *where, "--json")
        _done("threshold", artifact, "--normal", good, "--false-reject-rate", 0.25, *where)
        limit = ModelSpec.read(artifact).threshold.score
        printed[backend] = scored.stdout, json.loads(measured.stdout), limit
    (cpu_rows, cpu, cpu_limit), (rows, found, limit) = printed.values()
    scores, expected = ([float(r.split()[0]) for r in t.splitlines()] for t in (rows, cpu_rows))
    np.testing.assert_allclose(scores, expected, atol=2e-4)
    assert found["pixel"]["auroc"] == pytest.approx(cpu["pixel"]["auroc"], abs=2e-3)
    assert limit == pytest.approx(cpu_limit, abs=1e-4)


@pytest.mark.parametrize(
    ("file", "flags", "words"),
    [
        (
            "onnx",
            "--backend onnxruntime --openvino-hint latency",
            "--openvino-hint is for back",
        ),
        ("onnx", "--tensorrt-contexts 2", "--tensorrt-contexts is for back end tensorrt, and"),
        ("onnx", "--ort-arena --openvino-streams 2", "--openvino-streams is for back end openvino"),
        (
            "checkpoint",
            "--openvino-precision fp32",
            "runs with pytorch. Drop it, or",
        ),
        ("onnx", "--backend openvino --openvino-precision fp16", "'fp32', 'bf16'"),
        ("onnx", "--ort-worker-cores 1,1", "worker_cores (1, 1): one is named twice"),
        ("onnx", "--ort-worker-cores a", "'a': expected whole numbers"),
        ("onnx", "--device tpu", "device 'tpu': expected cpu, cuda, cuda:<index>, gpu"),
        ("onnx", "--device openvino", "Pass backend 'openvino' (--backend openvino)"),
        ("onnx", "--backend opencv", "'opencv' is not one of"),
    ],
)
def test_options_that_do_not_fit_are_usage_errors(shop, tmp_path, file, flags, words):
    artifact, good = getattr(shop, file), shop.category / "test/good"
    with unchanged(tmp_path):
        for call in (
            ("evaluate", artifact, "--data", shop.data),
            ("predict", artifact, good, "--output", tmp_path / "out"),
            ("threshold", artifact, "--normal", good),
        ):
            said = " ".join(_misused(*call, *flags.split()).split())
            assert words in said


def test_a_file_that_the_back_end_does_not_run_is_refused(shop):
    line = _refused("evaluate", shop.checkpoint, "--data", shop.data, "--backend", "openvino")
    assert "suffix .safetensors does not fit back end 'openvino'" in line
    line = _refused("evaluate", shop.onnx, "--data", shop.data, "--ort-cuda-graph")
    assert "cuda_graph: an option for device 'cuda', and the device is 'cpu'" in line


def test_options_of_the_back_ends_are_listed_under_headings_at_the_end():
    text = _done("predict", "-h").stdout
    headings = [line for line in text.splitlines() if line and not line.startswith(" ")][1:]
    assert headings == [
        "Options:",
        "Options of archives (--format parquet):",
        "Options of back end onnxruntime (.onnx):",
        "Options of back end openvino (.onnx, .xml):",
        "Options of back end tensorrt (.engine):",
        "Options of back end pytorch (.safetensors, .pckl, .pth):",
        "Options of back end server (.onnx, .xml, .engine, .json):",
    ]


# --- wrong images


def test_a_damaged_image_changes_no_threshold_and_makes_no_checkpoint(
    shop, bench, artifact, tmp_path
):
    image = bench / "train/good/001.png"
    image.write_bytes(b"")
    out = ("--output", tmp_path / "out")
    with unchanged(tmp_path):
        assert str(image) in _refused("threshold", artifact, "--normal", bench / "train/good")
        train = ("train", "--category", "cable", "--data", bench.parent, *out, *QUICK)
        assert str(image) in _refused(*train)


def test_an_empty_folder_is_named(shop, artifact, bench, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.rmtree(bench / "train/good")
    (bench / "train/good").mkdir()
    out = ("--output", tmp_path / "out")
    with unchanged(tmp_path):
        for call in (
            ("predict", shop.onnx, empty, *out),
            ("threshold", artifact, "--normal", empty),
            ("threshold", artifact, "--labelled", empty),
        ):
            assert str(empty) in _refused(*call)
        line = _refused("train", "--category", "cable", "--data", bench.parent, *out, *QUICK)
        assert f"{bench / 'train/good'}: no images in it. Expected files ending in" in line


# --- wrong models


def test_a_missing_model_is_named(shop, tmp_path):
    gone = tmp_path / "gone.onnx"
    for call in (
        ("evaluate", gone, "--data", shop.data),
        ("predict", gone, shop.category / "test/good", "--output", tmp_path / "out"),
        ("threshold", gone, "--value", 0.5),
        ("threshold", gone, "--normal", shop.category / "test/good"),
        ("inspect", gone),
    ):
        with unchanged(tmp_path):
            assert str(gone) in _refused(*call)


@pytest.mark.parametrize("kind", ["checkpoint", "onnx"])
def test_a_missing_spec_is_named(shop, tmp_path, kind):
    lonely = shop.linked(getattr(shop, kind), tmp_path / "model")
    spec_path(lonely).unlink()
    out = ("--output", tmp_path / "out")
    calls = [
        ("evaluate", lonely, "--data", shop.data),
        ("predict", lonely, shop.category / "test/good", *out),
        ("threshold", lonely),
        ("threshold", lonely, "--value", 0.5),
        ("threshold", lonely, "--normal", shop.category / "test/good"),
        ("inspect", lonely),
    ]
    for call in calls:
        with unchanged(tmp_path):
            line = _refused(*call)
        assert f"no spec {spec_path(lonely).name} beside it. Copy the .json" in line


def test_the_spec_of_another_model_is_refused(shop, artifact, tmp_path):
    spec = ModelSpec.read(artifact)
    other = FileRecord("screw-fp32.onnx", "c" * 64)
    replace(spec, artifact=other).write(artifact)
    for call in (
        ("evaluate", artifact, "--data", shop.data),
        ("predict", artifact, shop.category / "test/good", "--output", tmp_path / "out"),
        ("threshold", artifact, "--normal", shop.category / "test/good"),
        ("inspect", artifact),
    ):
        with unchanged(tmp_path):
            line = _refused(*call)
        assert "the pair was mixed up" in line
        assert "screw-fp32.onnx" in line
    shutil.copy(spec_path(shop.checkpoint), spec_path(artifact))
    assert "cable.safetensors" in _refused("evaluate", artifact, "--data", shop.data)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[:100], "not JSON"),
        (lambda text: text.replace('"format": 2', '"format": 3'), "format is 3"),
        (lambda text: text.replace('"top_k"', '"topk"'), "unknown entry 'topk'"),
        (lambda text: text.replace('"height": 96', '"height": "96"'), 'height is "96"'),
    ],
)
def test_a_spec_that_was_changed_by_hand_is_refused(artifact, shop, change, words):
    text = spec_path(artifact).read_text()
    assert change(text) != text
    spec_path(artifact).write_text(change(text))
    with unchanged(artifact.parent):
        for call in (
            ("evaluate", artifact, "--data", shop.data),
            ("threshold", artifact, "--value", 0.5),
            ("inspect", artifact),
        ):
            line = _refused(*call)
            assert words in line
            assert str(spec_path(artifact)) in line


@pytest.mark.parametrize("mended", [True, False])
def test_a_truncated_checkpoint_is_refused(shop, tmp_path, mended):
    cut = _cut(tmp_path / "model/cable.safetensors", shop.checkpoint, mended=mended)
    for call in (
        ("evaluate", cut, "--data", shop.data),
        ("predict", cut, shop.category / "test/good", "--output", tmp_path / "out"),
        ("threshold", cut, "--normal", shop.category / "test/good"),
    ):
        with unchanged(tmp_path):
            line = _refused(*call)
        assert f"{cut}: damaged or incomplete" in line
        assert "Copy it again." in line


def test_a_truncated_onnx_file_is_refused_by_its_hash(shop, tmp_path):
    cut = _cut(tmp_path / "model/cable-fp32.onnx", shop.onnx, mended=False)
    with unchanged(tmp_path):
        line = _refused("evaluate", cut, "--data", shop.data)
        assert "damaged or the pair was mixed up" in line
        assert "damaged or the pair was mixed up" in _refused("inspect", cut)


def test_a_gpu_that_is_not_there_is_no_reason_to_run_on_the_cpu(shop, tmp_path, monkeypatch):
    import onnxruntime
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    data, out = ("--data", shop.data), ("--output", tmp_path / "out")
    good = shop.category / "test/good"
    calls = {
        "sees no CUDA GPU": [
            ("evaluate", shop.checkpoint, *data),
            ("train", "--category", "cable", *data, *out, *QUICK),
        ],
        "has no CUDAExecutionProvider": [
            ("evaluate", shop.onnx, *data),
            ("predict", shop.onnx, good, *out),
            ("threshold", shop.onnx, "--normal", good),
            ("threshold", shop.onnx, "--labelled", shop.category),
        ],
    }
    with unchanged(shop.root), unchanged(tmp_path):
        for words, refused in calls.items():
            for call in refused:
                line = _refused(*call, "--device", "cuda")
                device = "cuda" if call[0] == "train" else "cuda:0"
                assert f"device '{device}': this {'' if 'CUDAE' in words else 'PyTorch'}" in line
                assert words in line


# --- wrong options


@pytest.mark.parametrize("size", [5, 0])
def test_a_batch_size_the_artifact_does_not_take_is_refused(shop, tmp_path, size):
    good = shop.category / "test/good"
    with unchanged(tmp_path):
        for call in (
            ("evaluate", shop.onnx, "--data", shop.data),
            ("predict", shop.onnx, good, "--output", tmp_path / "out"),
        ):
            line = _refused(*call, "--batch-size", size)
            assert f"batch_size: {size}, expected 1 to 4, the artifact's largest." in line


def test_threshold_takes_one_rule_at_a_time(shop, artifact):
    good = shop.category / "test/good"
    with unchanged(artifact.parent):
        line = _misused("threshold", artifact, "--value", 0.5, "--normal", good)
        assert "one of --good, --labelled and --value" in line
        assert "--pixel goes with --value" in _misused("threshold", artifact, "--pixel", 0.5)
        for others in ((), ("--value", 0.5), ("--labelled", good), ("--good", good, "--ng", good)):
            line = _misused("threshold", artifact, *others, "--false-reject-rate", 0.01)
            assert "--false-reject-rate goes with --good alone" in line
        rate = ("--false-reject-rate", 1)
        assert "0<x<1" in _misused("threshold", artifact, "--normal", good, *rate)
        assert "score 1.5, expected between 0 and 1" in _refused(
            "threshold", artifact, "--value", 1.5
        )
        assert "'nan' is not a number" in _misused("threshold", artifact, "--value", "nan")


def test_an_output_that_cannot_be_written_is_named(shop, tmp_path):
    good = shop.category / "test/good"
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/overlays").write_text("in the way")
    with unchanged(tmp_path):
        call = ("predict", shop.onnx, good, "--output")
        assert "is a file" in _misused(*call, tmp_path / "file")
        assert str(tmp_path / "file") in _refused(*call, tmp_path / "file/deeper")
        assert str(tmp_path / "out/overlays") in _refused(*call, tmp_path / "out")


def test_a_rate_of_the_file_is_for_the_calls_that_use_it(artifact, tmp_path):
    file = tmp_path / "destseg.toml"
    file.write_text("[threshold]\nfalse-reject-rate = 0.02\n")
    assert _done("threshold", artifact, "--config", file).stdout.startswith("threshold   score > ")


def test_a_sample_that_finds_no_room_leaves_no_folder(tmp_path, monkeypatch):
    def fail(*arguments, **named):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", fail)
    with unchanged(tmp_path):
        line = _refused("sample", "--output", tmp_path / "new/data", "--size", 64)
    assert "new/data/cable: cannot be written (No space left on device)" in line


def test_a_sample_does_not_overwrite_a_category(bench):
    with unchanged(bench):
        line = _refused("sample", "--output", bench.parent)
        assert f"{bench}: exists and is not empty" in line
    assert "64<=x<=4096" in _misused("sample", "--output", bench.parent, "--size", 32)


# --- as a shell sees it


def _shell(name: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(_argv(name, *arguments), capture_output=True, text=True, **_at(cwd))


def _argv(name: str, *arguments: object) -> list[str]:
    code = f"from destseg_deploy.cli.{name} import {name}; {name}()"
    return [sys.executable, "-c", code, *map(str, arguments)]


def _at(cwd: Path) -> dict:
    return {"cwd": cwd, "env": {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'export'}"}}


def test_a_truncated_graph_whose_hash_fits_is_refused_by_onnx_runtime(shop, tmp_path):
    """ONNX Runtime writes to stderr by itself; the shell must still see one line."""
    cut = _cut(tmp_path / "model/cable-fp32.onnx", shop.onnx, mended=True)
    good = shop.category / "test/good"
    with unchanged(tmp_path):
        done = _shell("predict", cut, good, "--output", tmp_path / "out", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: {cut}: ONNX Runtime cannot open it (")
    assert done.stderr.endswith("Export it again.\n")
    assert done.stderr.count("\n") == 1


class _Evil:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_code_in_a_pickle_is_never_run(shop, tmp_path):
    marker, evil = tmp_path / "it-ran", tmp_path / "cable.pckl"
    evil.write_bytes(pickle.dumps({"weight": _Evil(marker)}, protocol=2))
    pickle.loads(evil.read_bytes())
    assert marker.exists(), "else this test shows nothing"
    marker.unlink()
    with unchanged(tmp_path):
        done = _shell("evaluate", evil, "--data", shop.data, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: {evil}: refused, because it is damaged or holds more")
    assert done.stderr.count("\n") == 1


def test_a_shell_sees_results_on_stdout_and_misuse_as_two(shop, tmp_path):
    done = _shell("threshold", shop.onnx, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("threshold   score > ")
    done = _shell("evaluate", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == "Error: Missing argument 'ARTIFACT'."
    assert list(tmp_path.iterdir()) == []


def test_a_command_runs_where_stderr_or_stdout_is_closed(shop, tmp_path):
    """Services and pythonw of Windows have neither; what is opened next must not get its place."""
    good = shop.category / "test/good"
    for closed in ("2>&-", ">&- 2>&-"):
        argv = _argv("predict", shop.onnx, good, "--output", tmp_path / closed, *QUIET)
        line = f"{shlex.join(argv)} {closed}"
        done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, **_at(tmp_path))
        assert (done.returncode, done.stderr) == (0, "")
        assert len(done.stdout.splitlines()) == (3 if closed == "2>&-" else 0)
        assert len(list((tmp_path / closed / "overlays").iterdir())) == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a file of Linux")
def test_a_full_disk_behind_stdout_is_named(shop, tmp_path):
    for arguments in ((shop.onnx,), ("-h",)):
        with open("/dev/full", "wb") as full:
            argv = _argv("threshold", *arguments)
            done = subprocess.run(
                argv, stdout=full, stderr=subprocess.PIPE, text=True, **_at(tmp_path)
            )
        assert (done.returncode, done.stderr) == (1, "Error: stdout: No space left on device\n")


@pytest.mark.skipif(os.name != "posix", reason="Windows keeps the folder of a process")
def test_a_current_folder_that_was_deleted_is_said(shop, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    good = shop.category / "test/good"
    for output, code in (("out", 1), (tmp_path / "out", 0)):
        line = f"rmdir {gone} 2>/dev/null; "
        line += shlex.join(_argv("predict", shop.onnx, good, "--output", output, *QUIET))
        gone.mkdir(exist_ok=True)
        done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, **_at(gone))
        assert done.returncode == code, done.stderr
        assert done.stderr.startswith("Error: the current folder was deleted.") == bool(code)


def test_a_reader_that_has_seen_enough_gets_no_complaint(shop, tmp_path):
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as pipe:
        argv = _argv("threshold", shop.onnx)
        done = subprocess.run(argv, stdout=pipe, stderr=subprocess.PIPE, text=True, **_at(tmp_path))
    assert done.stderr == ""
