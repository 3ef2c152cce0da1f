"""Pictures for the people at the line: overlays with a verdict, contact sheets, PNG files.

Images are uint8 (H, W, 3) RGB and anomaly maps float32 (H, W) in [0, 1] of the same size; images
below 256 px are enlarged so that the caption can be read. The pixel threshold is in the middle of
the heat colours, so that low maps are seen as well as high ones; pictures with the same threshold
can be compared. Words and their colours are in text.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from destseg_deploy.errors import ShapeError
from destseg_deploy.files import replacing
from destseg_deploy.pictures.text import (
    GROUND,
    GROUND_TRUTH,
    PREDICTED,
    SMALLEST_SIDE,
    TEXT,
    Colour,
    RgbImage,
    add_strip,
    caption_font,
    caption_rows,
    shorten,
)
from destseg_deploy.spec.limits import are_answers

Mask: TypeAlias = npt.NDArray[np.bool_]
AnomalyMap: TypeAlias = npt.NDArray[np.float32]
Scalar = TypeVar("Scalar", np.uint8, np.float32)

HEAT_FLOOR = 0.25  # heat up to here leaves the image as it is: half the pixel threshold
NO_THRESHOLD = 0.5  # stands for the pixel threshold where there is none: heat is the map value
HEAT_OPACITY = 0.6


def overlay(
    image: RgbImage,
    anomaly_map: AnomalyMap,
    *,
    pixel_threshold: float | None,
    score: float,
    threshold: float | None,
    mask: Mask | None = None,
) -> RgbImage:
    """Return the image with its heat, its outlines and a caption strip below.

    Args:
        image: uint8 (H, W, 3) RGB.
        anomaly_map: float32 (H, W), in [0, 1]. Values up to half the pixel threshold (to 0.25
            without one) leave the image unchanged.
        pixel_threshold: Outlines ``anomaly_map > pixel_threshold`` in white; None draws none.
        score: The image score, finite.
        threshold: The image threshold; None writes "no threshold" instead of a verdict.
        mask: bool (H, W) ground truth. Its outline is cyan and just inside of it; the white one is
            just outside of its region.

    Returns:
        uint8 (H', W', 3) RGB. The picture is at the top, centred when narrower than 256 px. H' and
        W' depend on H, W and on which arguments are None, not on the values.

    Raises:
        ShapeError: If an array has another shape, dtype or range, or a number is not finite.
    """
    _check_inputs(image, anomaly_map, mask)
    rows = caption_rows(score, threshold, pixel_threshold, mask is not None)
    painted = _paint(image, anomaly_map, pixel_threshold, mask)
    return add_strip(painted, rows)


def triptych(
    image: RgbImage,
    anomaly_map: AnomalyMap,
    *,
    pixel_threshold: float | None,
    score: float,
    threshold: float | None,
    mask: Mask | None = None,
) -> RgbImage:
    """Return image, opaque heat map and overlay side by side, above one caption strip.

    For judging a model: the first panel shows what the overlay covers, the second what its
    transparency hides. Arguments and errors are those of ``overlay``.

    Returns:
        uint8 (H', W', 3) RGB.
    """
    _check_inputs(image, anomaly_map, mask)
    rows = caption_rows(score, threshold, pixel_threshold, mask is not None)
    factor = _factor(image)
    heat = _colours(_levels(_enlarge(anomaly_map, factor), pixel_threshold))
    painted = _paint(image, anomaly_map, pixel_threshold, mask)
    gap = np.full((painted.shape[0], _stroke(painted) * 2, 3), GROUND, dtype=np.uint8)
    return add_strip(np.hstack([_enlarge(image, factor), gap, heat, gap, painted]), rows)


def contact_sheet(
    tiles: Sequence[RgbImage],
    *,
    columns: int,
    tile_width: int = 256,
    captions: Sequence[str] = (),
) -> RgbImage:
    """Return the tiles in a grid, row by row, on a dark ground.

    Args:
        tiles: At least one uint8 (H, W, 3) RGB, of any sizes; each is scaled in proportion to fit
            ``tile_width`` x ``2 * tile_width``.
        columns: Tiles in a row, at least 1; fewer are used when there are fewer tiles.
        tile_width: Width of a cell in pixels, at least 32.
        captions: One line below each tile, or none at all; a long one loses its middle. Pillow's
            font has ASCII only; other letters are drawn as boxes.

    Returns:
        uint8 (H', W', 3) RGB.
    """
    gap, font = max(4, tile_width // 32), caption_font(max(11, tile_width // 18))
    line = round(font.size * 1.6) if captions else 0
    columns = min(columns, len(tiles))
    fitted = [_fit(tile, tile_width) for tile in tiles]
    rows = [fitted[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [max(tile.shape[0] for tile in row) + line + gap for row in rows]
    size = (columns * (tile_width + gap) + gap, sum(heights) + gap)
    sheet = Image.new("RGB", size, GROUND)
    draw = ImageDraw.Draw(sheet)
    for index, tile in enumerate(fitted):
        row, column = divmod(index, columns)
        top = gap + sum(heights[:row])
        middle = gap + column * (tile_width + gap) + tile_width // 2
        sheet.paste(Image.fromarray(tile), (middle - tile.shape[1] // 2, top))
        if captions:
            text = shorten(captions[index], font, tile_width)
            foot = (middle, top + heights[row] - gap - line / 2)
            draw.text(foot, text, fill=TEXT, font=font, anchor="mm")
    return np.array(sheet, dtype=np.uint8)


def write_png(path: Path, image: RgbImage) -> None:
    """Write an image so that the file is either complete or absent.

    Args:
        path: File to make or replace. Missing folders are made.
        image: uint8 (H, W, 3) RGB.

    Raises:
        OSError: If the file cannot be written; an older file of that name is then untouched.
    """
    with replacing(path, durable=False) as temporary, temporary.open("xb") as file:
        # Level 3 takes half the time of 6 (Pillow's default) for a fifth more bytes.
        Image.fromarray(image).save(file, format="PNG", compress_level=3)


def _paint(
    image: RgbImage, anomaly_map: AnomalyMap, pixel_threshold: float | None, mask: Mask | None
) -> RgbImage:
    """Return a new uint8 (h, w, 3), enlarged where small: the image under heat and outlines."""
    factor = _factor(image)
    painted = _enlarge(image, factor).copy()
    _blend_heat(painted, _levels(_enlarge(anomaly_map, factor), pixel_threshold))
    bands: list[tuple[npt.NDArray[np.float32], int, int, Colour]] = []
    stroke = _stroke(painted)
    if mask is not None:
        bands.append((_distance(_enlarge_region(mask, factor)), -stroke, -1, GROUND_TRUTH))
    if pixel_threshold is not None:
        # Compared before enlarging: interpolation would lose a peak of one pixel.
        region = _enlarge_region(anomaly_map > np.float32(pixel_threshold), factor)
        # Outside of the region: the line hides neither the defect nor an equal ground truth.
        bands.append((_distance(region), 1, stroke, PREDICTED))
    rim = math.ceil(stroke / 3)
    # All rims before the first line: a dark rim must not cover the line of the other outline.
    for distance, low, high, _ in bands:
        painted[(distance >= low - rim) & (distance <= high + rim)] //= 3
    for distance, low, high, colour in bands:
        painted[(distance >= low) & (distance <= high)] = colour
    return painted


def _levels(anomaly_map: AnomalyMap, pixel_threshold: float | None) -> npt.NDArray[np.uint8]:
    """Return the heat in 256 steps: 0 at 0, the middle at the threshold, 255 at twice it or at 1.

    Both halves are linear. Values slightly outside of [0, 1] become 0 or 255.
    """
    middle = NO_THRESHOLD if pixel_threshold is None else float(pixel_threshold)
    # Without 1e-6, thresholds of 0 and 1 would divide by 0.
    below, above = max(middle, 1e-6), max(min(middle, 1 - middle), 1e-6)
    heat = np.where(
        anomaly_map > np.float32(middle),
        0.5 + (anomaly_map - middle) * (0.5 / above),
        anomaly_map * (0.5 / below),
    )
    return np.asarray(np.rint(np.clip(heat, 0, 1) * 255), np.uint8)


def _colours(levels: npt.NDArray[np.uint8]) -> RgbImage:
    """Look up plasma: even steps of lightness, and saturated where grey or bright parts are not."""
    ramp = np.arange(256, dtype=np.uint8)[:, np.newaxis]
    table = np.asarray(cv2.applyColorMap(ramp, cv2.COLORMAP_PLASMA), dtype=np.uint8)
    return table[:, 0, ::-1][levels]


def _blend_heat(painted: RgbImage, levels: npt.NDArray[np.uint8]) -> None:
    """Lay the heat over ``painted`` in place: opacity rises smoothly from 0 at the floor."""
    ramp = np.clip((np.arange(256) / 255 - HEAT_FLOOR) / (0.5 - HEAT_FLOOR), 0, 1)
    opacity = (HEAT_OPACITY * ramp * ramp * (3 - 2 * ramp)).astype(np.float32)
    hot = levels > HEAT_FLOOR * 255  # only these are touched: exact elsewhere, cheap at 4096 px
    alpha = opacity[levels[hot]][:, np.newaxis]
    mixed = painted[hot] * (1 - alpha) + _colours(levels[hot]) * alpha
    painted[hot] = np.rint(mixed).astype(np.uint8)


def _distance(region: Mask) -> npt.NDArray[np.float32]:
    """Return the distance from a region's border in pixels: 1, 2 ... outside, -1, -2 ... inside."""
    inside = region.astype(np.uint8)
    outward, inward = (
        cv2.distanceTransform(part, cv2.DIST_L2, cv2.DIST_MASK_5) for part in (1 - inside, inside)
    )
    return np.asarray(outward - inward, dtype=np.float32)


def _stroke(image: RgbImage) -> int:
    """Return a line width in pixels that looks alike at every size: 1 at 256, 13 at 4000."""
    height, width = image.shape[:2]
    return max(1, round(math.sqrt(height * width) / 300))


def _factor(image: RgbImage) -> int:
    """Return the whole number that brings the longer side to at least 256 px."""
    longer: int = max(image.shape[:2])
    return math.ceil(SMALLEST_SIDE / longer)


def _enlarge(array: npt.NDArray[Scalar], factor: int) -> npt.NDArray[Scalar]:
    """Enlarge an image smoothly and a map without overshoot; factor 1 returns the array itself."""
    kernel = cv2.INTER_CUBIC if array.ndim == 3 else cv2.INTER_LINEAR
    return array if factor == 1 else _resize(array, factor, kernel)


def _enlarge_region(region: Mask, factor: int) -> Mask:
    """Enlarge a region with rounded corners; each of its pixels stays."""
    return _enlarge(region.astype(np.float32), factor) > 0.5


def _fit(tile: RgbImage, width: int) -> RgbImage:
    """Scale a tile to fit ``width`` x ``2 * width``, in proportion."""
    scale = min(width / tile.shape[1], 2 * width / tile.shape[0])
    return _resize(tile, scale, cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def _resize(array: npt.NDArray[Scalar], scale: float, kernel: int) -> npt.NDArray[Scalar]:
    """Scale both sides, each to one pixel at least, with a kernel of cv2."""
    height, width = (max(1, round(side * scale)) for side in array.shape[:2])
    resized = cv2.resize(array, (width, height), interpolation=kernel)
    return np.asarray(resized, dtype=array.dtype)


def _check_inputs(image: RgbImage, anomaly_map: AnomalyMap, mask: Mask | None) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ShapeError(
            f"image: expected uint8 (H, W, 3) RGB, got {image.dtype} {image.shape}. "
            "Pass one image of RGB pixels in [0, 255]."
        )
    size = image.shape[:2]
    if anomaly_map.dtype != np.float32 or anomaly_map.shape != size:
        raise ShapeError(
            f"anomaly_map: expected float32 {size} as the image, got {anomaly_map.dtype} "
            f"{anomaly_map.shape}. Resize one of them to the other before drawing."
        )
    if not are_answers(anomaly_map).all():
        low, high = float(anomaly_map.min()), float(anomaly_map.max())
        raise ShapeError(
            f"anomaly_map: expected values in [0, 1], got [{low:g}, {high:g}]. "
            "Pass the map that the model gives, or scale it."
        )
    if mask is not None and (mask.dtype != np.bool_ or mask.shape != size):
        raise ShapeError(
            f"mask: expected bool {size} as the image, got {mask.dtype} {mask.shape}. "
            "Pass mask > 0, at the image's size."
        )
