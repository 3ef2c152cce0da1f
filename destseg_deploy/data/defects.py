"""Regions of an anomaly map above the pixel threshold, in a frame's pixels.

The map is brought to the frame's size, bilinearly with centres of pixels at halves, in float64, and
rounded to float32. So ``cpp/src/defects.cpp`` finds equal values, not only similar ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from destseg_deploy.errors import ShapeError
from destseg_deploy.spec.limits import are_answers


@dataclass(frozen=True, eq=False)
class Defect:
    """A region whose pixels touch each other, also at corners. (0, 0) is the top left pixel.

    Attributes:
        box: The smallest box around it: left column, top row, width, height.
        area: In pixels.
        peak: The greatest value of the map in it, in [0, 1].
        peak_at: Where that is, (x, y); the first of equal ones, row by row.
        centroid: Mean of its pixels' coordinates, (x, y).
        contour: int32 (N, 2), (x, y) of each pixel of the outer border, counterclockwise, from the
            leftmost of the top row on; holes have no contour.
    """

    box: tuple[int, int, int, int]
    area: int
    peak: float
    peak_at: tuple[int, int]
    centroid: tuple[float, float]
    contour: NDArray[np.int32]


def find_defects(
    anomaly_map: NDArray[np.float32], size: tuple[int, int], threshold: float
) -> list[Defect]:
    """Return the regions above a threshold, the greatest peak first.

    Args:
        anomaly_map: float32 (H, W), in [0, 1].
        size: Height and width of the frame, in pixels.
        threshold: In [0, 1]; a pixel of a greater value is part of a defect.

    Returns:
        The defects; of equal peaks, the one that begins first, row by row, comes first.

    Raises:
        ShapeError: If the map is no float32 (H, W) or a value in it is not within [0, 1], a side of
            the frame is below 1, or the threshold is not within [0, 1].
    """
    if anomaly_map.ndim != 2 or anomaly_map.dtype != np.float32 or 0 in anomaly_map.shape:
        raise ShapeError(
            f"map: expected float32 (H, W), got {anomaly_map.dtype} {anomaly_map.shape}. Pass one "
            "map of a prediction, such as prediction.anomaly_map[0]."
        )
    if min(size) < 1:
        raise ShapeError(f"size: {size[0]}x{size[1]} pixels, expected at least 1 on each side.")
    if not 0 <= threshold <= 1:
        raise ShapeError(f"threshold: {threshold!r}, expected a number from 0 to 1, as maps are.")
    if not (right := are_answers(anomaly_map)).all():
        raise ShapeError(
            f"map: {anomaly_map[~right][0]} in it, expected numbers from 0 to 1. Pass a map of a "
            "prediction, such as prediction.anomaly_map[0]."
        )
    cut = np.float32(threshold)
    if not (anomaly_map > cut).any():  # no mean of two pixels is greater than both
        return []
    values = enlarge_map(anomaly_map, size)
    _, found_labels, stats, _ = cv2.connectedComponentsWithStats(
        (values > cut).astype(np.uint8), connectivity=8
    )
    labels = np.asarray(found_labels, np.int32)
    found = [
        _defect(values, np.asarray(labels, np.int32), label, tuple(map(int, box)))
        for label, box in enumerate(stats[1:, :4], start=1)
    ]
    found.sort(key=lambda defect: tuple(defect.contour[0][::-1]))
    return sorted(found, key=lambda defect: -defect.peak)


def enlarge_map(anomaly_map: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Bring a map (H, W) to another height and width, as ``find_defects`` sees it."""
    low, high, share = _taps(anomaly_map.shape[0], size[0])
    exact = anomaly_map.astype(np.float64)
    rows = exact[low] * (1 - share)[:, None] + exact[high] * share[:, None]
    low, high, share = _taps(anomaly_map.shape[1], size[1])
    return (rows[:, low] * (1 - share) + rows[:, high] * share).astype(np.float32)


def _taps(
    source: int, target: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Return, for each pixel, the two that it lies between and the share of the second."""
    at = np.clip((np.arange(target) + 0.5) * (source / target) - 0.5, 0, source - 1)
    low = np.floor(at)
    high = np.minimum(low + 1, source - 1)
    return low.astype(np.intp), high.astype(np.intp), at - low


def _defect(
    values: NDArray[np.float32],
    labels: NDArray[np.int32],
    label: int,
    box: tuple[int, ...],
) -> Defect:
    left, top, width, height = box
    inside = labels[top : top + height, left : left + width] == label
    part = np.where(inside, values[top : top + height, left : left + width], -np.inf)
    peak_y, peak_x = divmod(int(np.argmax(part)), width)
    ys, xs = np.nonzero(inside)
    area = len(xs)
    contours, _ = cv2.findContours(
        inside.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE, offset=(left, top)
    )
    centroid = (
        (int(xs.sum()) + left * area) / area,
        (int(ys.sum()) + top * area) / area,
    )
    return Defect(
        box=(left, top, width, height),
        area=area,
        peak=float(part[peak_y, peak_x]),
        peak_at=(left + peak_x, top + peak_y),
        centroid=centroid,
        contour=contours[0][:, 0].astype(np.int32),
    )
