"""The worst errors of a model on a test set, and the page that shows them.

Three groups, each with its worst image first:

1. Normal images with the highest scores: false rejects, then those closest below the threshold.
2. Anomalous images with the lowest scores: missed ones, then those closest above the threshold.
3. Anomalous images that were found, but in the wrong place. For a mask of m pixels, the measure is
   the share of the mask among the m highest pixels of the map; the smallest share comes first.
   Images of the second group are left out.

The third group needs ground truth. The threshold is the artifact's. Without one, it is that of the
best F1 on this test set, which favours the model: no threshold that was set beforehand does better.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from destseg_deploy.data.images import read_image
from destseg_deploy.data.masks import read_mask
from destseg_deploy.data.resize import resize_image, resize_plane
from destseg_deploy.evaluation.test_set import Evaluation, TestSet
from destseg_deploy.pictures.overlays import contact_sheet, triptych
from destseg_deploy.pictures.text import (
    GROUND,
    NEUTRAL,
    TEXT,
    Label,
    RgbImage,
    add_strip,
    caption_font,
    shorten,
)
from destseg_deploy.spec import Threshold, exceeds

PANEL = 300
"""Longest side of a panel in pixels: two triptychs side by side fill a screen."""

COLUMNS = 2
HEADING, MARGIN = 26, 24  # font size, and the space left of the line, in pixels


@dataclass(frozen=True)
class OperatingPoint:
    """The thresholds that decide what is an error.

    Attributes:
        score: An image is judged anomalous when its score is greater.
        pixel: An outline is drawn around greater map values; None for no outline.
        source: Where they come from, in words.
    """

    score: float
    pixel: float | None
    source: str


@dataclass(frozen=True)
class WorstError:
    """One image of a group.

    Attributes:
        index: Its place in the test set.
        remark: How bad it is, in words.
    """

    index: int
    remark: str


@dataclass(frozen=True)
class Group:
    """Errors of one kind, the worst first.

    Attributes:
        title: What they have in common.
        errors: At least one.
    """

    title: str
    errors: tuple[WorstError, ...]


def operating_point(threshold: Threshold | None, result: Evaluation) -> OperatingPoint:
    """Return the artifact's thresholds, or without them those of the best F1 on the test set."""
    if threshold is not None:
        return OperatingPoint(threshold.score, threshold.pixel, "the artifact's threshold")
    pixel = None if result.pixel is None else result.pixel.f1_threshold
    return OperatingPoint(result.image_f1_threshold, pixel, "best F1 on these images")


def worst_errors(test: TestSet, point: OperatingPoint, *, count: int = 4) -> tuple[Group, ...]:
    """Choose the images that show best what the model gets wrong; see the top of this file.

    Args:
        test: A scored test set.
        point: The thresholds.
        count: Images in each group, at most.

    Returns:
        Two groups, or three where an image is left for the third. No image comes twice.
    """
    found = exceeds(test.scores, point.score)
    # Stable, so that images with equal scores keep the order of their names.
    highest, lowest = (np.argsort(key, kind="stable") for key in (-test.scores, test.scores))
    normal, anomalous = highest[~test.labels[highest]][:count], lowest[test.labels[lowest]][:count]
    judged = test.judged(point.score)
    good, bad = int((~test.labels).sum()), int(test.labels.sum())
    groups = [
        Group(
            f"Good parts with the highest scores: {judged.false_rejects} of {good} rejected",
            tuple(_score_error(test, i, point, "false reject") for i in normal),
        ),
        Group(
            f"Defects with the lowest scores: {judged.missed} of {bad} missed",
            tuple(_score_error(test, i, point, "missed") for i in anomalous),
        ),
    ]
    rest = np.flatnonzero(test.labels & found & ~np.isin(np.arange(len(found)), anomalous))
    misplaced = _misplaced(test, rest, count)
    if misplaced:
        groups.append(Group("Defects found, but worst localised", misplaced))
    return tuple(groups)


def mask_share(anomaly_map: NDArray[np.float32], mask: NDArray[np.bool_]) -> float:
    """Return the share of a mask's m pixels that are among the m highest pixels of the map.

    Where the m-th highest value is tied, each of its pixels counts by the chance that a random
    choice among them takes it. So a constant map gets the mask's share of the image.

    Args:
        anomaly_map: float32 (H, W), finite.
        mask: bool (H, W), at least one pixel.

    Returns:
        In [0, 1]; 1 where the m highest pixels are the mask's.
    """
    pixels = int(mask.sum())
    last = np.partition(anomaly_map, anomaly_map.size - pixels, axis=None)[-pixels]
    above, tied = anomaly_map > last, anomaly_map == last
    drawn = (pixels - above.sum()) / tied.sum()
    return float((mask & above).sum() + (mask & tied).sum() * drawn) / pixels


def draw_worst(test: TestSet, point: OperatingPoint, *, count: int = 4) -> RgbImage:
    """Return a page of the worst errors: for each the image, the map, and both with outlines.

    Only the images shown are read again; large ones are drawn at 300 px.

    Args:
        test: A scored test set.
        point: The thresholds; ``pixel`` gives the white outline.
        count: Images in each group, at most.

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        DataError: If an image or mask is no longer readable.
        ShapeError: If a map leaves [0, 1].
    """
    groups = worst_errors(test, point, count=count)
    drawn = [[_tile(test, error, point) for error in group.errors] for group in groups]
    width = max(tile.shape[1] for tiles in drawn for tile in tiles)
    sheets = [_sheet(tiles, width) for tiles in drawn]
    page = max(sheet.shape[1] for sheet in sheets)
    note = f"Judged by score > {point.score:.4g} ({point.source})"
    parts = [_heading(note, page, HEADING * 3 // 4)]
    for group, sheet in zip(groups, sheets, strict=True):
        parts += [_heading(group.title, page, HEADING), _widen(sheet, page)]
    return np.vstack(parts)


def _score_error(test: TestSet, index: np.intp, point: OperatingPoint, wrong: str) -> WorstError:
    """Say how far a score is from the threshold, after ``wrong`` where the verdict is wrong."""
    excess = float(test.scores[index] - np.float32(point.score))
    remark = f"{abs(excess):.3g} {'above' if excess > 0 else 'below'} the threshold"
    if excess == 0:
        remark = "at the threshold"  # which is OK
    is_wrong = (excess > 0) != test.labels[index]
    return WorstError(int(index), f"{wrong}: {remark}" if is_wrong else remark)


def _misplaced(test: TestSet, candidates: Iterable[np.intp], count: int) -> tuple[WorstError, ...]:
    """Return the candidates whose mask the map covers least."""
    if test.masks is None:
        return ()
    shares = {
        int(i): mask_share(test.maps[i], test.masks[i]) for i in candidates if test.masks[i].any()
    }
    worst = sorted(shares, key=shares.__getitem__)[:count]
    return tuple(WorstError(i, f"{shares[i]:.0%} of the mask hit") for i in worst)


def _tile(test: TestSet, error: WorstError, point: OperatingPoint) -> RgbImage:
    """Return the triptych of one image above its name and remark."""
    sample = test.samples[error.index]
    image = read_image(sample.image)
    size = _panel_size(image)
    mask = None if sample.mask is None else read_mask(sample.mask, image.shape[:2], size)
    picture = triptych(
        resize_image(image, size),
        resize_plane(test.maps[error.index], size),
        pixel_threshold=point.pixel,
        score=float(test.scores[error.index]),
        threshold=point.score,
        mask=mask,
    )
    name = shorten(f"{sample.defect}/{sample.image.name}", caption_font(HEADING), picture.shape[1])
    return add_strip(picture, [[Label(name, TEXT), Label(error.remark, NEUTRAL)]])


def _panel_size(image: RgbImage) -> tuple[int, int]:
    """Return the height and width at which an image is drawn; small ones keep theirs."""
    height, width = image.shape[:2]
    scale = min(1.0, PANEL / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _heading(text: str, width: int, size: int) -> RgbImage:
    font = caption_font(size)
    strip = Image.new("RGB", (width, 2 * size), GROUND)
    line = shorten(text, font, width - 2 * MARGIN)
    ImageDraw.Draw(strip).text((MARGIN, 1.25 * size), line, fill=TEXT, font=font, anchor="lm")
    return np.array(strip, dtype=np.uint8)


def _sheet(tiles: Sequence[RgbImage], width: int) -> RgbImage:
    """Put tiles of different sizes in a grid."""
    # At equal width the sheet scales none of them, so all words have the same size.
    equal = [_widen(tile, width) for tile in tiles]
    return contact_sheet(equal, columns=COLUMNS, tile_width=width)


def _widen(sheet: RgbImage, width: int) -> RgbImage:
    """Fill a picture up to a width, on the right."""
    page = np.empty((sheet.shape[0], width, 3), np.uint8)
    page[:] = GROUND
    page[:, : sheet.shape[1]] = sheet
    return page
