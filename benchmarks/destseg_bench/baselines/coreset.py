"""PatchCore's memory bank: the patch features chosen by the approximate greedy coreset.

Features are projected at random to 128. Each starts at its mean distance to 10 random ones; then
the farthest is picked, again and again, and every feature keeps its distance to the nearest pick.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

PROJECTED = 128
STARTS = 10


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
        """Make room for the features.

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
        self._squares = self._projected.square().sum(dim=1)
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

    def _squared_distances(self, row: Tensor) -> Tensor:
        """Return the squared distances of all features to one, whose row is int64 (1,)."""
        center = self._projected.index_select(0, row).squeeze(0)
        square = self._squares.index_select(0, row)
        products = torch.mv(self._projected, center)
        return products.mul_(-2).add_(self._squares).add_(square).clamp_(min=0)

    def rows(self) -> Tensor:
        """Return the features picked so far, float32 (done, width)."""
        return self.features[self.picked[: self.done]]


def random_projection(width: int, random: torch.Generator) -> Tensor:
    """Return a linear layer's initial weights, uniform within 1 / sqrt(width), (width, 128)."""
    bound = 1 / math.sqrt(width)
    return (torch.rand(width, PROJECTED, generator=random) * 2 - 1) * bound
