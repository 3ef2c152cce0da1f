"""Evaluation of a model whose answers are known: brightness on images with bright defects."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from destseg_deploy.data.mvtec import Sample
from destseg_deploy.errors import DataError, MetricError
from destseg_deploy.evaluation.metrics import pixel_curves, pixel_metrics, top_k_mean
from destseg_deploy.evaluation.ranking import rank_pixels
from destseg_deploy.evaluation.test_set import (
    TABLE_S1,
    Evaluation,
    TestSet,
    check_ts,
    compute_metrics,
    compute_metrics_and_curves,
    image_roc,
    score_test_set,
    sweep_top_k,
)
from destseg_deploy.predictor import Predictor
from destseg_deploy.spec import OutputSpec, default_top_k
from destseg_deploy.testing import FakeRuntime, fake_spec

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
    result, curves = compute_metrics_and_curves(test)
    assert (result.image_auroc, result.pixel, curves) == (1, None, None)
    assert [name for name, _ in result.rows()] == ["image AUROC", "image F1-max"]
    assert result.to_dict()["pixel"] is None


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        (("dent", "spot"), r"only normal test images.*test/<defect>"),
        (("good",), r"only anomalous test images, labelled dent, spot\. Expected"),
    ],
)
def test_one_kind_of_images_alone_is_refused(category, predictor, gone, message):
    for name in gone:
        (category / "test" / name).rename(category / name)
    with pytest.raises(DataError, match=message):
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


# --- curves


def test_metrics_and_curves_are_those_of_the_ranked_pixels(category, predictor):
    test = score_test_set(predictor, category)
    test.maps[:] = np.random.default_rng(0).random(test.maps.shape)
    result, curves = compute_metrics_and_curves(test)
    assert result == compute_metrics(test)
    assert 0.05 < result.pixel.pro < 0.95, "a perfect model has the same PRO at every limit"
    ranking = rank_pixels(test.maps, test.masks)
    assert result.pixel == pixel_metrics(ranking, pro_max_fpr=0.3, iap_recall=0.9)
    assert result.pixel.pro != pixel_metrics(ranking, pro_max_fpr=0.4).pro
    expected = pixel_curves(ranking)
    for name in vars(expected):
        np.testing.assert_array_equal(getattr(curves, name), getattr(expected, name))


def _scored(maps: np.ndarray, labels: list[bool], scores: np.ndarray | None = None) -> TestSet:
    """Return a test set without files behind it."""
    kinds = [Sample(Path(f"{i}.png"), "dent" if bad else "good") for i, bad in enumerate(labels)]
    maps = maps.astype(np.float32)
    scores = maps.max(axis=(1, 2)) if scores is None else scores.astype(np.float32)
    return TestSet(tuple(kinds), scores, maps, None)


def test_the_area_under_the_image_roc_is_its_auroc():
    """Scores tie within and between the classes."""
    rng = np.random.default_rng(3)
    labels = [bool(i % 3) for i in range(60)]
    scores = rng.integers(0, 12, 60) / 12 + 0.1 * np.array(labels)
    scores[:20] = np.round(scores[:20], 1)
    test = _scored(np.zeros((60, 2, 2)), labels, scores)
    fpr, tpr = image_roc(test)
    area = np.diff(fpr) @ (tpr[1:] + tpr[:-1]) / 2
    expected = compute_metrics(test).image_auroc
    assert 0.5 < expected < 0.9
    assert area == pytest.approx(expected, abs=1e-12)
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert (np.diff(fpr) >= 0).all()
    assert (np.diff(tpr) >= 0).all()


def test_the_image_roc_goes_through_every_verdict(category, predictor):
    test = score_test_set(predictor, category)
    scores = test.scores.copy()
    scores[3] = scores[1]  # a defect among the normal scores
    test = replace(test, scores=scores)
    fpr, tpr = image_roc(test)
    points = set(zip(fpr.round(9), tpr.round(9), strict=True))
    for threshold in scores:
        judged = test.judged(float(threshold))
        assert (round(judged.false_rejects / 3, 9), 1 - judged.missed / 2) in points


# --- the T sweep of Table S1


def _spots(size: int) -> TestSet:
    """Return normal maps with a few hot pixels, anomalous ones with a wide warm spot.

    The more pixels are averaged, the better they are told apart.
    """
    maps = np.zeros((8, size, size))
    for i in range(4):
        maps[i, 0, : 4 + i] = 0.9
        maps[4 + i, : 4 + 3 * i, :8] = 0.5
    return _scored(maps, [False] * 4 + [True] * 4)


def test_the_sweep_is_the_mean_of_the_largest_pixels():
    test = _spots(128)  # a quarter of the pixels of 256 x 256
    rows = sweep_top_k(test, (8, 40, 100, 400))
    assert [(row.t, row.k) for row in rows] == [(8, 2), (40, 10), (100, 25), (400, 100)]
    for row in rows:
        scores = np.sort(test.maps.reshape(8, -1))[:, -row.k :].mean(axis=1)
        pairs = [np.sign(bad - good) for bad in scores[4:] for good in scores[:4]]
        assert row.image_auroc == pytest.approx(np.mean(pairs) / 2 + 0.5)
    values = [row.image_auroc for row in rows]
    assert values[0] == 0
    assert values[-1] == 1
    assert 0 < values[1] < 1, "a row must not be told by the others"


def test_the_sweep_is_that_of_the_paper_unless_another_is_asked_for():
    assert TABLE_S1 == (20, 50, 100, 200)
    rows = sweep_top_k(_spots(256))
    assert [(row.t, row.k) for row in rows] == [(20, 20), (50, 50), (100, 100), (200, 200)]


@pytest.mark.parametrize("size", [(32, 32), (128, 128), (256, 256), (100, 700), (5, 5)])
def test_t_100_takes_as_many_pixels_as_a_model_of_that_size(size):
    test = _scored(np.random.default_rng(0).random((2, *size)), [False, True])
    (row,) = sweep_top_k(test, (100,))
    assert row.k == default_top_k(*size)


def test_every_pixel_is_the_largest_t():
    (row,) = sweep_top_k(_scored(np.stack([np.eye(4), np.ones((4, 4))]), [False, True]), (65536,))
    assert (row.k, row.image_auroc) == (16, 1)


def test_the_row_of_t_100_repeats_the_artifacts_own_auroc(category, checkpoint):
    """The score made inside the model against that of its map, a 64 x 64 one."""
    from destseg_deploy.loading import load

    rng = np.random.default_rng(5)
    for i in range(6):
        _write(category / f"test/good/n{i}.png", rng.integers(0, 40 * (i + 1), (SIZE, SIZE, 3)))
        _write(category / f"test/dent/n{i}.png", rng.integers(0, 30 * (i + 3), (SIZE, SIZE, 3)))
    (category / "ground_truth").rename(category / "elsewhere")
    with load(checkpoint) as predictor:
        test = score_test_set(predictor, category)
        assert predictor.spec.map_size == predictor.spec.network_size == (64, 64)
        used = predictor.spec.output.top_k
    wider, adopted = sweep_top_k(test, (400, 100))
    own = compute_metrics(test).image_auroc
    assert 0.02 < own < 0.98
    assert (adopted.k, adopted.image_auroc) == (used, own)
    np.testing.assert_allclose(top_k_mean(test.maps, adopted.k), test.scores, atol=1e-6)
    other = top_k_mean(test.maps, wider.k)
    assert np.abs(other - test.scores).min() > 1e-6, "any T would do"


@pytest.mark.parametrize(
    ("ts", "words"),
    [
        ((), "T: no value"),
        ((20, 0), "T = 0: expected 1 to 65536"),
        ((-5,), "T = -5: expected 1 to 65536"),
        ((65537,), "T = 65537: expected 1 to 65536, the pixels of a 256 x 256 map"),
        ((20, 50, 20), "T = 20: given twice"),
    ],
)
def test_a_t_that_makes_no_sense_is_refused(ts, words):
    with pytest.raises(MetricError, match=words):
        check_ts(ts)
    with pytest.raises(MetricError, match=words):
        sweep_top_k(_spots(16), ts)
