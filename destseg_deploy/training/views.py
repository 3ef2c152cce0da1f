"""What the network sees of a frame: all of it, or tiles; and the images that a run trains on.

Training on tiles needs crops of frames. Scaling a frame of 20 megapixels alone takes more than a
second of one core (1.3 s measured), and each step needs a whole batch of crops. So each frame is
read once, before the first step, and all of its crops are cut then and kept in memory. They are
four for each tile that the frame has, at most as many as ``BANK_BYTES`` holds or the run has
samples. With four, about 2 % (1/e⁴) of the pixels away from the border are in no crop of their
frame; crops of other frames lie there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.data.images import image_shape, read_image, read_images
from destseg_deploy.data.resize import resize_image
from destseg_deploy.data.synthesis import turn_margin
from destseg_deploy.errors import DataError
from destseg_deploy.spec import (
    BatchRange,
    InputSpec,
    OutputSpec,
    RegionSpec,
    TileGrid,
    TilingSpec,
    default_top_k,
)
from destseg_deploy.training.recipe import Recipe

Size = tuple[int, int]
Images = NDArray[np.uint8]

BANK_BYTES = 1 << 30
"""Memory for the crops of all frames together."""
CROPS_PER_TILE = 4
MOST_AT_ONCE = 64
"""Images that the network of a checkpoint takes in one call."""


@dataclass(frozen=True)
class View:
    """What the network sees of a frame. Sizes are (height, width).

    Attributes:
        network: Size of the network's images; of a tile, with a tiling.
        top_k: Pixels of the map whose mean is the score.
        frame: Size of the frames; None where frames of any size are resized to the network's.
        tiling: How a frame is cut; None where the network sees all of it.
        region: The part of a frame that is inspected; None for all of it.
    """

    network: Size
    top_k: int
    frame: Size | None = None
    tiling: TilingSpec | None = None
    region: RegionSpec | None = None

    @property
    def grid(self) -> TileGrid | None:
        """The tiles of a frame; None without a tiling."""
        if self.frame is None or self.tiling is None:
            return None
        return TileGrid.of(self.frame, self.network, self.tiling)

    def entries(self) -> dict[str, Any]:
        """Return the entries of the checkpoint's spec that differ from a whole-frame network's."""
        if self.frame is None:
            return {"output": OutputSpec(*self.network, self.top_k)}
        grid = self.grid
        working, tiles = (self.network, 1) if grid is None else (grid.working, grid.count)
        batch = BatchRange(1, 1, max(1, MOST_AT_ONCE // tiles))
        return {
            "input": InputSpec(*self.frame, batch),
            "output": OutputSpec(*working, self.top_k),
            "tiling": self.tiling,
            "region": self.region,
        }

    def identity(self) -> dict[str, Any]:
        """Return what the recipe does not say, as plain JSON values; nothing for whole frames."""
        if self.frame is None:
            return {}
        height, width = self.frame
        region = None if self.region is None else asdict(self.region)
        return {"frame": f"{width}x{height}", "region": region}


def find_view(paths: Sequence[Path], recipe: Recipe, region: str | None = None) -> View:
    """Return the view of a recipe; of the files, only the headers are read.

    Args:
        paths: The frames, those held out included.
        recipe: Says the network's size and the tiling.
        region: ``x,y,width,height`` in pixels of the frame, or the name of a mask's PNG file.

    Raises:
        DataError: If frames differ in size, or one cannot be read.
        SpecError: If the frames are too small for the tiles, or the region is not in them or too
            small for a score.
    """
    network = (recipe.size, recipe.size)
    top_k = recipe.top_k or default_top_k(*network)
    if recipe.tiling is None and region is None:
        return View(network, top_k)
    frame = _common_size(paths)
    found = None if region is None else RegionSpec.named(region)
    if isinstance(found, Path):
        found = RegionSpec.read_mask(found, frame)
    view = View(network, top_k, frame, recipe.tiling, found)
    if view.tiling is not None:
        view.tiling.check(frame, network, str(paths[0].parent))
    if found is not None:
        grid = view.grid
        found.check(frame, grid.working if grid else network, top_k, "region")
    return view


def _common_size(paths: Sequence[Path]) -> Size:
    first = image_shape(paths[0])
    for path in paths[1:]:
        if (shape := image_shape(path)) != first:
            raise DataError(
                f"{path}: {shape[1]}x{shape[0]} pixels, and {paths[0].name} has "
                f"{first[1]}x{first[0]}. Expected one size for all frames with --scale or --roi; "
                "take this one out, or leave these options out."
            )
    return first


def read_view(paths: Sequence[Path], view: View, recipe: Recipe) -> Images:
    """Read what a run trains on.

    Args:
        paths: The frames.
        view: What the network sees of them.
        recipe: Its rotation must be settled.

    Returns:
        uint8 (M, H, W, 3) at the network's size: whole frames; or crops, the first of each frame,
        then the second of each, and so on. Crops that will be turned have a margin beyond the tile
        on each side, see ``synthesis.turn_margin``.

    Raises:
        DataError: If a frame cannot be read.
    """
    grid = view.grid
    if grid is None:
        return read_images(paths, view.network)
    places = _allowed(view, grid, recipe.crops)
    margin = turn_margin(recipe.size, str(recipe.rotation))
    side = recipe.size + 2 * margin
    count = crops_per_frame(grid.count, len(paths), 3 * side * side, recipe)
    count = min(count, len(places))
    crops = np.empty((count, len(paths), side, side, 3), np.uint8)
    for number, path in enumerate(paths):
        # The middle number keeps this stream apart from those of the sampler.
        rng = np.random.default_rng([recipe.seed, 2, number])
        chosen = places[rng.choice(len(places), count, replace=False)]
        for i, crop in enumerate(_cut(path, chosen, grid, margin)):
            crops[i, number] = crop
    return crops.reshape(-1, side, side, 3)


def crops_per_frame(tiles: int, frames: int, crop_bytes: int, recipe: Recipe) -> int:
    """Return how many crops of each frame are kept; see the top of this file.

    Args:
        tiles: Tiles of a frame.
        frames: Number of frames.
        crop_bytes: Memory of a crop.
        recipe: Says how many samples the run has.
    """
    samples = recipe.steps * recipe.batch_size
    most = min(BANK_BYTES // (frames * crop_bytes), -(-samples // frames))
    return max(1, min(CROPS_PER_TILE * tiles, most))


def _cut(path: Path, places: NDArray[np.intp], grid: TileGrid, margin: int) -> Iterator[Images]:
    """Yield views of a scaled frame at the places, each with a margin around the tile.

    Beyond the border of the frame, a margin shows the frame's mirror image: no fill colour enters,
    and crops may lie at the border, as tiles do.
    """
    scaled = resize_image(read_image(path), grid.working)
    around = ((margin, margin), (margin, margin), (0, 0))
    padded = np.pad(scaled, around, mode="reflect") if margin else scaled
    side = grid.tile[0] + 2 * margin
    for row, column in places:
        yield padded[row : row + side, column : column + side]


def _allowed(view: View, grid: TileGrid, crops: str) -> NDArray[np.intp]:
    """Return the places of crops that hold a pixel of the region, (P, 2): row, column."""
    if crops == "grid":
        rows, columns = np.array(grid.rows), np.array(grid.columns)
    else:
        rows, columns = (
            np.arange(length - side + 1)
            for length, side in zip(grid.working, grid.tile, strict=True)
        )
    held = np.ones((len(rows), len(columns)), np.bool_)
    if view.region is not None and view.frame is not None:
        mask = view.region.mask_at(view.frame, grid.working)
        held = _pixels_inside(mask, rows, columns, grid.tile) > 0
    found = np.argwhere(held)
    return np.stack([rows[found[:, 0]], columns[found[:, 1]]], axis=1)


def _pixels_inside(
    mask: NDArray[np.bool_], rows: NDArray[np.intp], columns: NDArray[np.intp], tile: Size
) -> NDArray[np.int64]:
    """Return how many pixels of the mask lie in the tile at each row and column."""
    sums = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.int64)
    sums[1:, 1:] = mask.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
    below, right = rows + tile[0], columns + tile[1]
    whole = sums[np.ix_(below, right)] - sums[np.ix_(rows, right)]
    return np.asarray(whole - sums[np.ix_(below, columns)] + sums[np.ix_(rows, columns)])
