"""The counts behind every metric, against counting one threshold after another."""

from __future__ import annotations

import numpy as np
import pytest

from destseg_deploy.evaluation.ranking import rank_images, rank_pixels

# Two regions in the first image, joined to nothing; one diagonal pair in the second.
MASKS = np.array(
    [
        [[1, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 1]],
        [[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]],
        [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
    ],
    dtype=bool,
)
REGIONS = [
    [(0, 0, 0), (0, 0, 1), (0, 1, 0)],
    [(0, 1, 3), (0, 2, 3)],
    [(1, 1, 0), (1, 2, 1)],
]


def maps_with(levels: int, seed: int, dtype: type[np.floating]) -> np.ndarray:
    """Return maps with ``levels`` distinct values, of both signs."""
    values = np.random.default_rng(seed).integers(-levels // 2, levels // 2 + 1, MASKS.shape)
    return np.asarray(values / 8, dtype)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("levels", [2, 6, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_counts_equal_counting(levels: int, seed: int, dtype: type[np.floating]) -> None:
    maps = maps_with(levels, seed, dtype)
    ranking = rank_pixels(maps, MASKS)
    normal, anomalous = maps[~MASKS], maps[MASKS]
    thresholds = sorted(set(anomalous.tolist()), reverse=True)
    assert ranking.thresholds.dtype == dtype
    assert ranking.thresholds.tolist() == thresholds
    assert ranking.tp.tolist() == [(anomalous >= t).sum() for t in thresholds]
    assert ranking.fp.tolist() == [(normal >= t).sum() for t in thresholds]
    assert ranking.fp_above.tolist() == [(normal > t).sum() for t in thresholds]
    assert ranking.normal.tolist() == sorted(normal.tolist())
    shares = [[np.mean([maps[p] >= t for p in region]) for region in REGIONS] for t in thresholds]
    np.testing.assert_allclose(ranking.overlap, np.mean(shares, axis=1), atol=1e-12)
    assert ranking.overlap[-1] == 1
    covered = [
        max(t for t, row in zip(thresholds, shares, strict=True) if row[k] > 0.5)
        for k in range(len(REGIONS))
    ]
    assert sorted(ranking.majority.tolist()) == sorted(covered)


def test_recall_and_precision_are_ratios_of_the_counts() -> None:
    scores = np.array([0.9, 0.7, 0.7, 0.4, 0.1])
    ranking = rank_images(scores, np.array([True, False, True, False, True]))
    assert ranking.thresholds.tolist() == [0.9, 0.7, 0.1]
    assert ranking.recall.tolist() == [1 / 3, 2 / 3, 1]
    assert ranking.precision.tolist() == [1, 2 / 3, 3 / 5]


def test_a_staircase_is_flat_at_normal_scores_and_slopes_at_ties() -> None:
    scores = np.array([0.9, 0.8, 0.7, 0.7, 0.1])
    ranking = rank_images(scores, np.array([True, False, True, False, False]))
    x, y = ranking.staircase(ranking.recall)
    # Up at 0.9, right at 0.8, up and right at once at 0.7, right at 0.1.
    assert list(zip(x.tolist(), y.tolist(), strict=True)) == [
        (0, 0),
        (0, 0),
        (0, 0.5),
        (1, 0.5),
        (2, 1),
        (3, 1),
    ]


def test_every_anomalous_image_is_a_region_of_its_own() -> None:
    scores = np.array([0.9, 0.2, 0.5, 0.6])
    ranking = rank_images(scores, np.array([True, False, True, True]))
    np.testing.assert_allclose(ranking.overlap, ranking.recall)
    assert ranking.majority.tolist() == [0.9, 0.5, 0.6]


def test_the_arrays_given_keep_their_order() -> None:
    maps = maps_with(1000, 0, np.float32)
    kept = maps.copy()
    rank_pixels(maps, MASKS)
    rank_images(maps[0, 0], MASKS[0, 0])
    np.testing.assert_array_equal(maps, kept)
