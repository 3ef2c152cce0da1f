"""The commands of the pages run, each in a folder that holds what the pages talk of.

Trainings are cut to a few steps of a small network, a sample to a few small pictures, and the
tracing of a graph is replaced by one that was traced already; everything else is real.
"""

import csv
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import numpy as np
import onnx
from click.testing import CliRunner
from PIL import Image

from destseg_deploy.data.sample.category import DEFECTS, write_sample
from destseg_deploy.spec import spec_path
from tests.house.pages import COMMANDS, PAGES, blocks, command_lines, resolve

SHORT = shlex.split("--steps 2,2 --batch-size 2 --size 64 --teacher random --device cpu")
"""Added to every training."""

DRAWN = shlex.split("--size 64 --train 2 --good 1 --per-defect 1")
"""Added to every sample, which draws 128 pictures of 256 px otherwise."""

COMPARED = shlex.split("--format onnx --batch 1:2:4 --verify-images noise")
"""Added to every export: the batches of the traced graph, and images that show its errors."""

PARSED_ONLY = {
    r"train .*(--category|--textures|--config)": "as other lines: tests/deploy/cli",
    r"--scale|--defect-size": "minutes: test_run_on_tiles.py, test_small_defects.py, test_train.py",
    r"\.engine|format engine|fp16|bf16|device cuda": "a GPU, or an emulated one: tests/export",
    r"--input-size": "a graph of its own is traced: tests/deploy/cli/test_cli.py",
    r"--top-k": "a graph of its own is traced: tests/house/test_network.py",
    r"destseg-bench|destseg bench (?!agreement)": "minutes to days: tests/bench",
    r"quantize|study-": "minutes: tests/export/int8, tests/export/studies",
    r"tune": "minutes: tests/bench/speed/test_tune.py, tests/deploy/test_tuning.py",
    r"fuse": "a second traced graph: tests/export/cli/test_cpu.py",
    r"--with-cpp|export cpp": "tests/cpp/test_cpp_project.py",
    r"--on ray": "a Ray cluster: tests/*/*/test_on_ray.py, make test-ray",
    r"s3://": "a bucket: tests/deploy/archive reads other URIs",
    r"FILE|ARTIFACT|FOLDER|\bDIR\b": "no line, but how one is made",
    r"-seed0": "a training with several seeds: tests/deploy/cli/test_train.py",
    r"\.pckl": "a checkpoint of the authors: tests/deploy/models/test_weights.py",
    r"--server-url": "asks a server: tests/deploy/runtime/server",
    r"destseg page": "serves until it is stopped: tests/deploy/serving",
    r"destseg bundle": "asks a package index: tests/export/test_bundle.py",
}
"""What a line contains -> why it is parsed only, and what runs the command."""

LINES = [line for line in command_lines() if not any(re.search(k, line) for k in PARSED_ONLY)]


@pytest.fixture(scope="module")
def workshop(checkpoint, tiny_artifact, tmp_path_factory) -> Path:
    """What the pages talk of: folders of parts, a list, categories, artifacts."""
    root = tmp_path_factory.mktemp("workshop")
    cable = write_sample(root / "data", size=64, train=6, good=3, per_defect=1)
    shutil.copytree(cable, root / "data/screw")
    shutil.copytree(root / "data", root / "demo/data")
    ng = [path for defect in DEFECTS for path in (cable / "test" / defect).iterdir()]
    sources = {
        "good": sorted((cable / "train/good").iterdir()),
        "new-good": sorted((cable / "test/good").iterdir()),
        "frames": sorted((cable / "test/good").iterdir()),
        "dtd/images": sorted((cable / "train/good").iterdir()),
        "parts/good": sorted((cable / "train/good").iterdir()),
    }
    for folder, paths in sources.items():
        (root / folder).mkdir(parents=True)
        for path in paths:
            shutil.copy(path, root / folder)
    for path in ng:
        mask = cable / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
        for folder, file, name in (
            ("ng", path, f"{path.parent.name}-{path.name}"),
            ("ng-masks", mask, f"{path.parent.name}-{path.name}"),
            (f"parts/{path.parent.name}", path, path.name),
        ):
            (root / folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, root / folder / name)
    with (root / "parts.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "label", "mask"))
        rows.writerows((f"good/{path.name}", "good", "") for path in sources["good"])
    (root / "noise").mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"noise/{i}.png")
    (root / "destseg.toml").write_text(blocks("toml")[0])
    for folder in (root / "artifacts", root / "demo/artifacts"):
        folder.mkdir()
        for source, name in (
            (checkpoint, "cable.safetensors"),
            (tiny_artifact, "cable-fp32.onnx"),
            (tiny_artifact, "parts-fp32.onnx"),
            (tiny_artifact, "cable-fused.onnx"),
            (tiny_artifact, "cable-int8.onnx"),
        ):
            os.link(source, folder / name)
            shutil.copy(spec_path(source), spec_path(folder / name))
    return root


@pytest.fixture
def here(workshop, tmp_path, monkeypatch) -> Iterator[Path]:
    """A copy of the folder, to work in; large files are hard links, which renaming lets be."""
    folder = tmp_path / "here"
    shutil.copytree(workshop, folder, copy_function=_link_or_copy)
    monkeypatch.chdir(folder)
    return folder


def _link_or_copy(source: str, target: str) -> str:
    if source.endswith((".onnx", ".safetensors")):
        os.link(source, target)
        return target
    return shutil.copy(source, target)


@pytest.fixture
def traced(onnx_artifact, monkeypatch) -> None:
    """Skip the tracing, which takes 6 s."""
    from destseg_export import to_onnx

    monkeypatch.setattr(to_onnx, "trace", lambda model, spec, opset: onnx.load(onnx_artifact))


@pytest.mark.parametrize("line", LINES)
def test_a_command_runs(line, here, traced):
    if "--backend openvino" in line:
        pytest.importorskip("openvino")
    if "parquet" in line:
        pytest.importorskip("pyarrow")
    _, command, words = resolve(line)
    if not words:
        return  # only its name is mentioned
    top, *rest = shlex.split(line)
    if command.name == "train":
        shutil.rmtree(here / "artifacts")
        rest += SHORT
    if command.name == "export":
        rest += COMPARED
    if command.name == "sample":  # which refuses to draw over another one
        shutil.rmtree(here / "demo/data")
        rest += DRAWN
    before = {path for path in here.rglob("*") if path.is_file()}
    done = CliRunner().invoke(COMMANDS[top], rest)
    assert done.exit_code == 0, done.output
    new = {path.name for path in here.rglob("*") if path.is_file()} - {path.name for path in before}
    wanted = _written(command.name or "", rest)
    assert not wanted or new & wanted, f"{line} wrote {sorted(new)}"


def _written(command: str, words: list[str]) -> set[str]:
    """Return names of which a command writes one at least; none where it only prints or changes."""
    if command == "evaluate":
        return {"metrics.json"} if "--output" in words else set()
    return {
        "train": {"cable-losses.csv", "parts-losses.csv", "cable-seed0-losses.csv"},
        "predict": {"predictions.csv", "part-000001.parquet"},
        "report": {"report.html"},
    }.get(command, set())


def test_most_lines_run_and_every_reason_is_needed():
    assert len(LINES) >= 25
    for pattern in PARSED_ONLY:
        assert any(re.search(pattern, line) for line in command_lines()), f"{pattern}: no line"


PYTHON = [
    pytest.param(code, id=f"{path.name}-{number}")
    for path, text in PAGES.items()
    for number, code in enumerate(blocks("python", text))
]


@pytest.mark.parametrize("code", PYTHON)
def test_a_python_example_runs(code, here, frames):
    scope = {"frames": frames}
    exec(compile(code, "page", "exec"), scope)
    prediction = scope["prediction"]
    assert prediction.score.dtype == "float32"
    assert prediction.anomaly_map.shape[1:] == (64, 64)


def test_other_python_compiles():
    """Blocks of ``py`` need a GPU or a package that is not everywhere."""
    told = blocks("py")
    assert len(told) >= 2
    for code in told:
        compile(code, "page", "exec")
        found = re.findall(r"^from (destseg_[\w.]+) import (\w+(?:, \w+)*)$", code, re.MULTILINE)
        for module, names in found:
            assert all(hasattr(import_module(module), one) for one in names.split(", "))
