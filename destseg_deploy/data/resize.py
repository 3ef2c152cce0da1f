"""The one resize of training, evaluation, exported graph and GPU preprocessing.

DeSTSeg trains on Pillow's BILINEAR, which is antialiased: a triangle as wide as the scale factor,
its weights renormalised at the borders, first along the width, then along the height, rounded to
whole grey levels after each pass. Both passes are linear, so for known sizes

    Y = round(A_h · round(X · A_wᵀ))

with two constant matrices. Here their entries are whole multiples of 2⁻¹⁶ and each row sums to
exactly 1. Every partial sum is then a multiple of 2⁻¹⁶ below 2⁸, and float32 holds such a sum
without rounding, for every order of the additions. So NumPy, PyTorch and ONNX Runtime give the same
bits (tested on a CPU), and every back end that multiplies in float32 must give them, too. (TF32 and
FP16 products are not exact.) The result differs from Pillow's by at most one grey level.
"""

from __future__ import annotations

import warnings
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.errors import DataWarning, ShapeError

SCALE = 1 << 16
"""Denominator of the weights: 255 · 2¹⁶ < 2²⁴, the integers that float32 counts exactly."""

PILLOW_SCALE = 1 << 22
"""Denominator of Pillow's weights."""

BAND = 1 << 20
"""Pixels that are resized at a time."""

SQUEEZE = 2.0
"""Ratio of the two sides' scales up to which nothing is said."""

NOISE = 1e-6
"""In units of 2⁻¹⁶: larger than float64's error in a weight, smaller than any true remainder."""


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
    """Round to integers and keep each row's sum, which is an integer.

    Some weights are rounded up and the others down. Those that Pillow rounds up most are rounded up
    first: Pillow rounds each weight to a multiple of 2⁻²², and where a sum lies exactly half way
    between two grey levels, these errors decide which level Pillow gives. Errors of the same sign
    give the same level here.
    """
    floor = np.floor(rows + NOISE)
    missing = np.rint((rows - floor).sum(axis=1)).astype(int)
    fine = rows * (PILLOW_SCALE // SCALE)
    error = np.where(rows - floor > NOISE, np.rint(fine) - fine, -1.0)  # whole weights stay
    order = np.argsort(-error, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(rows.shape[1])[None, :], axis=1)
    return np.where(ranks < missing[:, None], floor + 1, floor)


BLOCK = 128
"""Pixels of the result that are computed at a time along an axis. Most weights of a row are 0; the
columns in which a block of rows has others are few, and the product needs only these."""


def _spread(planes: NDArray[np.float32], target: int) -> NDArray[np.float32]:
    """Resize the last axis of float32 (..., source); blocks change no bit of exact sums."""
    matrix = _cached_matrix(planes.shape[-1], target)
    if target <= 2 * BLOCK:
        return planes @ matrix.T
    parts = []
    for start in range(0, target, BLOCK):
        rows = matrix[start : start + BLOCK]
        used = np.flatnonzero(rows.any(axis=0))
        low, high = used[0], used[-1] + 1
        parts.append(planes[..., low:high] @ rows[:, low:high].T)
    return np.concatenate(parts, axis=-1)


@lru_cache(maxsize=32)
def _cached_matrix(source: int, target: int) -> NDArray[np.float32]:
    matrix = resize_matrix(source, target)
    matrix.setflags(write=False)
    return matrix


def resize_image(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize an image.

    Args:
        image: uint8 (H, W, 3), any size.
        size: Height and width of the result.

    Returns:
        uint8 (height, width, 3); the given array itself when it has that size already.

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
    # Width first, then height, each rounded half up to whole grey levels, as Pillow does it.
    rows = np.empty((3, image.shape[0], size[1]), np.float32)
    # Some rows at a time: a large image as float32 takes four times its memory.
    step = max(1, BAND // image.shape[1])
    for top in range(0, image.shape[0], step):
        planes = image[top : top + step].transpose(2, 0, 1).astype(np.float32)
        rows[:, top : top + step] = np.floor(_spread(planes, size[1]) + np.float32(0.5))
    columns = np.floor(_spread(rows.transpose(0, 2, 1), size[0]) + np.float32(0.5))
    return np.ascontiguousarray(columns.astype(np.uint8).transpose(2, 1, 0))


def remark_squeeze(shape: tuple[int, ...], size: tuple[int, int]) -> bool:
    """Warn where a resize squeezes one side more than ``SQUEEZE`` times as much as the other.

    Args:
        shape: Height and width before.
        size: Height and width after.

    Returns:
        Whether it warned.
    """
    ratio = shape[1] / shape[0] * size[0] / size[1]
    squeeze = max(ratio, 1 / ratio)
    if squeeze <= SQUEEZE:
        return False
    warnings.warn(
        f"images of {shape[1]}x{shape[0]} pixels are resized to {size[1]}x{size[0]}: one side is "
        f"squeezed {squeeze:.3g} times as much as the other, and small defects may vanish. "
        "Train on tiles (--scale), or cut such images into nearly square ones.",
        DataWarning,
        stacklevel=1,
    )
    return True


def resize_plane(plane: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Resize a float32 plane (H, W), such as a mask, with the same weights and without rounding."""
    if plane.shape == size:
        return plane
    resized = (
        _cached_matrix(plane.shape[0], size[0]) @ plane @ _cached_matrix(plane.shape[1], size[1]).T
    )
    return resized.astype(np.float32)
