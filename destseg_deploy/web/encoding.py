"""An image with its anomaly map and ground truth as small JSON, of which a browser draws overlays.

The browser gets values instead of a finished picture, so that heat and outline follow a threshold
that is moved. The image is WebP of limited size. The map is one byte for each cell of a coarse
grid: 255 times the square root of the cell's largest value, rounded down. So small values keep
their differences, and no cell is shown higher than it is. The highest value is told exactly, so
that an image has an outline if and only if its map exceeds the threshold. The ground truth is
polygons.
"""

from __future__ import annotations

import base64
from io import BytesIO
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Mask: TypeAlias = NDArray[np.bool_]

QUALITIES = (80, 50, 25, 10)
"""Of WebP; the first whose file is small enough is taken, else the last."""


def encode_picture(
    image: NDArray[np.uint8],
    anomaly_map: NDArray[np.float32],
    mask: Mask | None = None,
    *,
    cells: int,
    limit: int,
) -> dict[str, Any]:
    """Return what ``drawing.js`` draws.

    Args:
        image: uint8 (H, W, 3) RGB at the size to be shown.
        anomaly_map: float32 (h, w), in [0, 1], of any size with about the image's aspect ratio.
        mask: bool (H, W) ground truth; None where it is not known.
        cells: Cells on the longer side of the grid, at most.
        limit: Bytes of the image's WebP, at most where a quality of 10 is small enough.
    """
    grid = encode_map(anomaly_map, _grid_size(image.shape[:2], anomaly_map.shape, cells))
    return {
        "image": f"data:image/webp;base64,{_text(_webp(image, limit))}",
        "width": image.shape[1],
        "height": image.shape[0],
        "levels": _text(grid.tobytes()),
        "columns": grid.shape[1],
        "rows": grid.shape[0],
        "peak": float(anomaly_map.max()),
        "truth": [] if mask is None else _polygons(mask),
    }


def encode_map(anomaly_map: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the largest value of each cell as 255 times its square root, rounded down: uint8.

    Args:
        anomaly_map: float32 (h, w), in [0, 1]; rounding may leave that range.
        size: Rows and columns, at most those of the map.
    """
    pooled = anomaly_map
    for axis, (cells, pixels) in enumerate(zip(size, anomaly_map.shape, strict=True)):
        starts = np.arange(cells) * pixels // cells
        pooled = np.maximum.reduceat(pooled, starts, axis=axis)
    pooled = np.clip(pooled, 0, 1)
    levels = np.rint(255 * np.sqrt(pooled))
    # As a browser computes it; where rounding went up, one step down is below the value.
    levels -= ((levels.astype(np.float64) / 255) ** 2).astype(np.float32) > pooled
    return np.asarray(levels, np.uint8)


def _grid_size(image: tuple[int, ...], anomaly_map: tuple[int, ...], cells: int) -> tuple[int, int]:
    """Return rows and columns in the image's proportion, no more than the map has."""
    scale = cells / max(image)
    rows, columns = (
        max(1, min(round(side * scale), most))
        for side, most in zip(image, anomaly_map, strict=True)
    )
    return rows, columns


def _webp(image: NDArray[np.uint8], limit: int) -> bytes:
    content = b""
    for quality in QUALITIES:
        file = BytesIO()
        Image.fromarray(image).save(file, format="WEBP", quality=quality, method=4)
        content = file.getvalue()
        if len(content) <= limit:
            break
    return content


def _polygons(mask: Mask) -> list[list[int]]:
    """Return the outlines of a mask, holes included, as x, y, x, y ... in pixels of the image."""
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_TC89_L1)
    return [[int(value) for value in outline.ravel()] for outline in outlines]


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
