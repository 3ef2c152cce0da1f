"""THE resize: one kernel for training, evaluation, exported graph and GPU preprocessing.

DeSTSeg trains on Pillow's BILINEAR, which is antialiased: a triangle as wide as the scale factor,
its weights renormalised at the borders, first along the width, then along the height, rounded to
whole grey levels after each pass. Both passes are linear, so for known sizes

    Y = round(A_h · round(X · A_wᵀ))

with two constant matrices. Here their entries are whole multiples of 2⁻¹⁶ and each row sums to
exactly 1. Every partial sum is then a multiple of 2⁻¹⁶ below 2⁸, which float32 holds without
rounding, in whatever order it adds: NumPy, PyTorch and ONNX Runtime give the same bits (tested on
a CPU), and so must any back end that multiplies in float32. Against Pillow itself the result
differs by at most one grey level. (TF32 and FP16 products are not exact.)
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.errors import ShapeError

SCALE = 1 << 16
"""Denominator of the weights: 255 · 2¹⁶ < 2²⁴, the integers that float32 counts exactly."""

PILLOW_SCALE = 1 << 22
NOISE = 1e-6
"""In units of 2⁻¹⁶: above float64's own error in a weight, below a remainder that counts."""


def resize_matrix(source: int, target: int) -> NDArray[np.float32]:
    """Return the weights that resize ``source`` pixels to ``target`` along one axis.

    Args:
        source: Number of pixels before, at least 1.
        target: Number of pixels after, at least 1.

    Returns:
        float32 (target, source): rows of non-negative multiples of 2⁻¹⁶ that sum to exactly 1.
        The identity when both numbers are equal.

    Raises:
        ShapeError: If a number is below 1.
    """
    if source < 1 or target < 1:
        raise ShapeError(
            f"resize from {source} to {target} pixels: expected at least 1 on each side"
        )
    scale = source / target
    support = max(scale, 1.0)
    centers = (np.arange(target)[:, None] + 0.5) * scale
    distances = (np.arange(source)[None, :] + 0.5 - centers) / support
    weights = np.clip(1.0 - np.abs(distances), 0.0, None)
    weights /= weights.sum(axis=1, keepdims=True)
    return (_round_rows(weights * SCALE) / SCALE).astype(np.float32)


def _round_rows(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round to integers, keeping each row's integral sum: what Pillow rounds up goes up first.

    Pillow rounds each weight to a multiple of 2⁻²², and a sum that lies exactly half way between
    two grey levels then falls to the side of these errors. With errors of the same sign here, it
    falls to the same side.
    """
    floor = np.floor(rows + NOISE)
    missing = np.rint((rows - floor).sum(axis=1)).astype(int)
    fine = rows * (PILLOW_SCALE // SCALE)
    error = np.where(rows - floor > NOISE, np.rint(fine) - fine, -1.0)  # whole weights stay
    order = np.argsort(-error, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(rows.shape[1])[None, :], axis=1)
    return np.where(ranks < missing[:, None], floor + 1, floor)


@lru_cache(maxsize=32)
def _cached_matrix(source: int, target: int) -> NDArray[np.float32]:
    matrix = resize_matrix(source, target)
    matrix.setflags(write=False)
    return matrix


def resize_image(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize pixels with THE resize.

    Args:
        image: uint8 (H, W, 3), any size.
        size: Height and width wanted.

    Returns:
        uint8 (height, width, 3); the same array when it has that size already.

    Raises:
        ShapeError: If the image is not uint8 (H, W, 3).
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ShapeError(
            f"image: expected uint8 (H, W, 3), got {image.dtype} {image.shape}. "
            "Pass RGB pixels in [0, 255]."
        )
    if image.shape[:2] == size:
        return image
    planes = image.transpose(2, 0, 1).astype(np.float32)
    rows = np.floor(planes @ _cached_matrix(image.shape[1], size[1]).T + np.float32(0.5))
    columns = np.floor(_cached_matrix(image.shape[0], size[0]) @ rows + np.float32(0.5))
    return np.ascontiguousarray(columns.astype(np.uint8).transpose(1, 2, 0))


def resize_plane(plane: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Resize one float plane (H, W) with the same weights and no rounding; used for masks."""
    if plane.shape == size:
        return plane
    resized = (
        _cached_matrix(plane.shape[0], size[0]) @ plane @ _cached_matrix(plane.shape[1], size[1]).T
    )
    return resized.astype(np.float32)
