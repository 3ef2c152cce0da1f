"""Bilinear enlarging and then Gaussian smoothing, as one matrix per axis.

Both are linear and separable: a map S becomes M S M^T, where M is the product of their matrices.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TRUNCATE = 4.0
"""Where the Gaussian is cut, in sigmas: SciPy's default."""


def enlarge_and_smooth(source: int, target: int, sigma: float) -> NDArray[np.float32]:
    """Return weights that make ``target`` smoothed values of ``source``, (target, source).

    They are those of ``torch.nn.functional.interpolate`` (bilinear, ``align_corners=False``)
    followed by ``scipy.ndimage.gaussian_filter`` (mode ``reflect``); each row sums to 1.
    """
    return (gaussian_matrix(target, sigma) @ bilinear_matrix(source, target)).astype(np.float32)


def bilinear_matrix(source: int, target: int) -> NDArray[np.float64]:
    """Return bilinear weights without antialiasing, float64 (target, source)."""
    centers = (np.arange(target) + 0.5) * source / target - 0.5
    distances = np.clip(centers, 0, source - 1)[:, None] - np.arange(source)
    return np.asarray(np.clip(1 - np.abs(distances), 0, None), np.float64)


def gaussian_matrix(size: int, sigma: float) -> NDArray[np.float64]:
    """Return Gaussian weights, mirrored at the border with the edge value twice, (size, size)."""
    radius = int(TRUNCATE * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    positions = (np.arange(size)[:, None] + offsets) % (2 * size)
    positions = np.minimum(positions, 2 * size - 1 - positions)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size)[:, None], positions), kernel / kernel.sum())
    return matrix
