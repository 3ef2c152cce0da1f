"""PatchCore's memory bank: which patch features it keeps, and how far a patch is from it.

Roth et al., CVPR 2022, Sections 3.2 and 3.3. The bank is the approximate greedy coreset: features
are projected at random to 128 numbers, each starts at its mean distance to 10 random ones, and
then, again and again, the farthest feature is picked and every feature keeps its distance to the
nearest pick. Search is exact. Distances are enlarged to a map and smoothed: both steps are linear
and separable, so a map S becomes M S M^T, where M is the product of their matrices.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

PROJECTED = 128
STARTS = 10

CHUNK_BYTES = 256 << 20
"""Of the matrix of queries and rows that is kept in memory at a time."""

TRUNCATE = 4.0
"""Where the Gaussian is cut, in sigmas: SciPy's default."""


class Coreset:
    """All patch features of the normal images, and those picked so far.

    Attributes:
        features: float32 (patches, width), zero where none were put yet.
        picked: int64 (picks,), rows of ``features``; the first ``done`` count.
        done: Picks made.
    """

    def __init__(
        self, patches: int, width: int, picks: int, *, device: torch.device, seed: int
    ) -> None:
        """Reserve memory for the features.

        Args:
            patches: Number of features.
            width: Numbers of each.
            picks: How many will be picked.
            device: Where they are kept.
            seed: Of the projection and the random starts.
        """
        self._random = torch.Generator().manual_seed(seed)
        self.features = torch.zeros(patches, width, device=device)
        self.picked = torch.zeros(picks, dtype=torch.int64, device=device)
        self.done = 0
        self._projection = random_projection(width, self._random).to(device)
        self._projected = torch.zeros(patches, PROJECTED, device=device)
        self._squares = self._distances = torch.zeros(patches, device=device)

    def put(self, first: int, features: Tensor) -> None:
        """Store features (n, width) from row ``first`` on."""
        rows = slice(first, first + len(features))
        self.features[rows] = features
        self._projected[rows] = features @ self._projection

    def start(self) -> None:
        """Give every feature its squared mean distance to the random ones; none is picked yet."""
        count = min(STARTS, len(self.features))
        rows = torch.randperm(len(self.features), generator=self._random)[:count]
        self._squares = self._projected.square().sum(dim=1)  # once, for all distances
        total = torch.zeros_like(self._squares)
        for row in rows.to(self._squares.device):
            total += self._squared_distances(row[None]).sqrt()
        self._distances = (total / count).square()
        self.done = 0

    def pick(self, number: int) -> Tensor:
        """Pick the farthest feature as number ``number`` and return its distance, a scalar.

        The distance is of projected features. Nothing here waits for the device.
        """
        farthest, row = self._distances.max(dim=0, keepdim=True)
        self.picked[number : number + 1] = row
        torch.minimum(self._distances, self._squared_distances(row), out=self._distances)
        self.done = max(self.done, number + 1)
        return farthest.squeeze(0).sqrt()

    def rows(self) -> Tensor:
        """Return the features picked so far, float32 (done, width)."""
        return self.features[self.picked[: self.done]]

    def _squared_distances(self, row: Tensor) -> Tensor:
        """Return the squared distances of all features to one, whose row is int64 (1,)."""
        center = self._projected.index_select(0, row).squeeze(0)
        square = self._squares.index_select(0, row)
        # |a - b|^2 by one matrix-vector product; rounding may make it negative, hence the clamp.
        products = torch.mv(self._projected, center)
        return products.mul_(-2).add_(self._squares).add_(square).clamp_(min=0)


def random_projection(width: int, random: torch.Generator) -> Tensor:
    """Return a linear layer's initial weights, uniform within 1 / sqrt(width), (width, 128)."""
    bound = 1 / math.sqrt(width)
    return (torch.rand(width, PROJECTED, generator=random) * 2 - 1) * bound


def squared_distances(queries: Tensor, bank: Tensor) -> Tensor:
    """Return each query's squared Euclidean distance to the nearest row of a bank.

    One matrix product finds the nearest row; its distance is then computed from the difference.
    |q - b|^2 = |q|^2 - 2 q.b + |b|^2 loses the digits that |q|^2 and the rest have in common, and
    its rounding depends on the batch. The row it finds is right up to that rounding, and the
    distance to that row does not suffer from it.

    Args:
        queries: float32 (M, C).
        bank: float32 (rows, C).

    Returns:
        float32 (M,).
    """
    halves = bank.square().sum(dim=1) / 2
    count = max(1, CHUNK_BYTES // (4 * len(bank)))  # the whole matrix may not fit a GPU
    found = []
    for part in torch.split(queries, count):
        closeness = torch.addmm(halves, part, bank.T, beta=-1)
        found.append((part - bank[closeness.argmax(dim=1)]).square().sum(dim=1))
    return torch.cat(found)


def enlarge_and_smooth(source: int, target: int, sigma: float) -> NDArray[np.float32]:
    """Return weights that make ``target`` smoothed values of ``source``, (target, source).

    The smoothing is ``scipy.ndimage.gaussian_filter``'s (mode ``reflect``); each row sums to 1.
    """
    unit = torch.eye(source, dtype=torch.float64)[None]  # interpolated, it is the weights
    bilinear = F.interpolate(unit, target, mode="linear", align_corners=False)[0].T.numpy()
    return np.asarray(gaussian_matrix(target, sigma) @ bilinear, np.float32)


def gaussian_matrix(size: int, sigma: float) -> NDArray[np.float64]:
    """Return Gaussian weights, (size, size); the border is mirrored with the edge value twice."""
    radius = int(TRUNCATE * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    # The mirrored line has period 2 * size; the modulo serves kernels wider than the line.
    positions = (np.arange(size)[:, None] + offsets) % (2 * size)
    positions = np.minimum(positions, 2 * size - 1 - positions)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size)[:, None], positions), kernel / kernel.sum())
    return matrix
