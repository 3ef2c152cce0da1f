"""Every metric against a slow definition, scikit-learn or ADEval, and the laws they must obey."""

from __future__ import annotations

from dataclasses import asdict, astuple
from fractions import Fraction
from random import Random

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    average_precision_score,
    precision_recall_curve,
    roc_auc_score,
)

from destseg_deploy.errors import MetricError, ShapeError
from destseg_deploy.evaluation.metrics import (
    PixelMetrics,
    f1_max,
    image_auroc,
    pixel_curves,
    pixel_metrics,
    top_k_mean,
)
from destseg_deploy.evaluation.ranking import rank_pixels

Case = tuple[np.ndarray, np.ndarray]

EXACT = 1e-12
RANKED = ("auroc", "ap", "pro", "iap", "iap_at_recall", "f1_max")


def random_case(seed: int, images: int = 3, size: int = 6, levels: int | None = None) -> Case:
    """Maps and masks with both classes; `levels` distinct values at most, so 2 ties heavily."""
    rng = np.random.default_rng(seed)
    masks = rng.random((images, size, size)) < 0.25
    masks[0, 0, :2] = [True, False]
    maps = (rng.random(masks.shape) + 0.3 * masks).astype(np.float32)
    if levels is not None:
        maps = np.floor(maps * levels).astype(np.uint8).astype(np.float32)
    return maps, masks


def big_case() -> Case:
    """Smooth maps of eight images, two normal, with blobs for regions."""
    rng = np.random.default_rng(7)
    masks = np.stack([cv2.GaussianBlur(n, (0, 0), 5) for n in rng.normal(size=(8, 64, 64))]) > 0.08
    masks[:2] = False
    noise = np.stack([cv2.GaussianBlur(n, (0, 0), 2) for n in rng.normal(size=(8, 64, 64))])
    maps = 1 / (1 + np.exp(-12 * noise - 2 * masks))
    return maps.astype(np.float32), masks


@st.composite
def cases(draw: st.DrawFn) -> Case:
    return random_case(
        draw(st.integers(0, 2**32 - 1)),
        draw(st.integers(1, 4)),
        draw(st.integers(2, 7)),
        draw(st.sampled_from([1, 2, 5, 60, None])),
    )


def metrics_of(maps: np.ndarray, masks: np.ndarray, **options: float) -> PixelMetrics:
    return pixel_metrics(rank_pixels(maps, masks), **options)


def ranked(maps: np.ndarray, masks: np.ndarray) -> list[float]:
    """All metrics that depend on the order of the scores alone."""
    metrics = asdict(metrics_of(maps, masks))
    return [metrics[name] for name in RANKED]


def region_masks(masks: np.ndarray, reach: int = 2) -> list[np.ndarray]:
    """One mask (N, H, W) per region, by flooding; a reach of 1 would be 4-connected."""
    left = {tuple(place) for place in np.argwhere(masks).tolist()}
    found = []
    while left:
        region, front = np.zeros_like(masks), [left.pop()]
        while front:
            image, y, x = front.pop()
            region[image, y, x] = True
            steps = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if abs(i) + abs(j) <= reach]
            near = left & {(image, y + i, x + j) for i, j in steps}
            left -= near
            front += near
        found.append(region)
    return found


def area(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.diff(x) @ (y[1:] + y[:-1]) / 2)


def slow_pro(maps: np.ndarray, masks: np.ndarray, max_fpr: float = 0.3, reach: int = 2) -> float:
    """One threshold after another, each with a full scan of every region."""
    regions = region_masks(masks, reach)
    fpr, overlap = [0.0], [0.0]
    for threshold in sorted(set(maps.ravel().tolist()), reverse=True):
        flagged = maps >= threshold
        fpr.append(float(flagged[~masks].mean()))
        overlap.append(float(np.mean([flagged[region].mean() for region in regions])))
    total = 0.0
    for x0, x1, y0, y1 in zip(fpr, fpr[1:], overlap, overlap[1:], strict=False):
        if x0 < max_fpr and x1 > x0:
            end = min(x1, max_fpr)
            y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
            total += (end - x0) * (y0 + y_end) / 2
    return total / max_fpr


def slow_iap(maps: np.ndarray, masks: np.ndarray, recall: str = "0.9") -> tuple[float, float]:
    """IAP and IAP@recall by their definition, with recall as a fraction."""
    cover = []
    for region in region_masks(masks):
        inside = maps[region].tolist()
        cover.append(max(s for s in inside if 2 * sum(v >= s for v in inside) > len(inside)))
    best, precisions, at_recall = 0.0, [], 0.0
    for rank, score in enumerate(sorted(cover)):
        flagged = maps >= score
        best = max(best, float((flagged & masks).sum() / flagged.sum()))
        precisions.append(best)
        if Fraction(len(cover) - rank, len(cover)) >= Fraction(recall):
            at_recall = best
    return float(np.mean(precisions)), at_recall


def f1_above(maps: np.ndarray, masks: np.ndarray, threshold: float) -> float:
    flagged = maps > threshold
    return float(2 * (flagged & masks).sum() / (flagged.sum() + masks.sum()))


@pytest.mark.parametrize("levels", [1, 2, 5, 60, None])
@pytest.mark.parametrize("seed", range(8))
def test_small_cases_equal_the_slow_definitions(seed: int, levels: int | None) -> None:
    maps, masks = random_case(seed, levels=levels)
    metrics = metrics_of(maps, masks)
    assert metrics.pro == pytest.approx(slow_pro(maps, masks), abs=EXACT)
    assert (metrics.iap, metrics.iap_at_recall) == pytest.approx(slow_iap(maps, masks), abs=EXACT)
    cuts = [-1.0, *maps.ravel().tolist()]
    assert metrics.f1_max == pytest.approx(max(f1_above(maps, masks, t) for t in cuts), abs=EXACT)
    assert f1_above(maps, masks, metrics.f1_threshold) == metrics.f1_max
    assert metrics.auroc == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=EXACT)
    expected = average_precision_score(masks.ravel(), maps.ravel())
    assert metrics.ap == pytest.approx(expected, abs=EXACT)
    assert (metrics.regions, metrics.pixels) == (len(region_masks(masks)), maps.size)


@pytest.mark.parametrize("max_fpr", [0.01, 0.05, 1 / 3, 1.0])
def test_pro_interpolates_at_its_limit(max_fpr: float) -> None:
    maps, masks = random_case(1, levels=5)
    pro = metrics_of(maps, masks, pro_max_fpr=max_fpr).pro
    assert pro == pytest.approx(slow_pro(maps, masks, max_fpr), abs=EXACT)


def test_negative_maps_count_only_anomalous_pixels_as_found() -> None:
    maps, masks = random_case(2)
    metrics = metrics_of(maps - 5, masks)
    expected = slow_iap(maps - 5, masks)
    assert (metrics.iap, metrics.iap_at_recall) == pytest.approx(expected, abs=EXACT)
    assert metrics.iap < 1


def test_diagonal_neighbours_are_one_region() -> None:
    # A diagonal pair and a block of four, found in that order.
    masks = np.zeros((1, 5, 5), dtype=bool)
    masks[0, [0, 1], [0, 1]] = masks[0, 3:, 3:] = True
    maps = np.where(masks, 1, np.arange(25).reshape(masks.shape) / 25).astype(np.float32)
    maps[0, 3:, 3:] = 0
    metrics = metrics_of(maps, masks)
    assert metrics.regions == 2
    assert metrics.pro == pytest.approx(1 / 2, abs=EXACT)
    assert slow_pro(maps, masks, reach=1) == pytest.approx(2 / 3, abs=EXACT)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7])
def test_a_region_is_found_when_more_than_half_is_covered(size: int) -> None:
    # One region with scores size, ..., 2, 1; half a step below each lies one normal pixel.
    scores = np.arange(size, 0, -1, dtype=np.float32)
    maps = np.concatenate((scores, scores - 0.5))[None, None]
    masks = np.concatenate((np.ones(size, bool), np.zeros(size, bool)))[None, None]
    found = size // 2 + 1  # the smallest count above one half: 4 -> 3, 5 -> 3
    assert metrics_of(maps, masks).iap == pytest.approx(found / (2 * found - 1), abs=EXACT)


@pytest.mark.parametrize("recall", ["1e-12", "0.5", "0.7", "0.8", "0.9", "0.95", "1.0"])
def test_iap_at_recall_reads_the_smallest_recall_that_suffices(recall: str) -> None:
    for regions in range(1, 41):
        # Region i has i + 1; k regions at or above it share k * k normals: precision 1 / (1 + k).
        scores = np.arange(1, regions + 1, dtype=np.float64)
        normal = np.repeat(scores, np.diff((regions - np.arange(regions + 1)) ** 2) * -1)
        maps = np.concatenate((np.stack((scores, 0 * scores), 1).ravel(), normal))[None, None]
        masks = np.zeros(maps.shape, dtype=bool)
        masks[0, 0, : 2 * regions : 2] = True
        kept = min(k for k in range(1, regions + 1) if Fraction(k, regions) >= Fraction(recall))
        got = metrics_of(maps, masks, iap_recall=float(recall)).iap_at_recall
        assert got == pytest.approx(1 / (1 + kept), abs=EXACT), regions


@pytest.mark.parametrize("levels", [3, 256, None])
def test_image_metrics_agree_with_scikit_learn(levels: int | None) -> None:
    maps, masks = random_case(11, images=1, size=20, levels=levels)
    scores, labels = maps.ravel(), masks.ravel()
    assert image_auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=EXACT)
    precision, recall, _ = precision_recall_curve(labels, scores)
    best = (2 * precision * recall / (precision + recall + 1e-300)).max()
    assert f1_max(scores, labels)[0] == pytest.approx(best, abs=EXACT)


def test_large_case_agrees_with_scikit_learn() -> None:
    maps, masks = big_case()
    metrics = metrics_of(maps, masks)
    assert metrics.auroc == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=EXACT)
    expected = average_precision_score(masks.ravel(), maps.ravel())
    assert metrics.ap == pytest.approx(expected, abs=EXACT)


def test_pro_agrees_with_adeval() -> None:
    au_pro = pytest.importorskip("adeval.au_pro", reason="ADEval is not installed")
    maps, masks = big_case()
    metrics = metrics_of(maps, masks)
    expected, _ = au_pro.calculate_au_pro(list(masks), list(maps), num_thresholds=1000)
    assert metrics.pro == pytest.approx(expected, abs=1e-3)
    # The tolerance tells a limit that is one hundredth off.
    assert abs(metrics_of(maps, masks, pro_max_fpr=0.31).pro - expected) > 1e-3


def test_counts_stay_exact_past_the_integers_of_float32() -> None:
    above = 2**24 + 1
    maps = np.ones((1, 1, above + 2), dtype=np.float32)
    masks = np.zeros(maps.shape, dtype=bool)
    maps[0, 0, :2], masks[0, 0, 0] = [0.5, 0.25], True
    metrics = metrics_of(maps, masks)
    assert metrics.ap == pytest.approx(1 / (above + 1), rel=EXACT)
    assert metrics.auroc == pytest.approx(1 / (above + 1), rel=EXACT)


@pytest.mark.parametrize(
    ("scores", "labels", "f1", "threshold"),
    [
        ([0.1, 0.2, 0.6, 0.8], [0, 0, 1, 1], 1.0, 0.4),
        ([0.2, 0.6], [0, 1], 1.0, 0.4),
        ([0.1, 0.2, 0.6, 0.8, 0.7], [0, 1, 0, 1, 0], 2 / 3, 0.75),  # of two, the higher
        ([0.1, 0.4, 0.5, 0.05], [0, 1, 1, 1], 6 / 7, np.nextafter(0.05, 0)),  # all flagged
    ],
)
def test_f1_threshold(scores: list[float], labels: list[int], f1: float, threshold: float) -> None:
    got = f1_max(np.array(scores), np.array(labels, dtype=bool))
    assert got == pytest.approx((f1, threshold), abs=1e-16)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_f1_threshold_separates_neighbouring_floats(dtype: type[np.floating]) -> None:
    steps = dtype(1) + np.arange(3, dtype=dtype) * np.finfo(dtype).eps
    # The middle of the first pair rounds down to even, that of the second up.
    for scores in (steps[:2], steps[1:]):
        f1, threshold = f1_max(scores, np.array([False, True]))
        assert f1 == 1
        assert (scores > threshold).tolist() == [False, True]
        assert [float(score) > threshold for score in scores] == [False, True]


def test_top_k_mean_averages_the_largest_values_of_each_map() -> None:
    maps = np.random.default_rng(0).random((3, 16, 16)).astype(np.float32)
    got = top_k_mean(maps, 7)
    assert got.dtype == np.float32
    assert got == pytest.approx([np.mean(sorted(m.ravel())[-7:]) for m in maps], abs=1e-6)
    assert top_k_mean(maps, 256) == pytest.approx(maps.mean(axis=(1, 2)), abs=1e-6)
    assert top_k_mean(maps) == pytest.approx(top_k_mean(maps, 100), abs=0)
    assert abs(top_k_mean(maps, 7) - top_k_mean(maps, 8)).min() > 1e-4


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("levels", [2, None])
def test_short_curves_are_complete_and_hold_the_areas(levels: int | None, sign: int) -> None:
    maps, masks = random_case(5, levels=levels)
    maps *= sign
    ranking = rank_pixels(maps, masks)
    metrics, curve = pixel_metrics(ranking, pro_max_fpr=1.0), pixel_curves(ranking)
    assert area(curve.roc_fpr, curve.roc_tpr) == pytest.approx(metrics.auroc, abs=EXACT)
    assert area(curve.pro_fpr, curve.pro_overlap) == pytest.approx(metrics.pro, abs=EXACT)
    assert (curve.pr_recall[0], curve.pr_precision[0]) == (0, curve.pr_precision[1])
    steps = np.diff(curve.pr_recall) @ curve.pr_precision[1:]
    assert steps == pytest.approx(metrics.ap, abs=EXACT)


def test_thinned_curves_stay_close_and_keep_their_ends() -> None:
    ranking = rank_pixels(*big_case())
    full, thin = pixel_curves(ranking, points=10**9), pixel_curves(ranking, points=200)
    for x, y in (("roc_fpr", "roc_tpr"), ("pr_recall", "pr_precision"), ("pro_fpr", "pro_overlap")):
        (x0, y0), (x1, y1) = ((getattr(c, x), getattr(c, y)) for c in (full, thin))
        assert x0.size > 1000
        assert 100 < x1.size <= 200
        assert (x1[0], x1[-1], y1[0], y1[-1]) == (x0[0], x0[-1], y0[0], y0[-1])
        assert np.all(np.diff(x1) >= 0)
        assert area(x1, y1) == pytest.approx(area(x0, y0), abs=1e-3)
    few = pixel_curves(ranking, points=10)
    assert abs(area(few.roc_fpr, few.roc_tpr) - area(full.roc_fpr, full.roc_tpr)) > 1e-3
    ends = pixel_curves(ranking, points=4)
    assert ends.roc_fpr.size <= 4
    assert (ends.roc_fpr[0], ends.roc_fpr[-1]) == (0, 1)
    assert all(array.size <= 1000 for array in astuple(pixel_curves(ranking)))


def test_inputs_are_left_as_they_were() -> None:
    maps, masks = random_case(3)
    before = maps.copy(), masks.copy()
    ranking = rank_pixels(maps, masks)
    pixel_metrics(ranking)
    pixel_curves(ranking)
    top_k_mean(maps, 3)
    np.testing.assert_array_equal(maps, before[0])
    np.testing.assert_array_equal(masks, before[1])


@settings(max_examples=60, deadline=None)
@given(cases(), st.randoms(use_true_random=False))
def test_order_of_images_and_reflections_do_not_matter(case: Case, random: Random) -> None:
    maps, masks = case
    order = random.sample(range(len(maps)), len(maps))
    moved = (array[order][:, ::-1].swapaxes(1, 2) for array in case)
    assert ranked(*moved) == pytest.approx(ranked(maps, masks), abs=EXACT)


@settings(max_examples=60, deadline=None)
@given(cases(), st.randoms(use_true_random=False))
def test_order_of_pixels_matters_to_regions_alone(case: Case, random: Random) -> None:
    order = random.sample(range(case[0].size), case[0].size)
    moved = metrics_of(*(array.ravel()[order].reshape(array.shape) for array in case))
    metrics = metrics_of(*case)
    names = ("auroc", "ap", "f1_max", "f1_threshold")
    assert [getattr(moved, n) for n in names] == [getattr(metrics, n) for n in names]


@settings(max_examples=60, deadline=None)
@given(cases())
def test_only_the_order_of_scores_matters(case: Case) -> None:
    maps, masks = case
    _, places = np.unique(maps, return_inverse=True)
    curved = -np.exp(-0.01 * places.reshape(maps.shape))  # strictly rising, negative
    assert ranked(curved, masks) == ranked(maps, masks)


def test_reversing_the_order_changes_every_metric() -> None:
    maps, masks = random_case(0)
    pairs = zip(ranked(-maps, masks), ranked(maps, masks), strict=True)
    assert all(abs(one - two) > 1e-3 for one, two in pairs)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_duplicated_images_change_nothing(case: Case) -> None:
    twice = (np.repeat(array, 2, axis=0) for array in case)
    assert ranked(*twice) == pytest.approx(ranked(*case), abs=EXACT)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_perfect_maps_score_one_constant_maps_chance_and_all_stay_in_range(case: Case) -> None:
    maps, masks = case
    assert ranked(masks.astype(np.float32), masks) == [1.0] * len(RANKED)
    constant = metrics_of(np.full_like(maps, 0.5), masks)
    assert constant.auroc == 0.5
    assert constant.pro == pytest.approx(0.15, abs=EXACT)
    shares = [constant.ap, constant.iap, constant.iap_at_recall]
    assert shares == pytest.approx([masks.mean()] * 3, abs=EXACT)
    assert all(0 <= value <= 1 for value in ranked(maps, masks))


@settings(max_examples=30, deadline=None)
@given(cases())
def test_image_and_pixel_metrics_agree_on_the_same_scores(case: Case) -> None:
    maps, masks = case
    metrics = metrics_of(maps, masks)
    assert image_auroc(maps.ravel(), masks.ravel()) == metrics.auroc
    best = (metrics.f1_max, metrics.f1_threshold)
    assert f1_max(maps.ravel(), masks.ravel()) == best


@pytest.mark.parametrize(("value", "missing"), [(False, "anomalous"), (True, "normal")])
def test_one_class_alone_is_refused(value: bool, missing: str) -> None:
    for metric in (image_auroc, f1_max):
        with pytest.raises(MetricError, match=f"labels: none of 3 images is {missing}"):
            metric(np.arange(3.0), np.full(3, value))
    with pytest.raises(MetricError, match=f"masks: none of 8 pixels is {missing}"):
        rank_pixels(np.zeros((2, 2, 2)), np.full((2, 2, 2), value))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(MetricError, match="scores: 1 of 3 values are NaN or infinite"):
        image_auroc(np.array([0.1, bad, 0.3]), np.array([True, False, True]))
    maps, masks = random_case(0)
    maps[1, 2, 3] = bad
    with pytest.raises(MetricError, match="maps: 1 of 108 values are NaN or infinite"):
        metrics_of(maps, masks)


def test_shapes_and_dtypes_that_disagree_are_refused() -> None:
    maps, masks = random_case(0)
    with pytest.raises(ShapeError, match=r"maps \(3, 6, 6\) and masks \(3, 6, 5\)"):
        metrics_of(maps, masks[:, :, 1:])
    with pytest.raises(ShapeError, match=r"masks: expected bool \(N, H, W\), got uint8"):
        metrics_of(maps, masks.astype(np.uint8))
    with pytest.raises(ShapeError, match=r"maps: expected floating \(N, H, W\), got uint8"):
        metrics_of((maps * 255).astype(np.uint8), masks)
    with pytest.raises(ShapeError, match=r"scores: expected floating \(N,\), got float32 \(3, 6"):
        image_auroc(maps, masks)
    with pytest.raises(ShapeError, match=r"scores \(3,\) and labels \(2,\)"):
        f1_max(np.zeros(3), np.array([True, False]))
    with pytest.raises(ShapeError, match="anomaly_map: expected floating"):
        top_k_mean(maps[0], 1)


@pytest.mark.parametrize("k", [0, 37])
def test_more_pixels_than_a_map_has_are_refused(k: int) -> None:
    with pytest.raises(ShapeError, match=f"k: expected 1 to 36, .* got {k}"):
        top_k_mean(random_case(0)[0], k)
