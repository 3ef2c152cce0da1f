"""Thresholds: from held-out normal images, or from labelled ones where they exist.

A line knows its normal parts and rarely its defects, so the threshold is set by how many good parts
may be rejected. With n held-out normal images the (n + 1)(1 - rate)-th smallest score is the
threshold under which a new good part stays with at least that probability, whatever the scores'
distribution (split conformal prediction). Few images cannot promise a small rate; the rule that is
stored says what they can.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.errors import MetricError
from destseg_deploy.metrics import f1_max
from destseg_deploy.spec import Threshold


def from_normal(
    scores: NDArray[np.float32], peaks: NDArray[np.float32], rate: float = 0.01
) -> Threshold:
    """Return the threshold for a target false-reject rate.

    Args:
        scores: float32 (N,), scores of normal images that were not trained on.
        peaks: float32 (N,), the largest map value of each.
        rate: Share of good parts that may be rejected, in (0, 1).

    Raises:
        MetricError: If there are no scores, one is not finite, or the rate is out of range.
    """
    count = len(scores)
    if count == 0:
        raise MetricError(
            "threshold: no normal images. Pass a folder of images that were not trained on."
        )
    if not (np.isfinite(scores).all() and np.isfinite(peaks).all()):
        raise MetricError(
            "threshold: a score or map is not finite. Check the model with destseg-evaluate."
        )
    if not 0 < rate < 1:
        raise MetricError(
            f"threshold: false-reject rate {rate}, expected between 0 and 1, such as 0.01."
        )
    rank = math.ceil((count + 1) * (1 - rate) - 1e-9)
    rule = f"target false-reject rate {rate:.2%}: rank {rank} of {count} normal images"
    if rank > count:
        rank, possible = count, 1 / (count + 1)
        rule = (
            f"largest of {count} normal images: they support a false-reject rate of "
            f"{possible:.2%}, not the {rate:.2%} asked for, which takes "
            f"{math.ceil((1 - 1e-9) / rate) - 1} images"
        )
        rate = possible
    return Threshold(
        float(np.sort(scores)[rank - 1]), float(np.sort(peaks)[rank - 1]), rule, count, rate
    )


def from_labelled(
    scores: NDArray[np.float32], labels: NDArray[np.bool_], peaks: NDArray[np.float32]
) -> Threshold:
    """Return the threshold with the best F1 on labelled images.

    Optimistic when the same images are then used to report accuracy.

    Args:
        scores: float32 (N,).
        labels: bool (N,), True for anomalous.
        peaks: float32 (N,), the largest map value of each image; the pixel threshold is the
            largest of the normal ones.

    Raises:
        MetricError: If there is no normal or no anomalous image.
    """
    best, threshold = f1_max(scores, labels)
    counts = f"{int(labels.sum())} anomalous and {int((~labels).sum())} normal images"
    rule = f"best F1 ({best:.4f}) on {counts}"
    return Threshold(threshold, float(peaks[~labels].max()), rule, len(scores), None)


def by_hand(score: float, pixel: float | None = None) -> Threshold:
    """Return a threshold that somebody chose.

    Args:
        score: In [0, 1].
        pixel: In [0, 1]; the score's unless given.

    Raises:
        MetricError: If a value is out of range.
    """
    pixel = score if pixel is None else pixel
    for name, value in (("score", score), ("pixel", pixel)):
        if not 0 <= value <= 1:
            raise MetricError(
                f"threshold: {name} {value}, expected between 0 and 1, as scores are."
            )
    return Threshold(score, pixel, "set by hand")
