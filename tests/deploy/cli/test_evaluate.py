"""destseg-evaluate as a user meets it: the sweep, the folder of pictures, and what is refused.

tests/deploy/cli/test_cli.py has its table and its place among the other commands.
"""

import importlib
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from destseg_deploy.cli.evaluate import evaluate
from destseg_deploy.predictor import Predictor
from destseg_deploy.spec import Threshold, TrainingRecord
from destseg_deploy.testing import FakeRuntime, fake_spec
from tests.unchanged import unchanged

FILES = ["curves.png", "metrics.json", "report.html", "worst.png"]


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """A category named as the fake model's, which stands in for an artifact."""
    rng = np.random.default_rng(0)
    mask = np.zeros((32, 32), np.uint8)
    mask[8:16, 8:16] = 255
    for i in range(4):
        for kind, level in (("good", 0), ("dent", 60)):
            part = rng.integers(0, 200, (32, 32, 3)).astype(np.uint8)
            part[8:16, 8:16] = np.minimum(part[8:16, 8:16] + level * i, 255)
            _write(tmp_path / f"data/fake/test/{kind}/{i}.png", part)
        _write(tmp_path / f"data/fake/ground_truth/dent/{i}_mask.png", mask)
    spec = replace(fake_spec(), threshold=Threshold(0.8, 0.5, "by hand"))
    module = importlib.import_module("destseg_deploy.cli.evaluate")
    monkeypatch.setattr(module, "load", lambda artifact, **options: Predictor(FakeRuntime(spec)))
    return tmp_path / "data"


def _write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(evaluate, [str(argument) for argument in arguments])


def _done(*arguments: object) -> Result:
    result = _run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def _refused(*arguments: object, status: int = 1) -> str:
    """Return the last line on stderr of a command that must print nothing else of use."""
    result = _run(*arguments)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert (result.exit_code, result.stdout) == (status, "")
    lines = result.stderr.splitlines()
    assert len(lines) == 1 or status == 2
    assert lines[-1].startswith("Error: ")
    return lines[-1]


def test_the_sweep_comes_after_the_table_when_asked_for(data, tmp_path):
    with unchanged(tmp_path):
        plain = _done("fake.onnx", "--data", data).stdout
        asked = _done("fake.onnx", "--data", data, "--sweep-t", "100,6400,20000").stdout
        found = json.loads(
            _done("fake.onnx", "--data", data, "--sweep-t", "100,6400,20000", "--json").stdout
        )
    assert asked.startswith(plain)
    lines = asked.removeprefix(plain).splitlines()
    assert lines[0].split() == "T at 256x256 pixels AUROC of 32x32 maps".split()
    assert [line.split() for line in lines[1:]] == [
        [str(row["t"]), str(row["k"]), f"{row['image_auroc']:.4f}"] for row in found["sweep_t"]
    ]
    assert [(row["t"], row["k"]) for row in found["sweep_t"]] == [
        (100, 2),
        (6400, 100),
        (20000, 312),
    ]
    assert len({row["image_auroc"] for row in found["sweep_t"]}) > 1, "rows must differ"


def test_columns_stand_below_each_other(data):
    lines = _done("fake.onnx", "--data", data, "--sweep-t", "100,6400").stdout.splitlines()
    place = lines.index(next(line for line in lines if line.startswith("  defect ")))
    ends = {line.rstrip().find(".") for line in lines[place + 1 : place + 2] + lines[place + 3 :]}
    assert len(ends) == 1


def test_output_is_written_and_named_on_stderr(data, tmp_path):
    out = tmp_path / "new/out"
    plain = _done("fake.onnx", "--data", data)
    result = _done("fake.onnx", "--data", data, "--output", out)
    assert result.stdout == plain.stdout
    # eight images tell little, whatever they are
    assert plain.stderr.startswith("note: image AUROC ")
    assert result.stderr == f"{plain.stderr}written to {out}\n"
    assert sorted(path.name for path in out.iterdir()) == FILES


def test_json_on_stdout_is_a_part_of_the_file(data, tmp_path):
    arguments = ("fake.onnx", "--data", data, "--output", tmp_path / "out", "--sweep-t", "100,200")
    printed = json.loads(_done(*arguments, "--json").stdout)
    written = json.loads((tmp_path / "out/metrics.json").read_text())
    assert {key: written[key] for key in printed} == printed
    assert printed["threshold"]["score"] == 0.8
    assert len(written["scores"]) == 8


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("0", "T = 0: expected 1 to 65536"),
        ("20,-1", "expected whole numbers with commas"),
        ("65537", "T = 65537: expected 1 to 65536"),
        ("20,50,20", "T = 20: given twice"),
        ("20;50", "'20;50': expected whole numbers with commas"),
        ("1.5", "'1.5': expected whole numbers"),
        ("20,,50", "'20,,50': expected whole numbers"),
        ("", "'': expected whole numbers"),
    ],
)
def test_a_wrong_sweep_is_a_usage_error(data, tmp_path, value, words):
    with unchanged(tmp_path):
        line = _refused("fake.onnx", "--data", data, "--sweep-t", value, status=2)
    assert words in line
    assert "--sweep-t" in line


# --- any folder


def _numbers(*arguments: object) -> dict:
    return json.loads(_done("fake.onnx", *arguments, "--json").stdout)


def test_folders_and_lists_are_measured_as_the_category_is(data, tmp_path):
    test, truth = data / "fake/test", data / "fake/ground_truth"
    expected = _numbers("--data", data)
    rows = [f"{p},{p.parent.name}," for p in sorted(test.glob("good/*.png"))]
    rows += [f"{p},dent,{truth / 'dent' / p.stem}_mask.png" for p in sorted(test.glob("dent/*"))]
    (tmp_path / "parts.csv").write_text("\n".join(("path,label,mask", *rows)))
    named = ("--good", test / "good", "--ng", test / "dent")
    for call in (
        (data / "fake",),
        (test, "--masks", truth),
        (*named, "--masks", truth),
        (tmp_path / "parts.csv",),
    ):
        assert {**_numbers(*call), "data": expected["data"]} == expected
    without = _numbers(*named)
    assert without["pixel"] is None
    assert without["image_auroc"] == expected["image_auroc"]
    assert expected["pixel"]["auroc"] > 0


def test_what_has_no_labels_says_how_to_give_them(data):
    line = _refused("fake.onnx", data / "fake/test/good")
    assert "images without labels" in line
    assert "--good FOLDER --ng FOLDER" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("FOLDER", "--category", "x"), "Give one of"),
        (("FOLDER", "--good", "x", "--ng", "y"), "Give one of"),
        (("--good", "x"), "--good and --ng go together"),
        (("--ng", "x"), "--good and --ng go together"),
        (("FOLDER", "--data", "x"), "--data goes with --category"),
        (("--good", "x", "--ng", "y", "--data", "x"), "--data goes with --category"),
    ],
)
def test_labels_that_are_given_twice_or_by_half_are_misuse(data, arguments, words):
    assert words in _refused("fake.onnx", *arguments, status=2)


def test_accuracy_near_chance_and_images_trained_on_are_remarked(data, monkeypatch):
    spec = replace(
        fake_spec(),
        training=TrainingRecord(data=str(data / "fake/test/good"), images=3, held_out=("3.png",)),
    )
    module = importlib.import_module("destseg_deploy.cli.evaluate")
    monkeypatch.setattr(module, "load", lambda artifact, **how: Predictor(FakeRuntime(spec)))
    good, bad = data / "fake/test/good", data / "fake/test/dent"
    said = _done("fake.onnx", "--good", good, "--ng", bad).stderr.splitlines()
    assert "3 of 8 images were trained on" in said[-1]
    shutil.copytree(good, data / "same")
    said = _done("fake.onnx", "--good", good, "--ng", data / "same").stderr.splitlines()
    assert said[0].startswith("note: image AUROC 0.50 is near chance: guessing gives 0.5")


def test_an_unknown_category_is_named(data, tmp_path):
    with unchanged(tmp_path):
        line = _refused(
            "fake.onnx", "--data", data, "--category", "nut", "--output", tmp_path / "out"
        )
    assert "no category 'nut'. Found: fake." in line


def test_an_output_that_cannot_be_written_is_named(data, tmp_path):
    file = tmp_path / "file"
    file.write_text("in the way")
    with unchanged(tmp_path):
        assert str(file) in _refused("fake.onnx", "--data", data, "--output", file / "out")
        line = _refused("fake.onnx", "--data", data, "--output", file, status=2)
        assert str(file) in line


def test_without_matplotlib_the_extra_is_named(data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with unchanged(tmp_path):
        line = _refused("fake.onnx", "--data", data, "--output", tmp_path / "out")
        _done("fake.onnx", "--data", data)
    assert "pip install 'destseg-deploy[plots]'" in line


def test_a_checkpoint_is_evaluated_into_a_folder(checkpoint, category, tmp_path):
    """No stand-in: the file, PyTorch, and the sample category."""
    out = ("--data", category.parent, "--output", tmp_path)
    result = _done(checkpoint, *out, "--sweep-t", "100")
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["sweep_t"][0]["image_auroc"] == written["image_auroc"]
    assert result.stdout.splitlines()[-1].split() == ["100", "6", f"{written['image_auroc']:.4f}"]
