"""Tiles and regions in a spec: where tiles are, what they weigh, and what cannot be cut."""

import base64
import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from destseg_deploy.errors import SpecError
from destseg_deploy.spec import (
    InputSpec,
    ModelSpec,
    RegionSpec,
    TileGrid,
    TilingSpec,
    blend_weights,
    default_top_k,
    tile_positions,
    working_size,
)
from tests.deploy.test_spec import MASKED, SPEC, TILED


@st.composite
def axes(draw) -> tuple[int, int, int]:
    tile = draw(st.integers(1, 96))
    return draw(st.integers(tile, 500)), tile, draw(st.integers(0, tile - 1))


def covered(length: int, tile: int, positions: tuple[int, ...]) -> np.ndarray:
    """Return how many tiles hold each pixel."""
    count = np.zeros(length, int)
    for start in positions:
        count[start : start + tile] += 1
    return count


# --- positions and weights


@given(axes())
def test_tiles_cover_an_axis_with_the_overlap_and_are_as_few_as_can_be(axis):
    length, tile, overlap = axis
    positions = tile_positions(length, tile, overlap)
    assert (positions[0], positions[-1]) == (0, length - tile)
    steps = np.diff(positions)
    assert (covered(length, tile, positions) > 0).all()
    if len(steps):
        assert 1 <= steps.min() <= steps.max() <= min(tile - overlap, steps.min() + 1)
        assert (len(steps) - 1) * (tile - overlap) < length - tile  # one fewer is too few


def test_tiles_of_known_axes():
    assert tile_positions(64, 64, 16) == (0,)
    assert tile_positions(65, 64, 16) == (0, 1)
    assert tile_positions(512, 256, 64) == (0, 128, 256)
    assert tile_positions(512, 256, 0) == (0, 256)


@pytest.mark.parametrize(
    ("axis", "words"),
    [
        ((63, 64, 8), "63 pixels is shorter than a tile of 64. Use a larger scale"),
        ((99, 64, 64), "overlap is 64, expected 0 to 63"),
        ((99, 64, -1), "overlap is -1, expected 0 to 63"),
    ],
)
def test_an_axis_that_cannot_be_cut_is_refused(axis, words):
    with pytest.raises(SpecError, match=words):
        tile_positions(*axis)


def total(length: int, weights: np.ndarray, positions: tuple[int, ...]) -> np.ndarray:
    """Return the sum of the weights at each pixel, added in float32."""
    result = np.zeros(length, np.float32)
    for row, start in zip(weights.astype(np.float32), positions, strict=True):
        result[start : start + len(row)] += row
    return result


@given(axes())
def test_weights_sum_to_exactly_one_at_each_pixel(axis):
    length, tile, overlap = axis
    positions = tile_positions(length, tile, overlap)
    weights = blend_weights(length, tile, positions)
    assert (weights.shape, weights.dtype) == ((len(positions), tile), np.float64)
    assert weights.min() >= 0
    assert (total(length, weights, positions) == 1).all()


def test_the_sum_would_show_a_wrong_weight():
    """Negative control: weights one step off, and weights of other positions."""
    positions = tile_positions(200, 64, 16)
    weights = blend_weights(200, 64, positions)
    off = weights.copy()
    off[1, 20] += 2.0**-16
    assert (total(200, off, positions) != 1).sum() == 1
    assert (total(200, weights, (0, 40, 90, 136)) != 1).any()


def test_between_two_tiles_the_weight_is_a_ramp():
    positions = tile_positions(112, 64, 16)
    assert positions == (0, 48)
    first, second = blend_weights(112, 64, positions)
    assert (first[:48] == 1).all()
    assert np.abs(np.diff(first[48:]) + 1 / 16).max() <= 2.0**-15
    assert (second == first[::-1]).all() or np.abs(second - first[::-1]).max() <= 2.0**-15


def test_the_scaled_frame_is_rounded_halves_up():
    assert working_size((1024, 1280), 0.5) == (512, 640)
    assert working_size((1001, 1003), 0.5) == (501, 502)
    assert working_size((100, 3), 0.1) == (10, 1)


# --- the spec


def test_a_tiled_spec_knows_its_sizes():
    assert TILED.grid == TileGrid((512, 640), (320, 384), (0, 192), (0, 256))
    assert (TILED.grid.count, TILED.working_size) == (4, (512, 640))
    assert (SPEC.grid, SPEC.working_size) == (None, SPEC.network_size)
    rows, columns = TILED.grid.weights()
    assert (rows.shape, columns.shape) == ((2, 320), (2, 384))
    assert default_top_k(*TILED.network_size) == SPEC.output.top_k


def test_only_a_whole_frame_may_have_any_size():
    square = replace(SPEC, input=InputSpec(320, 384))
    assert square.takes_any_size
    assert not SPEC.takes_any_size
    for part in ({"tiling": TilingSpec(1, 0)}, {"region": RegionSpec(0, 0, 99, 99)}):
        assert not replace(square, **part).takes_any_size


REFUSED = [
    ({"scale": 0.0}, "scale is 0.0, expected more than 0 and at most 4"),
    ({"scale": 4.1}, "scale is 4.1, expected more than 0 and at most 4"),
    ({"overlap": 320}, "overlap is 320, expected 0 to 319"),
    ({"tile_batch": 0}, "tile_batch is 0, expected 1 to 4096"),
    ({"scale": 0.25}, "a frame is 320x256 pixels at scale 0.25, smaller than a tile of 384x320"),
    ({"overlap": 319, "scale": 1.0}, "tiles, expected at most 4096"),
]


@pytest.mark.parametrize(("change", "words"), REFUSED, ids=str)
def test_what_cannot_be_cut_is_refused(change, words):
    spec = replace(TILED, tiling=replace(TILED.tiling, **change))
    with pytest.raises(SpecError, match=rf"^cable\.json: tiling: .*{words}"):
        ModelSpec.from_json(spec.to_json(), "cable.json")


def test_the_score_may_take_more_pixels_than_a_tile_and_not_than_the_map():
    for k in (320 * 384 + 1, 512 * 640):
        replace(TILED, region=None, output=replace(SPEC.output, top_k=k)).check("x")
    for spec, k in ((SPEC, 320 * 384 + 1), (replace(TILED, region=None), 512 * 640 + 1)):
        with pytest.raises(SpecError, match=f"top_k is {k}, expected 1 to"):
            replace(spec, output=replace(SPEC.output, top_k=k)).check("x")


def test_a_checkpoint_of_tiles_has_the_frame_as_its_input():
    plain = {"kind": "checkpoint", "engine": None, "training": None}
    replace(TILED, **plain).check("x")
    replace(TILED, **plain, tiling=None, output=replace(SPEC.output, height=320, width=384)).check(
        "x"
    )
    for wrong in ({"tiling": None}, {"tiling": None, "region": None}):
        with pytest.raises(SpecError, match="Restore it or train again"):
            replace(TILED, **plain, **wrong).check("x")


# --- regions


def test_a_region_is_read_from_text():
    assert RegionSpec.parse("100,50,640,480") == RegionSpec(100, 50, 640, 480)
    assert str(RegionSpec(100, 50, 640, 480)) == "100,50,640,480"
    for text in ("", "1,2,3", "1,2,3,-4", "1,2,3,x", "mask.png", "1,2,3,4,5"):
        with pytest.raises(SpecError, match="expected X,Y,WIDTH,HEIGHT"):
            RegionSpec.parse(text)


def test_a_region_is_named_by_its_rectangle_or_the_file_of_its_mask():
    assert RegionSpec.named("100,50,640,480") == RegionSpec(100, 50, 640, 480)
    assert RegionSpec.named("mask.png") == Path("mask.png")
    with pytest.raises(SpecError, match="expected X,Y,WIDTH,HEIGHT"):
        RegionSpec.named("1,2,mask.png")


def test_a_rectangle_becomes_pixels_of_the_scaled_frame():
    mask = RegionSpec(10, 20, 30, 40).mask_at((100, 200), (50, 100))
    assert mask.shape == (50, 100)
    assert (mask[10:30, 5:20].all(), mask.sum()) == (True, 20 * 15)


def test_a_mask_is_kept_pixel_by_pixel():
    mask = np.random.default_rng(0).random((70, 90)) > 0.7
    mask[:8] = False
    region = RegionSpec.of_mask(mask)
    assert (region.y, region.height) == (8, 62)
    assert (region.mask_at((70, 90), (70, 90)) == mask).all()
    assert (region.mask_at((70, 90), (140, 180)) == mask.repeat(2, 0).repeat(2, 1)).all()
    assert (region.mask_at((70, 90), (35, 45)) == mask[1::2, 1::2]).all()
    assert RegionSpec.of_mask(np.pad(np.ones((3, 4), bool), 2)) == RegionSpec(2, 2, 4, 3)
    # In a graph, true is the byte 1: OpenVINO takes 255, which Pillow gives for a bit, for false.
    assert set(np.unique(region.mask_at((70, 90), (70, 90)).view(np.uint8))) == {0, 1}


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_masks_of_all_kinds_of_png_are_read(mode, tmp_path):
    inside = np.zeros((12, 16), bool)
    inside[3:9, 5:] = np.eye(6, 11, dtype=bool)
    deep = Image.fromarray(inside.astype(np.uint16) * 9)
    path = tmp_path / "mask.png"
    (deep if mode == "I;16" else Image.fromarray(inside).convert(mode)).save(path)
    region = RegionSpec.read_mask(path, (12, 16))
    assert (region.mask_at((12, 16), (12, 16)) == inside).all()


def png(size: tuple[int, int], value: int = 255) -> bytes:
    content = BytesIO()
    Image.new("L", size, value).save(content, format="PNG")
    return content.getvalue()


def test_a_mask_that_is_none_is_refused(tmp_path):
    path = tmp_path / "mask.png"
    for content, words in (
        (png((20, 10)), r"mask has 20x10 pixels, expected 30x20"),
        (png((30, 20), 0), "no pixel is inside"),
        (b"GIF89a", "mask is not a PNG"),
        (png((30, 20))[:50], "mask is not a PNG"),
    ):
        path.write_bytes(content)
        with pytest.raises(SpecError, match=rf"mask\.png: .*{words}"):
            RegionSpec.read_mask(path, (20, 30))
    with pytest.raises(SpecError, match=r"none\.png: No such file"):
        RegionSpec.read_mask(tmp_path / "none.png", (20, 30))


BAD_REGIONS = [
    ({"x": -1}, "x is -1 and width"),
    ({"width": 1281}, "x is 100 and width 1281, expected a part of 0 to 1280"),
    ({"y": 1024}, "y is 1024 and height"),
    ({"height": 0}, "y is 50 and height 0"),
    ({"width": 10, "height": 10}, "holds 25 pixels of the map of 640x512, expected at least 188"),
    ({"mask": "no base64!"}, "mask is not base64"),
    ({"mask": base64.b64encode(png((5, 5))).decode()}, "mask has 5x5 pixels, expected"),
    ({"mask": base64.b64encode(b"GIF89a").decode()}, "mask is not a PNG"),
]


def test_a_region_outside_of_the_frame_is_no_reason_to_restore_a_file():
    """ "Restore it or export again" was said of the option --roi."""
    with pytest.raises(SpecError, match=r"width 0, .* Choose a region inside of it\.$"):
        RegionSpec(0, 0, 0, 10).check((70, 90), (70, 90), 9, "region")


@pytest.mark.parametrize(("change", "words"), BAD_REGIONS, ids=str)
def test_a_region_that_no_frame_has_is_refused(change, words):
    spec = replace(TILED, region=replace(TILED.region, **change))
    with pytest.raises(SpecError, match=rf"^cable\.json: region: .*{words}"):
        ModelSpec.from_json(spec.to_json(), "cable.json")


def test_an_edited_region_is_seen():
    data = json.loads(MASKED.to_json())
    data["region"]["mask"] = None
    with pytest.raises(SpecError, match="its digest does not fit"):
        ModelSpec.from_json(json.dumps(data))
