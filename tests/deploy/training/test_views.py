"""Training on tiles: the crops are the pixels that the graph sees, and lie where they may."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image

from destseg_deploy.data.images import read_image
from destseg_deploy.data.resize import resize_image
from destseg_deploy.data.synthesis import FILL, Draw, draw, middle, synthesize, turn_margin
from destseg_deploy.errors import DataError, DestsegError, SpecError
from destseg_deploy.models.inference import PixelResize
from destseg_deploy.spec import OutputSpec, RegionSpec, TileGrid, TilingSpec
from destseg_deploy.training import views
from destseg_deploy.training.recipe import Recipe
from destseg_deploy.training.views import View, crops_per_frame, find_view, read_view
from tests.deploy.training.cases import TINY

FRAME = (120, 152)
TILED = replace(TINY, scale=0.75, rotation="none", overlap=16, batch_size=8)
WORKING = (90, 114)


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three frames of noise, in which no two places look alike."""
    folder = tmp_path_factory.mktemp("frames")
    noise = np.random.default_rng(0).integers(0, 256, (3, *FRAME, 3)).astype(np.uint8)
    for i, frame in enumerate(noise):
        Image.fromarray(frame).save(folder / f"{i}.png")
    return sorted(folder.iterdir())


def graph_pixels(path: Path) -> NDArray[np.uint8]:
    """Return a frame as the graph scales it."""
    pixels = torch.tensor(read_image(path)).permute(2, 0, 1)[None].float()
    scaled = PixelResize(FRAME, WORKING)(pixels)
    return scaled[0].permute(1, 2, 0).numpy().astype(np.uint8)


def crops(frames: list[Path], recipe: Recipe, region: str | None = None) -> NDArray[np.uint8]:
    return read_view(frames, find_view(frames, recipe, region), recipe)


def places(crop: NDArray[np.uint8], scaled: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """Return where a crop lies in a scaled frame."""
    firsts = sliding_window_view(scaled, (1, 8, 3))[:, :, 0]
    likely = np.argwhere((firsts == crop[:1, :8]).all(axis=(2, 3, 4)))
    side = len(crop)
    return [
        (int(row), int(column))
        for row, column in likely
        if np.array_equal(scaled[row : row + side, column : column + side], crop)
    ]


# ---------------------------------------------------------------------------- pixels


def test_each_crop_is_a_part_of_what_the_graph_sees(frames: list[Path]) -> None:
    found = crops(frames, TILED)
    assert found.shape[1:] == (64, 64, 3)
    assert len(found) % 3 == 0
    where = [places(crop, graph_pixels(frames[i % 3])) for i, crop in enumerate(found)]
    assert all(len(one) == 1 for one in where)
    assert len({one[0] for one in where}) > 6  # many places, and others in each frame
    kernel = cv2.resize(read_image(frames[0]), WORKING[::-1], interpolation=cv2.INTER_LINEAR)
    assert places(found[0], np.asarray(kernel, np.uint8)) == []  # control


def test_the_grid_is_exactly_that_of_the_graph(frames: list[Path]) -> None:
    grid = TileGrid.of(FRAME, (64, 64), TilingSpec(0.75, 16))
    found = crops(frames, replace(TILED, crops="grid"))
    assert len(found) == 3 * grid.count
    for i, path in enumerate(frames):
        where = {places(crop, graph_pixels(path))[0] for crop in found[i::3]}
        assert where == set(product(grid.rows, grid.columns))


def test_crops_depend_on_the_seed_and_differ_between_frames(frames: list[Path]) -> None:
    first, again, other = (crops(frames, replace(TILED, seed=seed)) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    where = [
        {places(crop, graph_pixels(path))[0] for crop in first[i::3]}
        for i, path in enumerate(frames)
    ]
    assert where[0] != where[1] != where[2]


def test_a_frame_as_large_as_a_tile_gives_one_crop(frames: list[Path]) -> None:
    recipe = replace(TILED, scale=64 / 120)
    tall = [path for path in frames[:1]]
    small = find_view(tall, recipe)
    assert small.grid is not None
    assert small.grid.working == (64, 81)
    (frame,) = tall
    square = View((64, 64), 6, FRAME, TilingSpec(0.5, 0))
    with pytest.raises(SpecError, match="smaller than a tile"):
        _ = square.grid
    exact = resize_image(read_image(frame), (64, 81))
    for crop in read_view(tall, small, recipe):
        assert places(crop, exact)[0][0] == 0


# ---------------------------------------------------------------------------- rotation


@pytest.mark.parametrize("rotation", ["slight", "full"])
def test_a_turned_crop_holds_no_fill_colour(rotation: str) -> None:
    side, texture = 64, np.zeros((64, 64, 3), np.uint8)
    margin = turn_margin(side, rotation)
    white = np.full((side + 2 * margin,) * 2 + (3,), 255, np.uint8)
    for turn in (-5.0, 5.0, *(90.0, 175.0) * (rotation == "full")):
        choices = replace(draw(np.random.default_rng(0)), turn=turn)
        assert (synthesize(white, texture, choices).clean == 255).all()
        bare = synthesize(white[margin:-margin, margin:-margin], texture, choices).clean
        if turn % 90:  # control
            assert np.abs(bare - FILL[0]).min() < 1


def test_the_margin_is_the_frame_around_the_tile(frames: list[Path]) -> None:
    still = crops(frames, replace(TILED, crops="grid"))
    turned = crops(frames, replace(TILED, crops="grid", rotation="slight"))
    margin = turn_margin(64, "slight")
    assert turned.shape[1:] == (64 + 2 * margin, 64 + 2 * margin, 3)
    assert np.array_equal(turned[:, margin:-margin, margin:-margin], still)
    # The first tile of a frame lies in its corner, where the margin is the mirror image.
    scaled = graph_pixels(frames[0])
    corner = next(c for c, s in zip(turned, still, strict=True) if places(s, scaled) == [(0, 0)])
    assert np.array_equal(corner[margin:, :margin], scaled[: 64 + margin, margin:0:-1])
    assert np.array_equal(corner[margin:, margin:], scaled[: 64 + margin, : 64 + margin])


def test_what_is_not_turned_is_cut_and_nothing_else() -> None:
    image = np.random.default_rng(1).integers(0, 256, (80, 80, 3)).astype(np.uint8)
    texture = np.zeros((64, 64, 3), np.uint8)
    still = Draw(0.0, np.zeros((2, 2), np.float32), 0.0, 0.5)
    assert np.array_equal(synthesize(image, texture, still).clean, image[8:-8, 8:-8])
    assert middle(image.astype(np.float32), 80).shape == (80, 80, 3)


# ---------------------------------------------------------------------------- region


@pytest.mark.parametrize("kind", ["anywhere", "grid"])
def test_every_crop_holds_a_pixel_of_the_region(kind: str, frames: list[Path]) -> None:
    recipe = replace(TILED, crops=kind)
    region = "0,0,20,16"  # of the frame; 15 x 12 pixels of the scaled one
    inside = RegionSpec.parse(region).mask_at(FRAME, WORKING)

    def held(found: NDArray[np.uint8]) -> list[bool]:
        where = [places(crop, graph_pixels(frames[i % 3]))[0] for i, crop in enumerate(found)]
        return [bool(inside[r : r + 64, c : c + 64].any()) for r, c in where]

    assert all(held(crops(frames, recipe, region)))
    assert not all(held(crops(frames, recipe)))  # control


def test_a_mask_is_a_region(frames: list[Path], tmp_path: Path) -> None:
    mask = np.zeros(FRAME, np.uint8)
    mask[:40, 10:60] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    by_mask = find_view(frames, TILED, str(tmp_path / "mask.png"))
    by_numbers = find_view(frames, TILED, "10,0,50,40")
    assert by_mask == by_numbers
    assert by_mask != find_view(frames, TILED, "10,0,50,39")


def test_a_region_needs_no_tiles(frames: list[Path]) -> None:
    view = find_view(frames, TINY, "10,0,50,40")
    assert (view.frame, view.tiling, view.grid) == (FRAME, None, None)
    assert read_view(frames, view, TINY).shape == (3, 64, 64, 3)


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ("10,20,30", "region '10,20,30': expected X,Y,WIDTH,HEIGHT"),
        ("100,0,53,40", "x is 100 and width 53, expected a part of 0 to 152"),
        ("0,0,2,2", "expected at least 6, whose mean is the score"),
        ("nowhere.png", r"nowhere\.png: No such file"),
    ],
)
def test_a_region_that_is_none_is_one_line(frames: list[Path], region: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as error:
        find_view(frames, TILED, region)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------- frames


def test_frames_of_two_sizes_name_the_first_that_differs(
    frames: list[Path], tmp_path: Path
) -> None:
    Image.new("RGB", (80, 120)).save(tmp_path / "b.png")
    Image.new("RGB", (80, 121)).save(tmp_path / "c.png")
    paths = [*frames, tmp_path / "b.png", tmp_path / "c.png"]
    with pytest.raises(DataError, match=r"b\.png: 80x120 pixels, and 0\.png has 152x120"):
        find_view(paths, TILED)
    assert find_view(paths, TINY) == View((64, 64), 6)  # whole frames are resized


def test_a_frame_smaller_than_a_tile_says_what_to_do(frames: list[Path]) -> None:
    message = r"a frame is 76x60 pixels at scale 0\.5, smaller than a tile of 64x64\. Use a larger"
    with pytest.raises(DestsegError, match=message):
        find_view(frames, replace(TILED, scale=0.5))


def test_whole_frames_are_as_before(frames: list[Path]) -> None:
    view = find_view(frames, TINY)
    assert view.entries() == {"output": OutputSpec(64, 64, 6)}
    assert view.identity() == {}
    assert read_view(frames, view, TINY).shape == (3, 64, 64, 3)


@pytest.mark.parametrize("recipe", [TINY, TILED])
def test_the_score_is_the_mean_of_as_many_pixels_as_asked_for(
    frames: list[Path], recipe: Recipe
) -> None:
    assert find_view(frames, recipe).entries()["output"].top_k == 6
    assert find_view(frames, replace(recipe, top_k=3)).entries()["output"].top_k == 3


def test_few_crops_are_kept_where_memory_or_samples_are_few(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    long = replace(TILED, student_steps=1000, segmentation_steps=1000)
    assert crops_per_frame(5, 10, 12288, long) == 20
    short = replace(TILED, student_steps=2, segmentation_steps=3)  # 40 samples
    assert crops_per_frame(5, 10, 12288, short) == 4
    assert crops_per_frame(5, 100, 12288, short) == 1
    monkeypatch.setattr(views, "BANK_BYTES", 12288 * 10 * 7)
    assert crops_per_frame(5, 10, 12288, long) == 7
    assert crops_per_frame(5, 1000, 12288, long) == 1
