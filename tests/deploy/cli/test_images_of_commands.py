"""What the commands do with the images they are given: depth, names and remarks."""

import importlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from destseg_deploy.cli.evaluate import evaluate
from destseg_deploy.cli.predict import predict
from destseg_deploy.cli.threshold import threshold
from destseg_deploy.predictor import Predictor
from destseg_deploy.spec import ModelSpec, Threshold
from destseg_deploy.testing import FakeRuntime, fake_spec

COMMANDS = {"predict": predict, "evaluate": evaluate, "threshold": threshold}
SPEC = replace(fake_spec(), threshold=Threshold(0.5, 0.5, "set by hand"))


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch) -> list[FakeRuntime]:
    """Every command loads a model whose score is the image's brightness; work in a folder."""
    made: list[FakeRuntime] = []

    def load(artifact, **how):
        made.append(FakeRuntime(SPEC))
        return Predictor(made[-1])

    for name in COMMANDS:
        monkeypatch.setattr(importlib.import_module(f"destseg_deploy.cli.{name}"), "load", load)
    monkeypatch.setattr(ModelSpec, "read", classmethod(lambda cls, path: SPEC))
    monkeypatch.setattr(ModelSpec, "write", lambda spec, path: None)
    monkeypatch.chdir(tmp_path)
    return made


def _run(name: str, *arguments: object) -> Result:
    return CliRunner().invoke(COMMANDS[name], ["a.onnx", *map(str, arguments)])


def _done(name: str, *arguments: object) -> Result:
    result = _run(name, *arguments)
    assert result.exit_code == 0, result.output
    return result


def _refused(name: str, *arguments: object) -> str:
    result = _run(name, *arguments)
    assert result.exit_code == 1, result.output
    assert result.stderr.count("\n") == 1
    return result.stderr


def _camera(path: Path, level: int) -> Path:
    """Write pixels of a 12-bit camera; ``level`` is of 255."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((32, 32), round(level * 4095 / 255), np.uint16))
    return path


def _category(root: Path, mask: np.ndarray) -> Path:
    for kind, level in (("good", 50), ("dent", 200)):
        _camera(root / f"test/{kind}/0.png", level)
    (root / "ground_truth/dent").mkdir(parents=True)
    Image.fromarray(mask).save(root / "ground_truth/dent/0_mask.png")
    return root


def _mask(level: int = 255) -> np.ndarray:
    mask = np.zeros((32, 32), np.uint8)
    mask[8:16, 8:16] = level
    return mask


# --- the depth of 16-bit files


def test_predict_scales_by_the_stated_depth():
    _camera(Path("in/part.png"), 204)
    assert "State which: --bit-depth 12 or --bit-depth 16" in _refused("predict", "in")
    assert not Path("predictions").exists()
    assert _done("predict", "in", "--bit-depth", 12).stdout.startswith("0.8000  NG")
    assert _done("predict", "in", "--bit-depth", 16).stdout.startswith("0.0510  OK")
    assert "expected at most 1023 with a bit depth of 10" in _refused(
        "predict", "in", "--bit-depth", 10
    )
    assert _run("predict", "in", "--bit-depth", 11).exit_code == 2


def test_threshold_and_evaluate_scale_alike():
    folder = _category(Path("data/fake"), _mask())
    assert "State which" in _refused("threshold", "--normal", folder / "test/good")
    _done("threshold", "--normal", folder / "test/good", "--bit-depth", 12)
    assert "State which" in _refused("evaluate", "--output", "out")
    assert "image AUROC  1.0000" in _done("evaluate", "--bit-depth", 12, "--output", "out").stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_says_what_is_refused(name):
    text = " ".join(_done(name, "-h").stdout.split())
    assert "orientation tag or several pages are refused" in text
    assert "--bit-depth" in text


# --- names


@pytest.mark.parametrize(
    "arguments",
    [("predict", ""), ("predict", "in", ""), ("predict", " ")],
)
def test_an_empty_name_is_refused(arguments):
    _camera(Path("in/part.png"), 204)
    assert "an empty name" in _refused(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ("predict", "in", "--output", ""),
        ("threshold", "--normal", ""),
        ("threshold", "--labelled", ""),
        ("evaluate", "--data", ""),
    ],
)
def test_an_empty_folder_name_is_misuse(arguments):
    result = _run(*arguments)
    assert result.exit_code == 2
    assert "an empty name; '.' is the current folder" in result.stderr


def test_an_empty_category_is_not_the_data_folder():
    _category(Path("data"), _mask())
    assert "category '': an empty name" in _refused("evaluate", "--category", "")


def test_predicting_the_current_folder_twice_scores_the_same_images():
    Image.fromarray(np.full((32, 32), 204, np.uint8)).save("part.png")
    for _ in range(2):
        for output in (".", "predictions", "in/out"):
            assert _done("predict", ".", "--output", output).stdout == "0.8000  NG  part.png\n"
            assert Path(output, "overview.png").is_file()


def test_a_pipe_is_refused():
    import os

    os.mkfifo("pipe.png")
    assert "pipe.png: a pipe, expected an image file" in _refused("predict", "pipe.png")
    assert "pipe.png: a pipe, expected an image file" in _refused("predict", ".")


def test_a_size_that_the_artifact_refuses_is_said_with_the_files_name(monkeypatch):
    Image.fromarray(np.zeros((40, 50), np.uint8)).save("part.png")
    monkeypatch.setattr(Predictor, "resizes", property(lambda self: False))
    assert "part.png: 50x40 pixels, this artifact was exported for" in _refused("predict", ".")


# --- remarks


def test_a_squeeze_is_remarked_once_a_run():
    for i, size in enumerate(((20, 500), (20, 500), (300, 10))):
        Image.fromarray(np.zeros(size, np.uint8)).save(f"{i}.png")
    for _ in range(2):
        result = _done("predict", ".")
        assert result.stderr.count("note: images of 500x20 pixels are resized to 32x32") == 1
        assert result.stderr.count("note:") == 1


def test_a_mask_of_more_than_half_is_remarked_with_its_name():
    _category(Path("data/fake"), 255 - _mask())
    result = _done("evaluate", "--bit-depth", 12, "--output", "out")
    remark = "note: data/fake/ground_truth/dent/0_mask.png: 94% of the image is marked"
    assert result.stderr.count(remark) == 1
    assert "Warning" not in result.stderr


def test_all_masks_are_read_before_the_first_inference(runs, monkeypatch):
    folder = _category(Path("data/fake"), np.zeros((8, 8), np.uint8))
    seen = []
    monkeypatch.setattr(FakeRuntime, "infer", lambda self, images: seen.append(images))
    assert "0_mask.png: the mask is 8x8 pixels, its image 32x32" in _refused(
        "evaluate", "--bit-depth", 12
    )
    noise = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "ground_truth/dent/0_mask.png")
    assert "0_mask.png: the mask has 0, 1" in _refused("evaluate", "--bit-depth", 12)
    assert seen == []
