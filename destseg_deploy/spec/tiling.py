"""Tiles: a frame is scaled, cut into overlapping tiles, and the maps of the tiles are blended.

The geometry is the same for training, PyTorch, export and pictures, so it is here, without torch.
Sizes are (height, width). Weights are whole multiples of 2⁻¹⁶, as those of the resize: float32
holds them and their sums without rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.errors import SpecError
from destseg_deploy.spec.limits import RESTORE, check_count
from destseg_deploy.spec.reading import show

Size = tuple[int, int]

MAX_SCALE = 4.0
"""Largest scale. More than 1 enlarges: a small part then fills a tile as in training at 256 px."""
MAX_TILES = 4096
"""Largest number of tiles of a frame; each is a slice in the graph."""
WEIGHT_SCALE = 1 << 16
"""Denominator of the blend weights."""


@dataclass(frozen=True)
class TilingSpec:
    """How a frame is cut into tiles; the size of a tile is that of the network.

    Attributes:
        scale: Pixels of the network per pixel of the frame, on both axes.
        overlap: Pixels of the network that neighbouring tiles share, at least.
        tile_batch: Tiles that the network takes at a time; None for all of a frame at once.
    """

    scale: float
    overlap: int
    tile_batch: int | None = None

    def check(self, frame: Size, tile: Size, where: str) -> None:
        """Refuse what cannot be cut.

        Args:
            frame: Size of the frame, in its own pixels.
            tile: Size of the network.
            where: The file and the entry, for the error.

        Raises:
            SpecError: Naming the first entry that is wrong.
        """
        if not 0 < self.scale <= MAX_SCALE:
            raise SpecError(
                f"{where}: scale is {show(self.scale)}, expected more than 0 and at most "
                f"{MAX_SCALE:g}. {RESTORE}"
            )
        check_count(self.overlap, 0, min(tile) - 1, f"{where}: overlap")
        if self.tile_batch is not None:
            check_count(self.tile_batch, 1, MAX_TILES, f"{where}: tile_batch")
        try:
            grid = TileGrid.of(frame, tile, self)
        except SpecError as error:
            raise SpecError(f"{where}: {error}") from None
        if grid.count > MAX_TILES:
            raise SpecError(
                f"{where}: a frame has {grid.count} tiles, expected at most {MAX_TILES}. Use a "
                "smaller scale or overlap."
            )


@dataclass(frozen=True)
class TileGrid:
    """Where the tiles of a frame are, in pixels of the scaled frame.

    Attributes:
        working: Size of the scaled frame.
        tile: Size of each tile.
        rows: First row of each row of tiles.
        columns: First column of each column of tiles.
    """

    working: Size
    tile: Size
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @classmethod
    def of(cls, frame: Size, tile: Size, tiling: TilingSpec) -> TileGrid:
        """Lay the tiles over a frame.

        Raises:
            SpecError: If the scaled frame is smaller than a tile.
        """
        working = working_size(frame, tiling.scale)
        if working[0] < tile[0] or working[1] < tile[1]:
            raise SpecError(
                f"a frame is {working[1]}x{working[0]} pixels at scale {tiling.scale:g}, smaller "
                f"than a tile of {tile[1]}x{tile[0]}. Use a larger scale, or no scale: then the "
                "whole frame is resized to the network."
            )
        rows, columns = (
            tile_positions(length, side, tiling.overlap)
            for length, side in zip(working, tile, strict=True)
        )
        return cls(working, tile, rows, columns)

    @property
    def count(self) -> int:
        """Number of tiles."""
        return len(self.rows) * len(self.columns)

    def weights(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the blend weights along the rows and along the columns; see ``blend_weights``."""
        return (
            blend_weights(self.working[0], self.tile[0], self.rows),
            blend_weights(self.working[1], self.tile[1], self.columns),
        )


def working_size(frame: Size, scale: float) -> Size:
    """Return the size of the scaled frame: rounded, halves up, and at least one pixel."""
    height, width = (max(1, math.floor(side * scale + 0.5)) for side in frame)
    return height, width


def tile_positions(length: int, tile: int, overlap: int) -> tuple[int, ...]:
    """Return the first pixel of each tile along an axis.

    The tiles are spread evenly, the first at 0 and the last at ``length - tile``. They are as few
    as share at least ``overlap`` pixels with their neighbours.

    Raises:
        SpecError: If the axis is shorter than a tile, or the overlap is not in [0, tile).
    """
    if length < tile:
        raise SpecError(
            f"an axis of {length} pixels is shorter than a tile of {tile}. Use a larger scale."
        )
    check_count(overlap, 0, tile - 1, "overlap")
    span, most = length - tile, tile - overlap
    steps = -(-span // most)
    return (0, *(i * span // steps for i in range(1, steps + 1)))


def blend_weights(length: int, tile: int, positions: tuple[int, ...]) -> NDArray[np.float64]:
    """Return the weight of each pixel of each tile along an axis.

    A weight falls linearly from the middle of a tile to its borders, and is divided by the sum over
    the tiles that hold the pixel: between two tiles it is a ramp, elsewhere it is 1. A pixel of a
    map has the product of its weights along the rows and along the columns.

    Args:
        length: Pixels of the axis.
        tile: Pixels of a tile.
        positions: First pixel of each tile; the tiles must cover the axis.

    Returns:
        float64 (tiles, tile), multiples of 2⁻¹⁶ in [0, 1]. At each pixel of the axis, the weights
        of the tiles that hold it sum to exactly 1.
    """
    pixels = np.arange(tile)
    triangle = np.minimum(pixels, pixels[::-1]) + 0.5
    full = np.zeros((len(positions), length))
    for row, start in zip(full, positions, strict=True):
        row[start : start + tile] = triangle
    whole = np.floor(full / full.sum(axis=0) * WEIGHT_SCALE)
    # What rounding down took away goes to the tile with the largest weight of the pixel.
    whole[full.argmax(axis=0), np.arange(length)] += WEIGHT_SCALE - whole.sum(axis=0)
    return np.stack([row[p : p + tile] for row, p in zip(whole, positions, strict=True)]) / (
        WEIGHT_SCALE
    )
