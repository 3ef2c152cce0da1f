"""The judgement of INT8, on images that neither calibrated the ranges nor chose the layers.

A few images say little: layers chosen by their accuracy suit just these images, and the accuracy of
a model that guesses cannot fall. So enough images are demanded, the float32 graph must be clearly
better than chance, and what 8 bit lose must be small with the error of that measurement added.

That is no confidence interval. Where no image lost anything, the error is 0, and a loss that shows
on few parts may have been missed: of n NG images, 3 / n of all NG parts may lose everything (the
rule of three). To exclude a loss of half a point by that would take 600 NG images.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.data.calibration import Labelled
from destseg_deploy.data.resize import resize_plane
from destseg_deploy.errors import DataError, ExportError
from destseg_deploy.evaluation.metrics import image_auroc, pixel_metrics
from destseg_deploy.evaluation.ranking import Ranking, rank_pixels
from destseg_deploy.spec import Accuracy
from destseg_export.graph.run import Run
from destseg_export.int8.budget import Cost

LEAST_CALIBRATION = 8
"""Normal images that calibrate."""

LEAST_JUDGED = 10
"""Normal, and anomalous, images in each half of those that judge."""

CHANCE = 0.6
"""An AUROC that the float32 graph must exceed with 95 % confidence; guessing has 0.5."""

MAP_LIMIT, SCORE_LIMIT = 0.3, 0.15
"""Largest difference of a map's pixel and of a score between int8 and float32."""

ONE_SIDED = 1.645
"""Standard errors that a normal variable exceeds once in 20 times."""


@dataclass(frozen=True, eq=False)
class Answers:
    """A graph's answers on labelled images.

    Attributes:
        maps: float32 (N, h, w).
        scores: float32 (N,).
        masks: bool (N, h, w), the defects.
        labels: bool (N,), whether an image has a defect; its mask may be empty at this size.
    """

    maps: NDArray[np.float32]
    scores: NDArray[np.float32]
    masks: NDArray[np.bool_]
    labels: NDArray[np.bool_]

    @cached_property
    def ranking(self) -> Ranking:
        """The pixels, sorted once."""
        return rank_pixels(self.maps, self.masks)

    def accuracy(self) -> Accuracy:
        """Return the metrics."""
        return Accuracy(pixel_metrics(self.ranking).ap, image_auroc(self.scores, self.labels))

    @cached_property
    def without_each(self) -> NDArray[np.float64]:
        """Pixel AP and image AUROC without each image in turn, float64 (N, 2)."""
        return np.stack([self._aps_without_each(), self._aurocs_without_each()], axis=1)

    def _aps_without_each(self) -> NDArray[np.float64]:
        # What one image counts is taken from the counts of all; sorting anew would take minutes.
        ranking, falling = self.ranking, -self.ranking.thresholds
        found = []
        for values, mask in zip(self.maps, self.masks, strict=True):
            own_tp, own_fp = (
                np.searchsorted(np.sort(-values[chosen]), falling, side="right")
                for chosen in (mask, ~mask)
            )
            tp, fp = ranking.tp - own_tp, ranking.fp - own_fp
            precision = tp / np.maximum(tp + fp, 1)
            found.append((np.diff(tp, prepend=0) * precision).sum() / max(tp[-1], 1))
        return np.array(found)

    def _aurocs_without_each(self) -> NDArray[np.float64]:
        """Return the share of pairs in which the anomalous image scores higher."""
        one, other = self.scores[self.labels, None], self.scores[~self.labels]
        right = (one > other) + 0.5 * (one == other)  # (anomalous, normal)
        found = np.empty(len(self.scores))
        for mine, axis in ((self.labels, 1), (~self.labels, 0)):
            own = right.sum(axis=axis)
            found[mine] = (right.sum() - own) / (right.size - right.shape[axis])
        return found


def ask(run: Run, images: Labelled, size: tuple[int, int]) -> Answers:
    """Return the answers of a graph that gives map and score.

    Args:
        run: The graph.
        images: The images.
        size: Height and width of its maps.
    """
    found = [run(frame[None]) for frame in images.frames]
    planes = (resize_plane(mask.astype(np.float32), size) >= 0.5 for mask in images.masks)
    maps, scores = (np.concatenate(column) for column in zip(*found, strict=True))
    return Answers(maps, scores, np.stack(list(planes)), images.labels)


def split(images: Labelled) -> tuple[Labelled, Labelled]:
    """Return the half that chooses the layers and the half that judges them.

    Raises:
        DataError: If either has too few normal or anomalous images.
    """
    kinds = [np.flatnonzero(images.labels == anomalous) for anomalous in (False, True)]
    if min(map(len, kinds)) < 2 * LEAST_JUDGED:
        raise DataError(
            f"{len(kinds[0])} normal and {len(kinds[1])} anomalous images to measure the accuracy "
            f"on, expected at least {2 * LEAST_JUDGED} of each: one half chooses the layers, the "
            "other judges them. Pass more images with --good or --labelled."
        )
    halves = [np.concatenate([kind[start::2] for kind in kinds]) for start in (0, 1)]
    first, second = (
        Labelled(images.frames[half], images.masks[half], images.labels[half]) for half in halves
    )
    return first, second


def check_calibration(count: int) -> None:
    """Refuse too few normal images to calibrate on.

    Raises:
        DataError: With their number.
    """
    if count < LEAST_CALIBRATION:
        raise DataError(
            f"{count} normal images to calibrate on, expected at least {LEAST_CALIBRATION}. Pass "
            "more images with --good, and at least 8 with --images."
        )


def check_reference(answers: Answers) -> None:
    """Refuse a float32 graph that may be guessing: its accuracy has nothing to lose.

    Raises:
        ExportError: With its AUROC, and the one that shows that it does not guess.
    """
    found = answers.accuracy().image_auroc
    # The error of a graph with that chance: the one of an AUROC of 1 would be 0.
    least = CHANCE + ONE_SIDED * _auroc_error(CHANCE, answers.labels)
    if not found > least:
        raise ExportError(
            f"the float32 graph tells normal from anomalous with an image AUROC of {found:.3f}, "
            f"expected above {least:.3f}: on {len(answers.labels)} images, a graph whose true "
            f"AUROC is {CHANCE} reaches that by chance in 5 % of cases (guessing has 0.5). What "
            "int8 loses cannot be measured. Nothing was written. Train longer, or pass more "
            "images with --labelled."
        )


def check_kept(before: Answers, after: Answers, max_drop: float) -> float:
    """Refuse an int8 graph that loses more than allowed; return ``largest_loss``.

    Raises:
        ExportError: With what it loses, or by how much its answers move.
    """
    moved, shifted = _largest_moves(before, after)
    if not (moved <= MAP_LIMIT and shifted <= SCORE_LIMIT):
        raise ExportError(
            f"int8 moves a pixel of the map by {moved:.3f} (allowed {MAP_LIMIT}) and a score by "
            f"{shifted:.3f} (allowed {SCORE_LIMIT}). Nothing was written. Calibrate on more "
            "images, quantise fewer networks with --part, or use fp32."
        )
    lost = largest_loss(before, after)
    if not lost <= max_drop:
        point = max(_points(before) - _points(after))
        raise ExportError(
            f"int8 loses {point:.2f} points, and up to {lost:.2f} with the error of the "
            f"measurement, on {len(after.scores)} images that did not choose the layers; allowed "
            f"are {max_drop}. Nothing was written. Allow more with --max-drop, pass more images "
            "with --labelled, or use fp32."
        )
    return lost


def cost(before: Answers, after: Answers) -> Cost:
    """Return what an int8 graph costs on the images that choose the layers."""
    shares = np.array(_largest_moves(before, after)) / (MAP_LIMIT, SCORE_LIMIT)
    return Cost(largest_loss(before, after), float(shares.max()))


def _largest_moves(before: Answers, after: Answers) -> tuple[float, float]:
    """Return the largest difference of a map's pixel, and of a score."""
    maps, scores = np.abs(after.maps - before.maps), np.abs(after.scores - before.scores)
    return float(maps.max()), float(scores.max())


def largest_loss(before: Answers, after: Answers) -> float:
    """Return the points that the worse metric loses, with the error of the measurement added.

    The error is Student's 95 % quantile of standard errors. Both graphs saw the same images, so the
    standard error is that of the difference: the jackknife that leaves out each image in turn,
    separately over normal and anomalous ones (for the AUROC: DeLong et al., 1988).
    """
    parts = 100 * (before.without_each - after.without_each)
    variance, fewest = np.zeros(2), len(parts)
    for kind in (before.labels, ~before.labels):
        count = int(kind.sum())
        variance += (count - 1) * parts[kind].var(axis=0)
        fewest = min(fewest, count)
    error = students_quantile(fewest - 1) * np.sqrt(variance)
    return float((_points(before) - _points(after) + error).max())


def students_quantile(freedom: int) -> float:
    """Return the 95 % quantile of Student's t, within 0.01 from 5 degrees of freedom on.

    A normal variable's, and the first terms of its expansion (Abramowitz and Stegun, 26.7.5).
    """
    z = ONE_SIDED
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / freedom + second / freedom**2


def _points(answers: Answers) -> NDArray[np.float64]:
    """Return pixel AP and image AUROC in points."""
    found = answers.accuracy()
    return 100 * np.array([found.pixel_ap, found.image_auroc])


def _auroc_error(found: float, labels: NDArray[np.bool_]) -> float:
    """Return the standard error of an AUROC (Hanley and McNeil, 1982)."""
    positive, negative = int(labels.sum()), int((~labels).sum())
    one, other = found / (2 - found), 2 * found**2 / (1 + found)
    spread = (positive - 1) * (one - found**2) + (negative - 1) * (other - found**2)
    return float(np.sqrt(max(found * (1 - found) + spread, 0.0) / (positive * negative)))
