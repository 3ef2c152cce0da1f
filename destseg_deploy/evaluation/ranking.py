"""One sort of the scores, and the counts from which every metric is computed exactly.

Let the threshold fall from the highest score to the lowest. At a normal score only the number of
false positives grows. Recall and overlap stay the same, so AP gains nothing, F1 falls, and the ROC
and PRO curves are horizontal. All of them change direction only at anomalous scores. So it is
enough to count, for each distinct anomalous score, the anomalous and the normal scores at or above
it. The normal scores, nearly all pixels, are only sorted; only the anomalous ones need an argsort.
Equal scores share one threshold.

A region is one 8-connected component of a mask. An image with an empty mask is normal.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from destseg_deploy.errors import MetricError, ShapeError


@dataclass(frozen=True, eq=False)
class Ranking:
    """Counts at the D distinct anomalous scores, highest score first.

    Attributes:
        thresholds: (D,), the distinct anomalous scores in their own dtype.
        tp: int64 (D,), anomalous scores at or above the threshold.
        fp: int64 (D,), normal scores at or above it.
        fp_above: int64 (D,), normal scores strictly above it.
        overlap: float64 (D,), in (0, 1], mean over regions of the share at or above it.
        majority: (K,), for each region the highest threshold at which more than half is covered.
        normal: (N,), the normal scores, ascending.
    """

    thresholds: np.ndarray
    tp: np.ndarray
    fp: np.ndarray
    fp_above: np.ndarray
    overlap: np.ndarray
    majority: np.ndarray
    normal: np.ndarray

    @property
    def recall(self) -> np.ndarray:
        """True positive rate at each threshold, float64 (D,)."""
        recall: np.ndarray = self.tp / self.tp[-1]
        return recall

    @property
    def precision(self) -> np.ndarray:
        """Precision at each threshold, float64 (D,)."""
        precision: np.ndarray = self.tp / (self.tp + self.fp)
        return precision

    def staircase(self, height: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the vertices of a curve over false positives, from (0, 0) to the last height.

        Before each threshold the curve is horizontal. Where normal and anomalous scores are equal,
        both counts grow in one step, and the curve is a slope.

        Args:
            height: float64 (D,), the curve's value at each threshold.

        Returns:
            False positives (counts, not rates) and height, both float64 (2 D + 2,), rising.
        """
        x = np.empty(2 * height.size + 2)
        x[0], x[-1] = 0, self.normal.size
        x[1:-1:2], x[2:-1:2] = self.fp_above, self.fp
        y = np.empty_like(x)
        y[:2], y[-1] = 0, height[-1]
        y[3:-1:2], y[2:-1:2] = height[:-1], height
        return x, y


def rank_images(scores: np.ndarray, labels: np.ndarray) -> Ranking:
    """Rank image scores; each anomalous image counts as a region of one pixel.

    Args:
        scores: floating (N,), finite, any range.
        labels: bool (N,), True where the image is anomalous.

    Raises:
        ShapeError: If a shape or dtype is wrong, or the shapes differ.
        MetricError: If a score is not finite, or only one class is present.
    """
    _check_pair("scores", scores, "labels", labels, 1)
    anomalous = scores[labels]
    return _rank(scores[~labels], anomalous, np.ones(anomalous.size, dtype=np.int64))


def rank_pixels(maps: np.ndarray, masks: np.ndarray) -> Ranking:
    """Rank the pixels of one category.

    Args:
        maps: floating (N, H, W), finite, any range.
        masks: bool (N, H, W), True where anomalous.

    Raises:
        ShapeError: If a shape or dtype is wrong, or the shapes differ.
        MetricError: If a value is not finite, or only one class of pixels is present.
    """
    _check_pair("maps", maps, "masks", masks, 3)
    anomalous, sizes = _region_scores(maps, masks)
    return _rank(maps[~masks], anomalous, sizes)


def check_array(name: str, array: np.ndarray, dtype: type[np.generic], ndim: int) -> None:
    """Raise ShapeError unless the array has this kind of dtype and 1 or 3 axes, as `ndim` says."""
    if not np.issubdtype(array.dtype, dtype) or array.ndim != ndim:
        kind = "bool" if dtype is np.bool_ else "floating"
        axes = "(N,)" if ndim == 1 else "(N, H, W)"
        raise ShapeError(
            f"{name}: expected {kind} {axes}, got {array.dtype} {array.shape}. Convert or reshape"
            " it first."
        )


def _region_scores(maps: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the anomalous scores region after region, ascending in each, and the region sizes."""
    scores, sizes = [], []
    for anomaly_map, mask in zip(maps, masks, strict=True):
        if mask.any():
            labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[1][mask]
            values = anomaly_map[mask]
            scores.append(values[np.lexsort((values, labels))])
            sizes.append(np.bincount(labels)[1:])
    return np.concatenate(scores), np.concatenate(sizes)


def _rank(normal: np.ndarray, anomalous: np.ndarray, sizes: np.ndarray) -> Ranking:
    """Count at each distinct anomalous score.

    Args:
        normal: (N,), any order; sorted in place, because a copy of all normal pixels is large.
        anomalous: (P,), region after region, ascending in each.
        sizes: int64 (K,), the sizes of the regions in `anomalous`.
    """
    normal.sort()
    order = np.argsort(anomalous)[::-1]
    falling = anomalous[order]
    last_of_ties = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
    thresholds = falling[last_of_ties]
    overlap = np.cumsum(np.repeat(1.0 / sizes, sizes)[order])[last_of_ties]
    starts = np.cumsum(sizes) - sizes
    return Ranking(
        thresholds=thresholds,
        tp=last_of_ties + 1,
        fp=normal.size - np.searchsorted(normal, thresholds, side="left"),
        fp_above=normal.size - np.searchsorted(normal, thresholds, side="right"),
        # The last sum is the number of regions, with rounding errors. Dividing by the sum itself
        # makes the curve end at exactly 1.
        overlap=overlap / overlap[-1],
        # A region of n pixels is more than half covered at its (floor(n / 2) + 1)-th highest score.
        # In ascending order from 0 that is place n - 1 - floor(n / 2) = (n - 1) // 2.
        majority=anomalous[starts + (sizes - 1) // 2],
        normal=normal,
    )


def _check_pair(
    name: str, values: np.ndarray, truth_name: str, truth: np.ndarray, ndim: int
) -> None:
    """Check scores with their labels, or maps with their masks, before they are ranked."""
    check_array(name, values, np.floating, ndim)
    check_array(truth_name, truth, np.bool_, ndim)
    if values.shape != truth.shape:
        raise ShapeError(
            f"{name} {values.shape} and {truth_name} {truth.shape}: expected equal shapes. Bring"
            " both to the same images and the same resolution."
        )
    finite = int(np.count_nonzero(np.isfinite(values)))
    if finite < values.size:
        raise MetricError(
            f"{name}: {values.size - finite} of {values.size} values are NaN or infinite; expected"
            " finite ones. Check the model's outputs (an overflow in FP16 looks like this)."
        )
    anomalous = int(np.count_nonzero(truth))
    if anomalous in (0, truth.size):
        missing = "anomalous" if anomalous == 0 else "normal"
        unit = "images" if ndim == 1 else "pixels"
        raise MetricError(
            f"{truth_name}: none of {truth.size} {unit} is {missing}, expected normal and anomalous"
            " ones. Evaluate a whole test set: test/good and the defect folders."
        )
