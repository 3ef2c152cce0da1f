"""The judgement of INT8, on images that neither calibrated the ranges nor chose the layers.

A few images say little: layers chosen by their accuracy suit just these images, and the accuracy of
a model that guesses cannot fall. So enough images are demanded, the float32 graph must be clearly
better than chance, and what 8 bit lose is bounded from above by a confidence interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.data.calibration import Labelled
from destseg_deploy.data.resize import resize_plane
from destseg_deploy.errors import DataError, ExportError
from destseg_deploy.evaluation.metrics import image_auroc, pixel_metrics
from destseg_deploy.evaluation.ranking import rank_pixels
from destseg_deploy.spec import Accuracy
from destseg_export.graph.run import Run
from destseg_export.int8.budget import Cost

LEAST_CALIBRATION = 8
"""Normal images that calibrate."""

LEAST_JUDGED = 5
"""Normal, and anomalous, images in each half of those that judge."""

CHANCE = 0.6
"""An AUROC that the float32 graph must exceed with confidence; guessing has 0.5."""

MAP_LIMIT, SCORE_LIMIT = 0.3, 0.15
"""Largest difference of a map's pixel and of a score between int8 and float32."""

GROUPS = 5
"""The accuracy is measured without each of these groups of images in turn (a jackknife)."""

ONE_SIDED = 1.645
"""Standard errors of a bound that holds with 95 % confidence."""


@dataclass(frozen=True, eq=False)
class Answers:
    """A graph's answers on labelled images.

    Attributes:
        maps: float32 (N, h, w).
        scores: float32 (N,).
        masks: bool (N, h, w), the defects.
    """

    maps: NDArray[np.float32]
    scores: NDArray[np.float32]
    masks: NDArray[np.bool_]

    @property
    def labels(self) -> NDArray[np.bool_]:
        """Bool (N,): whether an image has a defect."""
        return np.asarray(self.masks.any(axis=(1, 2)))

    def accuracy(self, without: Sequence[int] = ()) -> Accuracy:
        """Return the metrics, leaving out some images."""
        kept = np.delete(np.arange(len(self.scores)), np.asarray(without, int))
        pixel_ap = pixel_metrics(rank_pixels(self.maps[kept], self.masks[kept])).ap
        return Accuracy(pixel_ap, image_auroc(self.scores[kept], self.labels[kept]))


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
    return Answers(maps, scores, np.stack(list(planes)))


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
            "other judges them. Pass more images with --normal or --labelled."
        )
    halves = [np.concatenate([kind[start::2] for kind in kinds]) for start in (0, 1)]
    first, second = (Labelled(images.frames[half], images.masks[half]) for half in halves)
    return first, second


def check_calibration(count: int) -> None:
    """Refuse too few normal images to calibrate on.

    Raises:
        DataError: With their number.
    """
    if count < LEAST_CALIBRATION:
        raise DataError(
            f"{count} normal images to calibrate on, expected at least {LEAST_CALIBRATION}. Pass "
            "more images with --normal, and at least 8 with --images."
        )


def check_reference(answers: Answers) -> None:
    """Refuse a float32 graph that may be guessing: its accuracy has nothing to lose.

    Raises:
        ExportError: With its AUROC and the lower end of the confidence interval.
    """
    found = answers.accuracy().image_auroc
    least = found - ONE_SIDED * _auroc_error(found, answers.labels)
    if not least > CHANCE:
        raise ExportError(
            f"the float32 graph tells normal from anomalous with an image AUROC of {found:.3f}, "
            f"with 95 % confidence above {least:.3f}, expected {CHANCE} (guessing has 0.5). What "
            "int8 loses cannot be measured. Nothing was written. Train longer, or pass more "
            "images with --labelled."
        )


def check_kept(before: Answers, after: Answers, max_drop: float) -> float:
    """Refuse an int8 graph that may lose more than allowed; return the points that it may lose.

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
        raise ExportError(
            f"int8 loses up to {lost:.2f} points with 95 % confidence on {len(after.scores)} "
            f"images that did not choose the layers, allowed {max_drop}. Nothing was written. "
            "Allow more with --max-drop, pass more images with --labelled, or use fp32."
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
    """Return the points that the worse metric loses at most, with 95 % confidence.

    Both graphs saw the same images, so the error is that of the difference: the delete-a-group
    jackknife.
    """
    order = np.argsort(before.labels, kind="stable")  # normal ones first, so groups have both
    groups = [order[start::GROUPS] for start in range(GROUPS)]
    whole = _losses(before, after, ())
    parts = np.stack([_losses(before, after, group.tolist()) for group in groups])
    error = np.sqrt((GROUPS - 1) * parts.var(axis=0))
    return float((whole + ONE_SIDED * error).max())


def _losses(before: Answers, after: Answers, without: Sequence[int]) -> NDArray[np.float64]:
    """Return the points that pixel AP and image AUROC lose."""
    one, other = before.accuracy(without), after.accuracy(without)
    lost = (one.pixel_ap - other.pixel_ap, one.image_auroc - other.image_auroc)
    return 100 * np.array(lost)


def _auroc_error(found: float, labels: NDArray[np.bool_]) -> float:
    """Return the standard error of an AUROC (Hanley and McNeil, 1982)."""
    positive, negative = int(labels.sum()), int((~labels).sum())
    one, other = found / (2 - found), 2 * found**2 / (1 + found)
    spread = (positive - 1) * (one - found**2) + (negative - 1) * (other - found**2)
    return float(np.sqrt(max(found * (1 - found) + spread, 0.0) / (positive * negative)))
