"""A frame cut into tiles, and the maps of its tiles blended into one, in constant steps.

The tiles of all images lie on the batch axis, one tile of all images after the other: so a batch
that is known at run time only stays one unknown size. Tiles go down each column of tiles in turn,
so that all tiles of a column can be blended at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from destseg_deploy.spec import TileGrid


class AxisBlend(nn.Module):
    """Blends overlapping maps along one axis, piece by piece.

    The axis is cut where a tile begins or ends. In each piece the same tiles overlap, so that it is
    a weighted sum of slices, and no map is padded to the size of the frame.
    """

    def __init__(
        self, weights: NDArray[np.float64], positions: Sequence[int], axis: int, tile: int
    ) -> None:
        """Cut the axis and keep the weights of each piece.

        Args:
            weights: float64 (tiles, tile), see ``spec.blend_weights``.
            positions: First pixel of each tile.
            axis: -1 to blend along the columns, -2 along the rows.
            tile: Pixels of a tile along the axis.
        """
        super().__init__()
        self.axis = axis
        cuts = sorted({*positions, *(start + tile for start in positions)})
        self.pieces = [
            [(i, a - p, b - p) for i, p in enumerate(positions) if p <= a and b <= p + tile]
            for a, b in itertools.pairwise(cuts)
        ]
        self.weights: list[list[str]] = []
        for number, piece in enumerate(self.pieces):
            names = [f"weights_{number}_{i}" for i, _, _ in piece]
            for name, (i, a, b) in zip(names, piece, strict=True):
                self.register_buffer(name, _along(weights[i, a:b], axis), persistent=False)
            self.weights.append(names)

    def forward(self, maps: Tensor) -> Tensor:
        """Blend (tiles, N, h, w) to (N, h, length), or (N, length, w)."""
        blended = [
            self._piece(maps, piece, names)
            for piece, names in zip(self.pieces, self.weights, strict=True)
        ]
        return torch.cat(blended, dim=self.axis) if len(blended) > 1 else blended[0]

    def _piece(self, maps: Tensor, piece: list[tuple[int, int, int]], names: list[str]) -> Tensor:
        slices = [maps[i].narrow(self.axis, a, b - a) for i, a, b in piece]
        if len(slices) == 1:  # its weight is 1
            return slices[0]
        total = slices[0] * self.get_buffer(names[0])
        for part, name in zip(slices[1:], names[1:], strict=True):
            total = total + part * self.get_buffer(name)
        return total


def _along(weights: NDArray[np.float64], axis: int) -> Tensor:
    """Return weights as float32 that multiply (N, h, w) along an axis."""
    values = torch.from_numpy(weights.astype(np.float32))
    return values if axis == -1 else values[:, None]


class TiledMap(nn.Module):
    """Runs a network on the tiles of a frame and blends their maps."""

    order: Tensor

    def __init__(
        self, grid: TileGrid, inside: NDArray[np.bool_] | None, tile_batch: int | None
    ) -> None:
        """Choose the tiles and how many are computed at a time.

        Args:
            grid: Where the tiles are.
            inside: bool, of the scaled frame's size: what is inspected; None for all. A tile that
                lies outside is not computed, and its map is 0.
            tile_batch: Tiles of an image that the network takes at a time, at most; None for all.
        """
        super().__init__()
        self.grid = grid
        height, width = grid.tile
        places = [(y, x) for x in grid.columns for y in grid.rows]
        wanted = [
            inside is None or bool(inside[y : y + height, x : x + width].any()) for y, x in places
        ]
        chosen = [place for place, take in zip(places, wanted, strict=True) if take]
        self.chunks = _in_chunks(chosen, tile_batch or len(chosen))
        self.complete = len(chosen) == len(places)
        # A tile that is not computed reads the map of zeros behind all others.
        order = np.where(wanted, np.cumsum(wanted) - 1, len(chosen))
        self.register_buffer("order", torch.from_numpy(order), persistent=False)
        rows, columns = grid.weights()
        self.columns = AxisBlend(columns, grid.columns, -1, width)
        self.rows = AxisBlend(rows, grid.rows, -2, height)

    def forward(self, image: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
        """Map a scaled frame (N, 3, H, W) to its blended map (N, 1, H, W).

        Args:
            image: Normalised pixels.
            network: Maps (M, 3, h, w) to (M, 1, h, w), tiles of several images.
        """
        height, width = self.grid.tile
        parts = [
            network(self._cut(image, chunk)).reshape(len(chunk), -1, height, width)
            for chunk in self.chunks
        ]
        maps = torch.cat(parts) if len(parts) > 1 else parts[0]  # (tiles, N, h, w)
        if not self.complete:
            maps = torch.cat([maps, maps[:1] * 0]).index_select(0, self.order)
        maps = maps.reshape(len(self.grid.columns), -1, height, width)  # (columns, rows * N, h, w)
        strips = self.columns(maps)
        strips = strips.reshape(len(self.grid.rows), -1, height, self.grid.working[1])
        blended: Tensor = self.rows(strips)
        return blended.unsqueeze(1)

    def _cut(self, image: Tensor, places: Sequence[tuple[int, int]]) -> Tensor:
        height, width = self.grid.tile
        tiles = [image[:, :, y : y + height, x : x + width] for y, x in places]
        return torch.cat(tiles) if len(tiles) > 1 else tiles[0]


def _in_chunks(places: list[tuple[int, int]], most: int) -> list[list[tuple[int, int]]]:
    """Split a list into as few parts as there must be, of nearly equal lengths."""
    parts = -(-len(places) // most)
    ends = [i * len(places) // parts for i in range(parts + 1)]
    return [places[a:b] for a, b in itertools.pairwise(ends)]
