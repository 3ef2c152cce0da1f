"""All commands take a checkpoint that was trained on tiles, and know it by its spec alone."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

pytest.importorskip("torch")

from destseg_deploy import load
from destseg_deploy.cli.main import main
from destseg_deploy.evaluation.metrics import top_k_mean
from destseg_deploy.evaluation.test_set import (
    TestSet,
    compute_metrics,
    score_test_set,
    sweep_top_k,
)
from destseg_deploy.models.weights import checkpoint_spec, save_checkpoint
from destseg_deploy.spec import FileRecord, ModelSpec, RegionSpec, TilingSpec
from destseg_deploy.thresholds import by_hand
from destseg_deploy.training.views import View

FRAME, WORKING = (96, 128), (72, 96)


@pytest.fixture(scope="module")
def plates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames of noise, with a flat square on the NG ones."""
    folder = tmp_path_factory.mktemp("plates") / "plate"
    rng = np.random.default_rng(0)
    mask = np.zeros(FRAME, np.uint8)
    mask[40:64, 40:64] = 255
    for i in range(3):
        good, dent = rng.integers(0, 256, (2, *FRAME, 3)).astype(np.uint8)
        dent[mask > 0] = 128
        for name, pixels in (
            (f"test/good/{i}.png", good),
            (f"test/dent/{i}.png", dent),
            (f"ground_truth/dent/{i}_mask.png", mask),
        ):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def tiled(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 64 px tiles, with a region."""
    view = View((64, 64), 6, FRAME, TilingSpec(0.75, 16), RegionSpec(0, 0, 112, 96))
    spec = checkpoint_spec("plate", view.network, FileRecord("", ""), threshold=by_hand(0.5))
    path = tmp_path_factory.mktemp("tiled") / "plate.safetensors"
    save_checkpoint(model, replace(spec, **view.entries()), path)
    return path


@pytest.fixture(scope="module")
def scored(tiled: Path, plates: Path) -> TestSet:
    """The test set as Python scores it."""
    with load(tiled) as predictor:
        return score_test_set(predictor, plates)


def done(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_maps_and_masks_are_those_of_the_scaled_frame(scored: TestSet) -> None:
    assert scored.maps.shape == (6, *WORKING)
    assert not scored.maps[:, :, 84:].any()  # outside of the region
    assert scored.maps[:, :, :84].all()
    assert scored.masks is not None
    assert scored.masks.shape == (6, *WORKING)
    assert scored.masks[3, 30:48, 30:48].all()
    assert scored.masks[3].sum() == 18 * 18


def test_t_counts_pixels_of_a_tile(tiled: Path, scored: TestSet) -> None:
    """Not of the frame, which has more of them."""
    (adopted,) = sweep_top_k(scored, (100,))
    used = ModelSpec.read(tiled).output.top_k
    assert (adopted.k, adopted.image_auroc) == (used, compute_metrics(scored).image_auroc)
    np.testing.assert_allclose(top_k_mean(scored.maps, used), scored.scores, atol=1e-6)
    other = top_k_mean(scored.maps, 2 * used)
    assert np.abs(other - scored.scores).min() > 1e-6, "control: any T would do"


def test_evaluate_writes_its_report(
    tiled: Path, plates: Path, scored: TestSet, tmp_path: Path
) -> None:
    done("evaluate", tiled, plates, "--output", tmp_path / "report")
    metrics = json.loads((tmp_path / "report/metrics.json").read_text())
    expected = compute_metrics(scored)
    assert metrics["image_auroc"] == expected.image_auroc
    assert expected.pixel is not None, "there are masks"
    assert metrics["pixel"]["auroc"] == pytest.approx(expected.pixel.auroc)
    assert (tmp_path / "report/report.html").is_file()


def test_threshold_and_predict(tiled: Path, plates: Path, scored: TestSet, tmp_path: Path) -> None:
    done("threshold", tiled, "--good", plates / "test/good", "--false-reject-rate", 0.3)
    spec = ModelSpec.read(tiled)
    assert spec.threshold is not None
    assert spec.threshold.images == 3
    done("predict", tiled, plates / "test", "--output", tmp_path)
    with (tmp_path / "predictions.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    found = sorted(float(row["score"]) for row in rows)
    assert found == pytest.approx(sorted(scored.scores.tolist()), abs=1e-5)


def test_another_frame_is_refused_in_one_line(tiled: Path, tmp_path: Path) -> None:
    Image.new("RGB", (100, 96)).save(tmp_path / "two.png")
    result = CliRunner().invoke(main, ["threshold", str(tiled), "--good", str(tmp_path)])
    assert result.exit_code == 1
    assert "100x96 pixels" in result.output
    assert "128x96" in result.output
    assert result.output.strip().count("\n") == 0
