"""Evaluation of a model whose answers are known: brightness on images with bright defects."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from destseg_deploy.errors import DataError, MetricError
from destseg_deploy.evaluation import (
    Evaluation,
    compute_metrics,
    score_images,
    score_test_set,
)
from destseg_deploy.predictor import Predictor
from destseg_deploy.runtime.fake import FakeRuntime, fake_spec
from destseg_deploy.spec import OutputSpec

SIZE = 32


def _write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def _part(background: int, level: int | None = None, area=np.s_[8:16, 8:16]) -> np.ndarray:
    """Return a grey part, with a square of another level where one is given."""
    part = np.full((SIZE, SIZE, 3), background, np.uint8)
    if level is not None:
        part[area] = level
    return part


def _mask(area=np.s_[8:16, 8:16]) -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[area] = 255
    return mask


@pytest.fixture
def category(tmp_path) -> Path:
    """Three good parts of level 20 to 22; two defects, of level 200 and 210, with their masks."""
    folder = tmp_path / "plate"
    for i in range(3):
        _write(folder / f"test/good/{i}.png", _part(20 + i))
    for name, level in (("dent", 200), ("spot", 210)):
        _write(folder / f"test/{name}/0.png", _part(20, level))
        _write(folder / f"ground_truth/{name}/0_mask.png", _mask())
    return folder


@pytest.fixture
def predictor() -> Predictor:
    return Predictor(FakeRuntime(fake_spec(SIZE, SIZE)))


def test_a_model_that_sees_every_defect_gets_full_marks(category, predictor):
    result = compute_metrics(score_test_set(predictor, category))
    assert (result.images, result.anomalous) == (5, 2)
    assert (result.image_auroc, result.image_f1_max) == (1, 1)
    assert 22 / 255 <= result.image_f1_threshold < 200 / 255
    assert result.pixel is not None
    values = [result.pixel.auroc, result.pixel.ap, result.pixel.iap, result.pixel.iap_at_recall]
    np.testing.assert_allclose(values, 1, atol=1e-9)
    assert result.pixel.pro == pytest.approx(1, abs=1e-3)
    assert (result.pixel.regions, result.pixel.pixels) == (2, 5 * SIZE**2)
    assert result.vanished == ()


def test_a_model_that_sees_the_opposite_gets_none(category, predictor):
    """Negative control: dark defects, which a brightness map ranks last."""
    for name in ("dent", "spot"):
        _write(category / f"test/{name}/0.png", _part(10, 0))
    result = compute_metrics(score_test_set(predictor, category))
    assert result.image_auroc == 0
    assert result.pixel is not None
    assert result.pixel.auroc == 0


def test_labels_are_the_folders_names_and_order_is_kept(category, predictor):
    reports = []
    test = score_test_set(
        predictor, category, batch_size=4, report=lambda *progress: reports.append(progress)
    )
    assert [s.defect for s in test.samples] == ["good", "good", "good", "dent", "spot"]
    assert test.labels.tolist() == [False, False, False, True, True]
    np.testing.assert_allclose(test.scores * 255, [20, 21, 22, 200, 210], atol=1e-4)
    assert (test.scores.dtype, test.maps.dtype) == (np.float32, np.float32)
    assert test.masks is not None
    assert test.masks.dtype == np.bool_
    assert test.masks.sum(axis=(1, 2)).tolist() == [0, 0, 0, 64, 64]
    assert reports == [(i + 1, 5, f"{i % 3 if i < 3 else 0}.png") for i in range(5)]


def test_the_batch_size_changes_nothing(category, predictor):
    one, four = (score_test_set(predictor, category, batch_size=n) for n in (1, 4))
    np.testing.assert_array_equal(one.maps, four.maps)
    np.testing.assert_array_equal(one.scores, four.scores)


def test_masks_come_at_the_size_of_the_maps(category):
    spec = replace(fake_spec(SIZE, SIZE), output=OutputSpec(16, 16, top_k=4))
    test = score_test_set(Predictor(FakeRuntime(spec)), category)
    assert test.masks is not None
    assert test.masks.shape == test.maps.shape == (5, 16, 16)
    assert test.masks[3].sum() == 16
    assert compute_metrics(test).pixel.auroc == pytest.approx(1)


def test_judged_counts_both_kinds_of_error(category, predictor):
    test = score_test_set(predictor, category)
    counts = {limit: test.judged(limit / 255) for limit in (0, 20.5, 21.5, 100, 205, 250)}
    assert [(j.false_rejects, j.missed) for j in counts.values()] == [
        (3, 0),
        (2, 0),
        (1, 0),
        (0, 0),
        (0, 1),
        (0, 2),
    ]


def test_a_score_at_the_threshold_is_normal(category, predictor):
    test = score_test_set(predictor, category)
    assert test.judged(float(test.scores[2])).false_rejects == 0
    assert test.judged(float(test.scores[1])).false_rejects == 1
    at_a_tenth = replace(test, scores=np.full(5, 0.1, np.float32))
    assert at_a_tenth.judged(0.1).false_rejects == 0


def test_defects_too_small_for_the_map_are_named(category):
    _write(category / "test/dent/1.png", _part(20, 250, np.s_[3, 3]))
    _write(category / "ground_truth/dent/1_mask.png", _mask(np.s_[3, 3]))
    spec = replace(fake_spec(SIZE, SIZE), output=OutputSpec(8, 8, top_k=4))
    test = score_test_set(Predictor(FakeRuntime(spec)), category)
    assert test.vanished == (category / "test/dent/1.png",)
    assert compute_metrics(test).vanished == (str(category / "test/dent/1.png"),)
    full = score_test_set(Predictor(FakeRuntime(fake_spec(SIZE, SIZE))), category)
    assert full.vanished == ()


def test_without_ground_truth_images_are_still_measured(category, predictor):
    (category / "ground_truth").rename(category / "elsewhere")
    test = score_test_set(predictor, category)
    assert test.masks is None
    assert test.vanished == ()
    result = compute_metrics(test)
    assert (result.image_auroc, result.pixel) == (1, None)
    assert [name for name, _ in result.rows()] == ["image AUROC", "image F1-max"]
    assert result.to_dict()["pixel"] is None


def test_only_normal_images_are_refused(category, predictor):
    for name in ("dent", "spot"):
        (category / "test" / name).rename(category / name)
    with pytest.raises(DataError, match=r"test: only normal images.*test/<defect>"):
        score_test_set(predictor, category)


def test_only_anomalous_images_are_refused(category, predictor):
    (category / "test/good").rename(category / "good")
    with pytest.raises(DataError, match=r"test: only anomalous images\. Expected test/good"):
        score_test_set(predictor, category)


def test_a_mask_of_another_size_is_refused(category, predictor):
    _write(category / "ground_truth/dent/0_mask.png", np.zeros((SIZE, SIZE + 8), np.uint8))
    with pytest.raises(DataError, match=r"0_mask\.png: the mask is 40x32 pixels, its image 32x32"):
        score_test_set(predictor, category)


def test_a_missing_mask_and_a_damaged_image_are_refused(category, predictor):
    (category / "ground_truth/spot/0_mask.png").unlink()
    with pytest.raises(DataError, match=r"spot/0\.png: no mask"):
        score_test_set(predictor, category)
    _write(category / "ground_truth/spot/0_mask.png", _mask())
    (category / "test/good/1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"good/1\.png"):
        score_test_set(predictor, category)


def test_maps_of_a_broken_model_are_refused(category, predictor):
    test = score_test_set(predictor, category)
    test.maps[0, 0, 0] = np.nan
    with pytest.raises(MetricError):
        compute_metrics(test)


def test_masks_without_any_pixel_are_refused(category, predictor):
    test = score_test_set(predictor, category)
    assert test.masks is not None
    with pytest.raises(MetricError):
        compute_metrics(replace(test, masks=np.zeros_like(test.masks)))


def test_each_defect_type_is_measured_against_the_normal_images(category, predictor):
    """Of three spots one is as dark as the second of three good parts, and ties with it."""
    for i, level in ((1, 205), (2, None)):
        _write(category / f"test/spot/{i}.png", _part(21, level))
        _write(category / f"ground_truth/spot/{i}_mask.png", _mask())
    dent, spot = compute_metrics(score_test_set(predictor, category)).defects
    assert (dent.defect, dent.images, dent.image_auroc) == ("dent", 1, 1)
    assert dent.lowest_score == np.float32(200 / 255)
    assert (spot.defect, spot.images) == ("spot", 3)
    assert spot.image_auroc == pytest.approx((1 + 1 + 1.5 / 3) / 3)
    assert spot.lowest_score == pytest.approx(21 / 255)


def test_rows_are_those_of_the_papers_table(category, predictor):
    result = compute_metrics(score_test_set(predictor, category))
    names = ["image AUROC", "image F1-max", "pixel AUROC", "pixel AP", "PRO@0.3", "IAP", "IAP@90"]
    assert [name for name, _ in result.rows()] == names
    pixel = replace(result.pixel, auroc=0.1, ap=0.2, pro=0.3, iap=0.4, iap_at_recall=0.5)
    marked = Evaluation(9, 4, 0.8, 0.9, 0.7, pixel)
    assert [value for _, value in marked.rows()] == [0.8, 0.9, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert marked.to_dict()["pixel"]["iap_at_recall"] == 0.5


def test_images_without_labels_are_scored(category, predictor):
    images = sorted((category / "test").glob("*/0.png"))
    done = []
    scores, peaks = score_images(predictor, images, report=done.append)
    np.testing.assert_allclose(scores * 255, [200, 20, 210], atol=1e-4)  # dent, good, spot
    np.testing.assert_allclose(peaks * 255, [200, 20, 210], atol=1e-4)
    assert (scores.dtype, peaks.dtype, done) == (np.float32, np.float32, [1, 2, 3])


def test_peaks_are_the_largest_values_and_scores_their_mean(tmp_path, predictor):
    _write(tmp_path / "a.png", _part(0, 250, np.s_[5, 5]))
    scores, peaks = score_images(predictor, [tmp_path / "a.png"])
    assert peaks[0] == np.float32(250 / 255)
    assert scores[0] == pytest.approx(250 / 255 / 4)  # top 4 pixels, three of them 0
