"""Image and pixel metrics: AUROC, AP, PRO, IAP, IAP@k and F1-max, exact, from one sort.

All of them are read from a `Ranking`, the counts at each distinct anomalous score; ranking.py says
why these are enough. Everywhere in this project a score or a pixel is anomalous if and only if it
is *greater* than the threshold.

PRO (per-region overlap) is that of Bergmann et al., "Uninformed Students" (CVPR 2020): every region
has the same weight, so a missed scratch costs as much as a missed dent. IAP (instance average
precision) is that of DeSTSeg (Zhang et al., CVPR 2023): a region is found once more than half of
its pixels are flagged; recall counts regions, precision counts pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from destseg_deploy.errors import ShapeError
from destseg_deploy.evaluation.ranking import Ranking, check_array, rank_images

PRO_MAX_FPR = 0.3
"""False positive rate up to which PRO is integrated: the usual one, and the paper's."""

IAP_RECALL = 0.9
"""Share of the regions to be found at IAP@90."""


@dataclass(frozen=True)
class PixelMetrics:
    """Localisation metrics of one category; all pixels of all its test images are pooled.

    Attributes:
        auroc: Area under the pixel ROC curve, in [0, 1]; a tie counts one half.
        ap: Average precision, in [0, 1]; a step sum without interpolation, as in scikit-learn.
        pro: Area under mean region overlap against false positive rate, up to a rate of 0.3 and
            divided by it, in [0, 1].
        iap: Instance average precision, in [0, 1].
        iap_at_recall: IAP@90, in [0, 1]: pixel precision at the smallest instance recall that is at
            least 0.9.
        f1_max: Best F1 over all thresholds, in [0, 1].
        f1_threshold: A threshold that gives `f1_max`, in the unit of the maps; see `f1_max`.
        regions: Regions in all masks.
        pixels: Pixels in all maps.
    """

    auroc: float
    ap: float
    pro: float
    iap: float
    iap_at_recall: float
    f1_max: float
    f1_threshold: float
    regions: int
    pixels: int


@dataclass(frozen=True, eq=False)
class Curves:
    """Points for plotting; each array is float64 (P,), in [0, 1], in order of falling threshold.

    Attributes:
        roc_fpr: False positive rate of the ROC curve.
        roc_tpr: True positive rate at `roc_fpr`; join the points with straight lines.
        pr_recall: Recall at the anomalous scores, with a first point at recall 0.
        pr_precision: Precision at `pr_recall`; holds back to the recall before ("steps-pre").
        pro_fpr: False positive rate of the PRO curve.
        pro_overlap: Mean region overlap at `pro_fpr`; join the points with straight lines.
    """

    roc_fpr: np.ndarray
    roc_tpr: np.ndarray
    pr_recall: np.ndarray
    pr_precision: np.ndarray
    pro_fpr: np.ndarray
    pro_overlap: np.ndarray


def image_auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the chance that an anomalous image scores above a normal one; a tie counts one half.

    Args:
        scores: floating (N,), finite, any range.
        labels: bool (N,), True where the image is anomalous.

    Returns:
        AUROC, in [0, 1].

    Raises:
        ShapeError: If a shape or dtype is wrong, or the shapes differ.
        MetricError: If a score is not finite, or only one class is present.
    """
    ranking = rank_images(scores, labels)
    return _area_under(ranking, ranking.recall, max_fpr=1.0)


def f1_max(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return the best F1 over all thresholds, and a threshold that gives it.

    The threshold lies midway between the lowest score to be flagged and the next lower distinct
    score, rounded to the dtype of the scores so that comparing in that dtype decides the same; it
    is just below the lowest score if all are to be flagged. Of equally good ones the highest wins.

    Args:
        scores: floating (N,), finite, any range.
        labels: bool (N,), True where anomalous.

    Returns:
        (F1 in [0, 1], threshold): `scores > threshold` is the decision that has this F1.

    Raises:
        ShapeError: If a shape or dtype is wrong, or the shapes differ.
        MetricError: If a score is not finite, or only one class is present.
    """
    return _best_f1(rank_images(scores, labels))


def pixel_metrics(
    ranking: Ranking, *, pro_max_fpr: float = PRO_MAX_FPR, iap_recall: float = IAP_RECALL
) -> PixelMetrics:
    """Return all pixel metrics of one category.

    Args:
        ranking: Its pixels, from ``rank_pixels``, normal images included.
        pro_max_fpr: False positive rate up to which PRO is integrated, in (0, 1].
        iap_recall: Instance recall at which `iap_at_recall` is read, in (0, 1].
    """
    precision = ranking.precision
    gained = np.diff(ranking.tp, prepend=0)
    instance = _instance_precision(ranking, precision)
    best_f1, threshold = _best_f1(ranking)
    return PixelMetrics(
        auroc=_area_under(ranking, ranking.recall, max_fpr=1.0),
        ap=float((gained * precision).sum() / ranking.tp[-1]),
        pro=_area_under(ranking, ranking.overlap, max_fpr=pro_max_fpr),
        iap=float(instance.mean()),
        iap_at_recall=float(instance[_index_at_recall(instance.size, iap_recall)]),
        f1_max=best_f1,
        f1_threshold=threshold,
        regions=int(ranking.majority.size),
        pixels=int(ranking.normal.size + ranking.tp[-1]),
    )


def pixel_curves(ranking: Ranking, *, points: int = 1000) -> Curves:
    """Return the pixel ROC, precision-recall and PRO curves of one category.

    Args:
        ranking: Its pixels, from ``rank_pixels``, normal images included.
        points: Most points of a curve, at least 4; a longer one is thinned evenly.
    """
    recall, precision = ranking.recall, ranking.precision
    roc_fpr, roc_tpr = _thin(*_rate_curve(ranking, recall), points)
    pro_fpr, pro_overlap = _thin(*_rate_curve(ranking, ranking.overlap), points)
    recall = np.insert(recall, 0, 0.0)
    # Thinned by recall alone: early precision jumps from pixel to pixel and would take all points.
    pr_recall, pr_precision = _thin(recall, np.insert(precision, 0, precision[0]), recall, points)
    return Curves(roc_fpr, roc_tpr, pr_recall, pr_precision, pro_fpr, pro_overlap)


def top_k_mean(anomaly_map: np.ndarray, k: int = 100) -> np.ndarray:
    """Return the image score: the mean of the k largest values of each map.

    Args:
        anomaly_map: float32 (N, H, W), in [0, 1], at the resolution being evaluated.
        k: Pixels averaged; T in the paper's Table S1, where 100 belongs to 256 x 256.

    Returns:
        float32 (N,).

    Raises:
        ShapeError: If a map has fewer than k pixels, or the array is not floating (N, H, W).
    """
    check_array("anomaly_map", anomaly_map, np.floating, 3)
    images, height, width = anomaly_map.shape
    if not 1 <= k <= height * width:
        raise ShapeError(
            f"k: expected 1 to {height * width}, the pixels of a {height} x {width} map, got {k}."
            " Choose a smaller k or larger maps."
        )
    flat = anomaly_map.reshape(images, height * width)
    largest = np.partition(flat, height * width - k, axis=1)[:, height * width - k :]
    mean: np.ndarray = largest.mean(axis=1, dtype=np.float64).astype(np.float32)
    return mean


def _area_under(ranking: Ranking, height: np.ndarray, *, max_fpr: float) -> float:
    """Return the mean height of a curve over false positive rates in [0, max_fpr]."""
    x, y = ranking.staircase(height)
    limit = max_fpr * ranking.normal.size
    inside = int(np.searchsorted(x, limit, side="right"))
    end = np.interp(limit, x[inside - 1 : inside + 1], y[inside - 1 : inside + 1])
    width = np.diff(x[:inside], append=limit)
    doubled = y[:inside] + np.append(y[1:inside], end)
    # Rounding of the last width can lift a perfect curve past 1 by one unit in the last place.
    return min(float(width @ doubled) / (2 * limit), 1.0)


def _instance_precision(ranking: Ranking, precision: np.ndarray) -> np.ndarray:
    """Return the pixel precision at instance recall 1 - i / K, float64 (K,), never falling with i.

    A region is found once more than half of it is covered. Only anomalous pixels count as true
    positives, whatever their sign.
    """
    position = np.searchsorted(ranking.thresholds[::-1], np.sort(ranking.majority))
    found: np.ndarray = np.maximum.accumulate(precision[::-1][position])
    return found


def _index_at_recall(regions: int, recall: float) -> int:
    """Return the largest i with 1 - i / regions >= recall, safe from rounding (0.9 of 10 is 1)."""
    return min(math.floor(regions * (1 - recall) + 1e-9), regions - 1)


def _best_f1(ranking: Ranking) -> tuple[float, float]:
    """Return the best F1 and its threshold; see `f1_max`."""
    f1 = 2 * ranking.tp / (ranking.tp + ranking.fp + ranking.tp[-1])
    best = int(np.argmax(f1))
    # The next lower score is a normal one: were it anomalous alone, flagging it too would raise F1.
    below = ranking.normal.size - int(ranking.fp[best])
    lower = ranking.normal[below - 1] if below else None
    return float(f1[best]), _cut_between(lower, ranking.thresholds[best])


def _cut_between(lower: np.floating | None, upper: np.floating) -> float:
    """Return t, exact in the scores' dtype, with upper > t >= lower; `lower` is never flagged."""
    as_score = upper.dtype.type
    if lower is None:
        return float(np.nextafter(upper, as_score(-np.inf)))
    middle = as_score(0.5 * float(lower) + 0.5 * float(upper))
    # Between neighbouring floats there is no middle, and it may round up.
    return float(middle if lower <= middle < upper else lower)


def _rate_curve(ranking: Ranking, height: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return false positive rate, height, and their sum: the way along a rising curve."""
    x, y = ranking.staircase(height)
    x /= ranking.normal.size
    return x, y, x + y


def _thin(
    x: np.ndarray, y: np.ndarray, way: np.ndarray, points: int
) -> tuple[np.ndarray, np.ndarray]:
    """Keep at most `points` vertices, evenly along `way`, and both ends of every longer segment."""
    if x.size <= points:
        return x, y
    after = np.searchsorted(way, np.linspace(way[0], way[-1], points // 2))
    keep = np.unique(np.concatenate((np.maximum(after - 1, 0), after)))
    return x[keep], y[keep]
