"""The threshold of an artifact: from good images, from labelled images, or chosen by hand.

A line knows its good parts and rarely its defects. So the usual rule asks which share of the good
parts may be rejected (the false-reject rate r). Sort the scores of n good images that were not
trained on; the one at rank ceil((n + 1)(1 - r)) is the threshold. A new good part then stays at or
below it with a probability of at least 1 - r. This holds for every distribution of scores, as long
as new parts come from the same process as the n images (split conformal prediction: Vovk et al.,
"Algorithmic Learning in a Random World", 2005). With n images the smallest rate that can be
guaranteed is 1 / (n + 1); the rule that is stored in the spec says so when a smaller one was asked
for.

Only the spec (the ``.json``) is written. The artifact itself is never touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.data.datasets import DataSet
from destseg_deploy.data.finding import find_repeated
from destseg_deploy.errors import DataError, MetricError
from destseg_deploy.evaluation.metrics import f1_max
from destseg_deploy.evaluation.test_set import score_test_set
from destseg_deploy.locks import locked
from destseg_deploy.predictor import Predictor
from destseg_deploy.spec import BY_HAND, ModelSpec, Threshold, exceeds, with_own_threshold


def too_few(count: int, rate: float) -> str | None:
    """Say that a number of good images cannot guarantee a false-reject rate; None where it can."""
    needed = math.ceil((1 - 1e-9) / rate) - 1
    if count >= needed:
        return None
    return (
        f"{count} good images can guarantee a false-reject rate of {at_most(1, count + 1)}; "
        f"{100 * rate:g} % needs {needed}."
    )


def at_most(part: int, whole: int) -> str:
    """Return a bound, part / whole, in per cent: three digits, rounded up, so that it holds."""
    digits = 0
    while part * 10 ** (digits + 2) < 100 * whole:
        digits += 1
    hundreds = -(-part * 10 ** (digits + 2) // whole)
    return f"{hundreds / 10**digits:g} %"


def set_threshold(artifact: Path | str, threshold: Threshold) -> None:
    """Write a threshold into the spec of an artifact; predictors that are loaded later obey it.

    Raises:
        SpecError: If the spec is missing or unreadable, or a value is out of range.
        OutputError: If another process is writing the artifact.
    """
    artifact = Path(artifact)
    with locked(artifact):
        with_own_threshold(ModelSpec.read(artifact), threshold).write(artifact)


def measure_normal(
    predictor: Predictor,
    images: Sequence[Path | str],
    rate: float = 0.01,
    *,
    report: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> Threshold:
    """Score images of good parts and return the threshold for a false-reject rate.

    Args:
        predictor: The model. The threshold belongs to the precision in which it computes.
        images: Images of good parts that were not trained on.
        rate: Share of good parts that may be rejected, in (0, 1).
        report: Called with the number of images done, their total, and the latest one's name.

    Raises:
        DataError: If an image cannot be read, or is there twice.
        MetricError: As ``from_normal``.
    """
    paths = [Path(image) for image in images]
    if found := find_repeated(paths):
        first, second = (paths[place] for place in found)
        raise DataError(
            f"{second}: the same image as {first}. Expected each image once, since the guarantee "
            "counts them."
        )
    scores, peaks = score_images(predictor, paths, report=report)
    return from_normal(scores, peaks, rate)


def score_images(
    predictor: Predictor,
    images: Sequence[Path],
    *,
    report: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Score image files: the scores and the largest map value of each, float32 (N,) both.

    Raises:
        DataError: If an image cannot be read.
    """
    scores, peaks = [], []
    for prediction in predictor.stream(iter(images)):
        scores.append(prediction.score[0])
        peaks.append(prediction.anomaly_map.max())
        report(len(scores), len(images), images[len(scores) - 1].name)
    return np.array(scores, np.float32), np.array(peaks, np.float32)


def measure_labelled(
    predictor: Predictor,
    data: Path | str | DataSet,
    *,
    report: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> Threshold:
    """Score labelled images and return the threshold with the best F1.

    Args:
        predictor: The model. The threshold belongs to the precision in which it computes.
        data: A data set with labels, or the folder or list that holds one.
        report: Called with the number of images done, their total, and the latest one's name.

    Raises:
        DataError: If the folder is not as expected, or has no good or no anomalous images.
    """
    test = score_test_set(predictor, data, report=report)
    return from_labelled(test.scores, test.labels, test.maps.max(axis=(1, 2)))


def from_normal(
    scores: NDArray[np.float32], peaks: NDArray[np.float32], rate: float = 0.01
) -> Threshold:
    """Return the threshold for a false-reject rate.

    Args:
        scores: float32 (N,), scores of good images that were not trained on.
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
    # 10 * (1 - 0.1) must stay rank 9 even where rounding makes it 9.000000000000002.
    rank = math.ceil((count + 1) * (1 - rate) - 1e-9)
    rule = f"false-reject rate {100 * rate:g} %: rank {rank} of the scores of {count} good images"
    if rank > count:
        needed = math.ceil((1 - 1e-9) / rate) - 1
        rule = f"highest score: {count} good images can guarantee a false-reject rate of "
        rule += f"{at_most(1, count + 1)}; {100 * rate:g} % needs {needed}"
        rank, rate = count, 1 / (count + 1)
    # Each is ranked by itself: the image with the highest score need not have the highest peak.
    score, pixel = (_share(np.sort(values)[rank - 1]) for values in (scores, peaks))
    return Threshold(score, pixel, rule, count, rate)


def from_labelled(
    scores: NDArray[np.float32], labels: NDArray[np.bool_], peaks: NDArray[np.float32]
) -> Threshold:
    """Return the threshold with the best F1 on labelled images.

    An accuracy that is then measured on the same images is optimistic.

    Args:
        scores: float32 (N,).
        labels: bool (N,), True for anomalous.
        peaks: float32 (N,), the largest map value of each image; the pixel threshold is the
            largest of the good ones.

    Raises:
        MetricError: If there is no normal or no anomalous image.
    """
    best, threshold = f1_max(scores, labels)
    if not 0 <= threshold <= 1:
        best, threshold = _best_share(scores, labels)
    counts = f"{int(labels.sum())} anomalous and {int((~labels).sum())} good images"
    rule = f"best F1 ({best:.4f}) on {counts}"
    return Threshold(threshold, _share(peaks[~labels].max()), rule, len(scores), None)


def _best_share(scores: NDArray[np.float32], labels: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the best F1 of the thresholds in [0, 1], and the highest that has it.

    No other threshold finds a defect whose score is 0.
    """
    tried = np.unique(np.clip(np.append(scores, 0), 0, 1))[::-1]
    found = [exceeds(scores, float(t)) for t in tried]
    f1 = [2 * int((one & labels).sum()) / int(one.sum() + labels.sum()) for one in found]
    return max(f1), float(tried[int(np.argmax(f1))])


def _share(value: float) -> float:
    """Return a measured value within [0, 1]; rounding may leave it a little outside."""
    return min(max(float(value), 0.0), 1.0)


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
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value <= 1:
            raise MetricError(
                f"threshold: {name} {value!r}, expected between 0 and 1, as scores are."
            )
    # -0.0 is in range, and would be shown with its sign.
    return Threshold(abs(float(score)), abs(float(pixel)), BY_HAND)
