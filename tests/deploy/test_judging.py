"""Setting a threshold rewrites the spec alone, and a predictor loaded afterwards obeys it."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from destseg_deploy import judging
from destseg_deploy.cli.threshold import threshold
from destseg_deploy.data.images import list_images, read_image
from destseg_deploy.errors import DataError, MetricError, SpecError
from destseg_deploy.evaluation import score_images
from destseg_deploy.predictor import load
from destseg_deploy.runtime.cpu_options import OpenVinoOptions
from destseg_deploy.spec import ModelSpec, sha256, spec_path


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    """ONNX Runtime's threads wait by spinning, which is slow where other tests run too."""
    monkeypatch.setattr(judging, "load", partial(load, threads=1))


@pytest.fixture
def artifact(onnx_artifact, tmp_path) -> Path:
    """A copy of the exported model, to be changed."""
    path = tmp_path / onnx_artifact.name
    shutil.copy(onnx_artifact, path)
    shutil.copy(spec_path(onnx_artifact), spec_path(path))
    return path


def _verdicts(artifact: Path, category: Path) -> list[bool]:
    """Judge the category's test images with a predictor that was loaded just now."""
    images = [read_image(path) for path in sorted(category.glob("test/*/*.png"))]
    with load(artifact, threads=1) as predictor:
        return predictor.is_anomalous(predictor(images)).tolist()


def _check_only_the_threshold_changed(artifact: Path, original: Path, expected) -> None:
    assert sha256(artifact) == sha256(original)
    assert sorted(path.name for path in artifact.parent.iterdir()) == sorted(
        [artifact.name, spec_path(artifact).name]
    )
    before, after = ModelSpec.read(original), ModelSpec.read(artifact)
    assert after.threshold == judging.read(artifact) == expected
    assert after != before
    after_as_before = after.to_json().replace(_threshold_json(after), _threshold_json(before))
    assert after_as_before == before.to_json()
    after.check_artifact(artifact)


def _threshold_json(spec: ModelSpec) -> str:
    text = spec.to_json()
    return text[text.index('"threshold"') : text.index('"teacher"')]


def test_by_hand(artifact, onnx_artifact, category):
    result = judging.set_by_hand(artifact, 1.0, 0.25)
    assert (result.score, result.pixel) == (1.0, 0.25)
    _check_only_the_threshold_changed(artifact, onnx_artifact, result)
    assert not any(_verdicts(artifact, category))
    judging.set_by_hand(artifact, 0.0)
    assert all(_verdicts(artifact, category))


def test_from_normal(artifact, onnx_artifact, category):
    good = category / "train/good"
    result = judging.set_from_normal(artifact, good, rate=0.4)
    assert (result.images, result.false_reject_rate) == (6, 0.4)
    _check_only_the_threshold_changed(artifact, onnx_artifact, result)
    with load(artifact, threads=1) as predictor:
        scores, peaks = score_images(predictor, list_images(good))
    assert (scores > result.score).sum() == 1  # rank 5 of 6
    assert (peaks > result.pixel).sum() == 1
    strict = judging.set_from_normal(artifact, good, rate=0.7)
    assert strict.score < result.score


def test_from_labelled(artifact, onnx_artifact, category):
    judging.set_by_hand(artifact, 1.0)
    before = _verdicts(artifact, category)
    result = judging.set_from_labelled(artifact, category)
    assert result.rule.startswith("best F1")
    _check_only_the_threshold_changed(artifact, onnx_artifact, result)
    after = _verdicts(artifact, category)
    assert sum(after) > sum(before) == 0


def test_it_works_on_a_checkpoint_too(checkpoint, category, tmp_path):
    path = tmp_path / checkpoint.name
    path.symlink_to(checkpoint)
    shutil.copy(spec_path(checkpoint), spec_path(path))
    result = judging.set_from_normal(path, category / "test/good", rate=0.25)
    with load(path) as predictor:
        assert predictor.spec.threshold == result
        scores, _ = score_images(predictor, list_images(category / "test/good"))
    assert result.score == np.float32(scores.max())
    assert path.is_symlink()


def test_reading_changes_nothing(artifact):
    before = spec_path(artifact).read_bytes()
    assert judging.read(artifact) == ModelSpec.read(artifact).threshold
    assert spec_path(artifact).read_bytes() == before


def test_what_fails_leaves_the_spec_as_it_was(artifact, category, tmp_path):
    before = spec_path(artifact).read_bytes()
    only_good = tmp_path / "good-only"
    shutil.copytree(category / "test/good", only_good / "test/good")
    with pytest.raises(MetricError, match=r"score 1\.5"):
        judging.set_by_hand(artifact, 1.5)
    with pytest.raises(MetricError, match="false-reject rate 2"):
        judging.set_from_normal(artifact, category / "test/good", rate=2)
    with pytest.raises(DataError, match="no such folder"):
        judging.set_from_normal(artifact, category / "nowhere")
    with pytest.raises(DataError, match="only normal images"):
        judging.set_from_labelled(artifact, only_good)
    assert spec_path(artifact).read_bytes() == before


def test_a_missing_spec_is_an_error(artifact, category):
    spec_path(artifact).unlink()
    for call in (
        lambda: judging.read(artifact),
        lambda: judging.set_by_hand(artifact, 0.5),
        lambda: judging.set_from_normal(artifact, category / "test/good"),
        lambda: judging.set_from_labelled(artifact, category),
    ):
        with pytest.raises(SpecError, match="beside it"):
            call()
    assert not spec_path(artifact).exists()


def test_openvino_s_options_reach_the_predictor(artifact, category, monkeypatch):
    """A threshold belongs to the precision that runs."""
    asked = []

    def noted(path, *, device, openvino):
        asked.append((device, openvino))
        return load(path, threads=1)

    monkeypatch.setattr(judging, "load", noted)
    options = OpenVinoOptions(precision="bf16")
    judging.set_from_normal(
        artifact, category / "train/good", rate=0.3, device="openvino", openvino=options
    )
    judging.set_from_labelled(artifact, category, device="openvino", openvino=options)
    assert asked == [("openvino", options)] * 2


def test_the_command_hands_the_precision_on(artifact, category, monkeypatch):
    asked = []
    monkeypatch.setattr(judging, "set_from_normal", lambda *a, **options: asked.append(options))
    arguments = [str(artifact), "--normal", str(category / "train/good"), "--device", "openvino"]
    CliRunner().invoke(threshold, [*arguments, "--openvino-precision", "bf16"])
    assert asked[0]["openvino"] == OpenVinoOptions(precision="bf16")
