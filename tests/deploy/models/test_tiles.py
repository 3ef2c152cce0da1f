"""Tiles in the served graph: cut, blended and masked right, each with a control that fails."""

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch.nn import functional

from destseg_deploy.models.inference import (
    InferenceGraph,
    StudentTeacherGraph,
)
from destseg_deploy.models.tiles import TiledMap
from destseg_deploy.spec import RegionSpec, TileGrid, TilingSpec

TILE = (64, 64)


class Local(torch.nn.Module):
    """A network whose map is the brightness under each pixel: no receptive field beyond 4 px."""

    def features(self, image):
        return [image], [image]

    def segment(self, teacher, student):
        return functional.avg_pool2d(torch.sigmoid(student[0].mean(1, keepdim=True)), 4)


class PerTile(Local):
    """A network whose map is one value for each tile: what makes seams is all that it has."""

    def segment(self, teacher, student):
        value = torch.sigmoid(student[0].mean((1, 2, 3), keepdim=True))
        return value.expand(-1, 1, TILE[0] // 4, TILE[1] // 4)


def graph(network, frame, scale=1.0, overlap=16, batch=None, region=None, **others):
    return InferenceGraph(
        network,
        network_size=TILE,
        input_size=frame,
        top_k=6,
        tiling=TilingSpec(scale, overlap, batch),
        region=region,
        **others,
    )


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    values = np.random.default_rng(seed).integers(0, 256, (*shape, 3))
    return torch.from_numpy(values.astype(np.uint8))


def run(served, frames):
    with torch.inference_mode():
        return served(frames)


@pytest.mark.parametrize("batch", [None, 1, 4, 99])
@pytest.mark.parametrize(
    ("size", "overlap"), [((64, 64), 0), ((65, 64), 16), ((128, 192), 0), ((150, 211), 40)]
)
def test_a_frame_cut_and_blended_is_the_frame(size, overlap, batch):
    """Sizes that divide and that do not, one tile and many, all at once and in groups."""
    blend = TiledMap(TileGrid.of(size, TILE, TilingSpec(1.0, overlap)), None, batch)
    image = torch.rand(2, 3, *size)
    assert (blend(image, lambda tiles: tiles[:, :1]) - image[:, :1]).abs().max() <= 1e-6


def test_tiles_in_another_order_would_be_seen():
    """Negative control of the test above."""
    blend = TiledMap(TileGrid.of((150, 211), TILE, TilingSpec(1.0, 40)), None, None)
    image = torch.rand(1, 3, 150, 211)
    wrong = blend(image, lambda tiles: tiles[:, :1].flip(0))
    assert (wrong - image[:, :1]).abs().max() > 0.5


def test_where_receptive_fields_do_not_matter_tiles_equal_the_whole_frame():
    """But for two pixels at the borders of tiles, where upsampling repeats the last sample."""
    size = (64 + 2 * 40, 64 + 3 * 40)
    frames, away = noise(2, *size), torch.ones(size, dtype=torch.bool)
    for border in range(0, 200, 40):
        for line in (border, border + 64):
            away[max(0, line - 2) : line + 2] = False
            away[:, max(0, line - 2) : line + 2] = False
    wanted = run(InferenceGraph(Local(), network_size=size, top_k=6), frames)[0]
    for batch in (None, 2):
        found = run(graph(Local(), size, overlap=24, batch=batch), frames)[0]
        assert (found - wanted)[:, away].abs().max() < 1e-6
        assert (found - wanted.roll(4, 1))[:, away].abs().max() > 0.05  # control
    assert away.float().mean() > 0.5


def test_a_constant_network_gives_the_constant():
    frames = noise(1, 150, 211) * 0 + 90
    wanted = run(InferenceGraph(Local(), network_size=TILE, top_k=6), frames[:, :64, :64])
    found = run(graph(Local(), (150, 211)), frames)
    assert (found[0] - wanted[0].mean()).abs().max() < 1e-6
    assert (found[1] - wanted[1]).abs().max() < 1e-6


def steps(overlap: int) -> float:
    """Return the largest step of a map whose left and right tile differ, as a share of that."""
    frames = torch.zeros(1, 64, 128 - overlap, 3, dtype=torch.uint8)
    frames[:, :, 64 - overlap // 2 :] = 255
    found = run(graph(PerTile(), (64, 128 - overlap), overlap=overlap), frames)[0][0]
    return float((found.diff(dim=1).abs().max() / (found.max() - found.min())).item())


def test_the_map_has_no_seam():
    assert steps(32) < 1.1 / 32
    assert steps(0) == pytest.approx(1)  # control: without overlap, all of it in one step


def test_a_frame_shifted_by_one_tile_shifts_the_map():
    frame = noise(1, 64, 64 + 3 * 48)
    moved = frame.roll(-48, 2)
    served = graph(PerTile(), (64, 64 + 3 * 48), overlap=16)
    assert served.tiles.grid.columns == (0, 48, 96, 144)
    wanted, found = run(served, frame)[0], run(served, moved)[0]
    assert (found[..., 16:112] - wanted[..., 64:160]).abs().max() < 1e-6
    assert (found[..., 16:112] - wanted[..., 60:156]).abs().max() > 1e-5  # control: by less


def test_one_tile_is_the_network_alone(model):
    frames = noise(2, 64, 64)
    wanted = run(InferenceGraph(model, network_size=TILE, top_k=6), frames)
    found = run(graph(model, TILE), frames)
    assert all((a == b).all() for a, b in zip(wanted, found, strict=True))


def test_each_image_of_a_batch_has_its_own_tiles(model):
    served, frames = graph(model, (90, 108), scale=0.9), noise(2, 90, 108)
    found = run(served, frames)
    assert found[0].shape == (2, 81, 97)
    for i in range(2):
        alone = run(served, frames[i : i + 1])
        assert (alone[0][0] - found[0][i]).abs().max() < 1e-4
    assert (found[0][0] - found[0][1]).abs().max() > 0.01  # control


REGION = RegionSpec(10, 20, 70, 60)


def test_outside_of_a_region_the_map_is_0_and_nothing_is_scored():
    frames = torch.zeros(1, 150, 211, 3, dtype=torch.uint8)
    spoiled = frames.clone()
    spoiled[:, 120:140, 150:200] = 255
    inside = torch.from_numpy(REGION.mask_at((150, 211), (150, 211)))
    served, open_ = graph(Local(), (150, 211), region=REGION), graph(Local(), (150, 211))
    for one in (frames, spoiled):
        found, score = run(served, one)
        assert (found[0][~inside] == 0).all()
        assert (found[0][inside] == run(open_, one)[0][0][inside]).all()
        assert score == run(served, frames)[1]
    assert run(open_, spoiled)[1] > run(open_, frames)[1] + 0.1  # control


def test_tiles_outside_of_the_region_are_not_computed():
    seen = []

    def count(tiles):
        seen.append(len(tiles))
        return tiles[:, :1]

    grid = TileGrid.of((150, 211), TILE, TilingSpec(1.0, 16))
    inside = REGION.mask_at((150, 211), (150, 211))
    image = torch.rand(1, 3, 150, 211)
    found = TiledMap(grid, inside, None)(image, count)
    assert (seen, grid.count) == ([6], 15)
    assert ((found - image[:, :1])[0, 0][torch.from_numpy(inside)].abs() < 1e-6).all()


def test_a_region_without_tiles_and_a_map_of_another_size():
    frames = noise(1, 150, 211)
    served = InferenceGraph(
        Local(),
        network_size=TILE,
        input_size=(150, 211),
        map_size=(75, 105),
        top_k=6,
        region=REGION,
    )
    found, score = run(served, frames)
    inside = torch.from_numpy(REGION.mask_at((150, 211), (75, 105)))
    assert found.shape == (1, 75, 105)
    assert (found[0][~inside] == 0).all()
    assert (found[0][inside] > 0).all()
    assert 0 < score < 1


def test_the_student_teacher_map_is_tiled_too(model):
    tiling = {"network_size": TILE, "input_size": (90, 108), "top_k": 6}
    served = StudentTeacherGraph(model, **tiling, tiling=TilingSpec(1.0, 16))
    found, _ = run(served, noise(1, 90, 108))
    assert found.shape == (1, 90, 108)
    assert float(found.max()) > float(found.min())
