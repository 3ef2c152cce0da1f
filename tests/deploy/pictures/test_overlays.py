"""What an inspector sees: heat, contours, verdict, sheets, and files that are whole or absent."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from destseg_deploy.errors import ShapeError
from destseg_deploy.pictures.overlays import (
    AnomalyMap,
    Mask,
    contact_sheet,
    overlay,
    triptych,
    write_png,
)
from destseg_deploy.pictures.text import Colour, RgbImage

Draw = Callable[..., RgbImage]

WHITE, CYAN = (255, 255, 255), (0, 229, 255)
RED, GREEN, GROUND = (208, 44, 44), (30, 140, 70), (24, 26, 30)
QUIET: dict[str, Any] = {"pixel_threshold": None, "score": 0.2, "threshold": None}


def grey(height: int, width: int, level: int = 120) -> RgbImage:
    return np.full((height, width, 3), level, np.uint8)


def square_map(size: int, value: float = 0.8) -> tuple[AnomalyMap, Mask]:
    """Return a map with ``value`` in its middle fifth, and the region it fills."""
    region = np.zeros((size, size), bool)
    region[2 * size // 5 : 3 * size // 5, 2 * size // 5 : 3 * size // 5] = True
    return np.where(region, np.float32(value), np.float32(0)), region


def cone(size: int) -> AnomalyMap:
    """Return 1 in the middle, falling to 0 at a distance of half the size."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return np.asarray(np.clip(1 - np.hypot(y, x) / (size / 2), 0, 1), np.float32)


def is_colour(image: RgbImage, colour: Colour) -> Mask:
    return np.asarray(np.all(image == np.array(colour, np.uint8), axis=-1))


def distance_outside(region: Mask) -> npt.NDArray[np.float32]:
    """Return for each pixel its distance from the region in pixels; 0 inside."""
    outside = (~region).astype(np.uint8)
    distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(distance, np.float32)


# --- heat


@pytest.mark.parametrize("level", [0, 1, 127, 254, 255])
def test_a_cold_map_leaves_every_pixel_as_it_was(level: int) -> None:
    image = grey(256, 300, level)
    result = overlay(image, np.full((256, 300), 0.1, np.float32), **QUIET)
    np.testing.assert_array_equal(result[:256], image)


def test_only_pixels_far_from_heat_and_contour_stay_unchanged() -> None:
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    anomaly_map, region = square_map(256)
    result = overlay(image, anomaly_map, pixel_threshold=0.5, score=0.9, threshold=0.4)[:256]
    far = distance_outside(region) > 3
    np.testing.assert_array_equal(result[far], image[far])
    assert np.any(result[region] != image[region], axis=-1).mean() > 0.99  # the control


@pytest.mark.parametrize("level", [0, 120, 255])
def test_heat_lies_between_the_image_and_the_colour_map(level: int) -> None:
    result = overlay(grey(256, 256, level), np.ones((256, 256), np.float32), **QUIET)[128, 128]
    plasma_at_1 = np.array([240, 249, 33])  # red and green high, blue low: RGB order
    np.testing.assert_allclose(result, 0.4 * level + 0.6 * plasma_at_1, atol=2)


def test_more_anomalous_pixels_are_painted_more_opaquely() -> None:
    ramp = np.tile(np.linspace(0, 0.5, 256, dtype=np.float32), (256, 1))
    change = np.abs(overlay(grey(256, 256, 0), ramp, **QUIET)[128].astype(int)).sum(axis=-1)
    assert np.all(np.diff(change) >= -2)
    assert change[255] > change[200] > change[140] > 0
    assert change[: 256 // 2 - 1].max() == 0, "up to half of the threshold"


@pytest.mark.parametrize("threshold", [0.01, 0.2, 0.9])
def test_heat_shows_what_is_above_the_threshold_of_a_weak_model_too(threshold: float) -> None:
    """Heat at twice the threshold looks alike, however low that is; without one it is not seen."""
    hot = np.full((256, 256), min(1, 2 * threshold), np.float32)
    drawn = overlay(grey(256, 256, 0), hot, pixel_threshold=threshold, score=1, threshold=None)
    np.testing.assert_allclose(drawn[128, 128], 0.6 * np.array([240, 249, 33]), atol=2)
    cold = np.full((256, 256), 0.45 * threshold, np.float32)
    drawn = overlay(grey(256, 256, 9), cold, pixel_threshold=threshold, score=1, threshold=None)
    np.testing.assert_array_equal(drawn[:256], grey(256, 256, 9))
    if threshold == 0.01:
        unscaled = overlay(grey(256, 256, 9), hot, **QUIET)
        np.testing.assert_array_equal(unscaled[:256], grey(256, 256, 9))


@pytest.mark.parametrize("threshold", [0, 1])
def test_heat_of_a_threshold_at_an_end_of_the_range_is_defined(threshold: float) -> None:
    ramp = np.tile(np.linspace(0, 1, 256, dtype=np.float32), (256, 1))
    drawn = triptych(grey(256, 256), ramp, pixel_threshold=threshold, score=1, threshold=None)
    heat = drawn[128, 258:514].astype(int)
    assert np.ptp(heat[1:], axis=0).max() > 0 if threshold else (heat[1:-2] == heat[1]).all()


def test_values_a_rounding_outside_of_the_range_are_drawn_as_its_ends() -> None:
    inside, outside = np.eye(256, dtype=np.float32), np.eye(256, dtype=np.float32)
    outside[inside == 1], outside[inside == 0] = 1 + 9e-6, -9e-6
    for draw in (overlay, triptych):
        np.testing.assert_array_equal(
            draw(grey(256, 256), inside, **QUIET), draw(grey(256, 256), outside, **QUIET)
        )


# --- contours


def test_the_contour_lies_just_outside_the_pixels_above_the_threshold() -> None:
    anomaly_map, region = square_map(256)
    result = overlay(grey(256, 256), anomaly_map, pixel_threshold=0.5, score=1, threshold=None)
    line = is_colour(result[:256], WHITE)
    distance = distance_outside(region)[line]
    assert line.sum() > 0.9 * 4 * 51  # all around the square
    assert distance.min() == 1
    assert distance.max() < 1.5


def test_the_contour_follows_the_threshold() -> None:
    anomaly_map = cone(256)
    for threshold in (0.3, 0.6, 0.9):
        result = overlay(
            grey(256, 256), anomaly_map, pixel_threshold=threshold, score=1, threshold=None
        )
        on_line = anomaly_map[is_colour(result[:256], WHITE)]
        assert on_line.size > 0
        assert np.all(on_line <= np.float32(threshold))
        np.testing.assert_allclose(on_line, threshold, atol=0.02)


@pytest.mark.parametrize("threshold", [0.4, np.float64(0.4), np.float32(0.4), 0.7])
def test_a_map_at_or_below_the_threshold_has_no_contour(threshold: float) -> None:
    anomaly_map, _ = square_map(256, 0.4)
    result = overlay(grey(256, 256), anomaly_map, pixel_threshold=threshold, score=1, threshold=1)
    assert not is_colour(result[:256], WHITE).any()


def test_a_region_with_a_hole_has_two_contours() -> None:
    anomaly_map, region = square_map(256)
    anomaly_map[118:138, 118:138] = 0
    result = overlay(grey(256, 256), anomaly_map, pixel_threshold=0.5, score=1, threshold=None)
    assert is_colour(result[118:138, 118:138], WHITE).any()
    assert is_colour(result[:256], WHITE)[~region].any()


@pytest.mark.parametrize(("size", "width"), [(256, 1), (1024, 3), (2400, 8)])
def test_the_line_grows_with_the_image(size: int, width: int) -> None:
    anomaly_map, _ = square_map(size)
    result = overlay(grey(size, size), anomaly_map, pixel_threshold=0.5, score=1, threshold=None)
    across = is_colour(result[size // 2], WHITE)  # crosses the left and the right side
    assert across.sum() == 2 * width


@pytest.mark.parametrize("size", [64, 100, 256])
def test_one_hot_pixel_is_ringed_at_every_size(size: int) -> None:
    anomaly_map = np.zeros((size, size), np.float32)
    anomaly_map[size // 2, size // 2] = 0.6
    result = overlay(grey(size, size), anomaly_map, pixel_threshold=0.5, score=1, threshold=None)
    scale = -(-256 // size)
    ys, xs = np.nonzero(is_colour(result[: size * scale], WHITE))
    middle = (size // 2 + 0.5) * scale - 0.5
    assert len(ys) >= 4
    assert np.hypot(ys - middle, xs - middle).max() <= scale + 1


@pytest.mark.parametrize("level", [0, 255])
def test_the_contour_is_seen_on_black_and_on_white(level: int) -> None:
    anomaly_map, _ = square_map(256, 0.3)
    result = overlay(
        grey(256, 256, level), anomaly_map, pixel_threshold=0.2, score=1, threshold=None
    )
    across = result[128, :128].max(axis=-1).astype(int)  # from the left border to the middle
    assert np.abs(np.diff(across)).max() > 150


def test_ground_truth_and_an_equal_prediction_are_both_seen() -> None:
    anomaly_map, region = square_map(256)
    arguments: dict[str, Any] = {"pixel_threshold": 0.5, "score": 1, "threshold": None}
    both = overlay(grey(256, 256), anomaly_map, **arguments, mask=region)[:256]
    assert is_colour(both, WHITE).sum() > 180
    cyan = is_colour(both, CYAN)
    assert cyan.sum() > 180
    assert region[cyan].all()
    assert not is_colour(overlay(grey(256, 256), anomaly_map, **arguments), CYAN).any()


# --- caption (its words are tested in test_text.py)


@pytest.mark.parametrize("draw", [overlay, triptych])
@pytest.mark.parametrize(("score", "badge"), [(0.6, RED), (0.4, GREEN)])
@pytest.mark.parametrize("pixel_threshold", [None, 0.5])
@pytest.mark.parametrize("masked", [True, False])
def test_the_strip_tells_the_verdict_and_what_is_drawn(
    draw: Draw, score: float, badge: Colour, pixel_threshold: float | None, masked: bool
) -> None:
    anomaly_map = np.zeros((256, 256), np.float32)
    result = draw(
        grey(256, 256),
        anomaly_map,
        pixel_threshold=pixel_threshold,
        score=score,
        threshold=0.5,
        mask=anomaly_map > 0 if masked else None,
    )
    strip = result[256:]
    assert is_colour(strip, badge).sum() > 50
    assert is_colour(strip, RED).any() != is_colour(strip, GREEN).any()
    assert is_colour(strip, CYAN).any() == masked
    rows = 1 + (masked or pixel_threshold is not None)
    assert 15 * rows < strip.shape[0] < (30 if draw is overlay else 60) * rows


@pytest.mark.parametrize("shape", [(256, 256), (64, 64), (1024, 90), (90, 1024)])
@pytest.mark.parametrize("score", [0.1, 0.9, 123456.789, 1e9])
def test_the_caption_stays_inside_a_strip_of_constant_size(
    shape: tuple[int, int], score: float
) -> None:
    anomaly_map = np.zeros(shape, np.float32)
    arguments: dict[str, Any] = {"pixel_threshold": 0.5, "mask": anomaly_map > 0}
    usual = overlay(grey(*shape), anomaly_map, score=0.5, threshold=0.4, **arguments)
    result = overlay(grey(*shape), anomaly_map, score=score, threshold=123456.788, **arguments)
    assert result.shape == usual.shape
    strip = result[shape[0] * -(-256 // max(shape)) :]
    assert not is_colour(strip, GROUND).all()
    for edge in (strip[:2], strip[-2:], strip[:, :2], strip[:, -2:]):
        assert is_colour(edge, GROUND).all()


# --- sizes and arguments


@pytest.mark.parametrize(
    ("shape", "picture", "width"),
    [
        ((1, 1), (256, 256), 256),
        ((64, 64), (256, 256), 256),
        ((16, 40), (112, 280), 280),
        ((255, 255), (510, 510), 510),
        ((256, 256), (256, 256), 256),
        ((600, 100), (600, 100), 256),
        ((300, 1000), (300, 1000), 1000),
    ],
)
def test_the_picture_is_enlarged_when_small_and_lies_above_the_strip(
    shape: tuple[int, int], picture: tuple[int, int], width: int
) -> None:
    image = np.full((*shape, 3), (10, 200, 90), np.uint8)
    result = overlay(image, np.zeros(shape, np.float32), **QUIET)
    assert result.dtype == np.uint8
    assert result.shape[1:] == (width, 3)
    assert picture[0] + 12 <= result.shape[0] <= picture[0] + width // 4
    left = (width - picture[1]) // 2
    inside = result[: picture[0], left : left + picture[1]]
    assert is_colour(inside, (10, 200, 90)).all()
    assert is_colour(result, (10, 200, 90)).sum() == picture[0] * picture[1]


def test_read_only_and_flipped_views_are_drawn_and_not_changed() -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (80, 90, 3), np.uint8)
    anomaly_map = rng.random((80, 90), np.float32)
    mask = anomaly_map > 0.9
    arguments: dict[str, Any] = {"pixel_threshold": 0.8, "score": 0.9, "threshold": 0.4}
    expected = overlay(image, anomaly_map, **arguments, mask=mask)
    arrays: tuple[Any, ...] = (image, anomaly_map, mask)
    views = [array[::-1, ::-1].copy()[::-1, ::-1] for array in arrays]
    for view in views:
        view.setflags(write=False)
    result = overlay(views[0], views[1], **arguments, mask=views[2])
    np.testing.assert_array_equal(result, expected)
    assert not np.shares_memory(result, image)


def test_a_triptych_shows_image_heat_map_and_overlay() -> None:
    image = np.random.default_rng(2).integers(0, 256, (256, 300, 3), np.uint8)
    anomaly_map = np.zeros((256, 300), np.float32)
    anomaly_map[:, 150:] = 1
    arguments: dict[str, Any] = {
        "pixel_threshold": 0.5,
        "score": 0.9,
        "threshold": 0.4,
        "mask": anomaly_map > 0,
    }
    result = triptych(image, anomaly_map, **arguments)
    gap = (result.shape[1] - 900) // 2
    assert 1 <= gap <= 8
    left, middle, right = (result[:256, at : at + 300] for at in (0, 300 + gap, 600 + 2 * gap))
    np.testing.assert_array_equal(left, image)
    np.testing.assert_allclose(middle[0, 0], (13, 8, 135), atol=2)
    np.testing.assert_allclose(middle[0, -1], (240, 249, 33), atol=2)
    np.testing.assert_array_equal(right, overlay(image, anomaly_map, **arguments)[:256])
    assert is_colour(result[256:], RED).any()


@pytest.mark.parametrize("draw", [overlay, triptych])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"image": np.zeros((8, 3, 16, 16), np.float32)},
            "image: expected uint8 (H, W, 3) RGB, got float32 (8, 3, 16, 16). "
            "Pass one image of RGB pixels in [0, 255].",
        ),
        (
            {"image": np.zeros((0, 16, 3), np.uint8)},
            "image: expected uint8 (H, W, 3) RGB, got uint8 (0, 16, 3). "
            "Pass one image of RGB pixels in [0, 255].",
        ),
        (
            {"anomaly_map": np.zeros((8, 16), np.float32)},
            "anomaly_map: expected float32 (16, 16) as the image, got float32 (8, 16). "
            "Resize one of them to the other before drawing.",
        ),
        (
            {"anomaly_map": np.zeros((16, 16))},
            "anomaly_map: expected float32 (16, 16) as the image, got float64 (16, 16). "
            "Resize one of them to the other before drawing.",
        ),
        (
            {"anomaly_map": np.full((16, 16), 1.02, np.float32)},
            "anomaly_map: expected values in [0, 1], got [1.02, 1.02]. "
            "Pass the map that the model gives, or scale it.",
        ),
        (
            {"anomaly_map": np.full((16, 16), -0.02, np.float32)},
            "anomaly_map: expected values in [0, 1], got [-0.02, -0.02]. "
            "Pass the map that the model gives, or scale it.",
        ),
        (
            {"anomaly_map": np.full((16, 16), np.nan, np.float32)},
            "anomaly_map: expected values in [0, 1], got [nan, nan]. "
            "Pass the map that the model gives, or scale it.",
        ),
        (
            {"mask": np.zeros((16, 16), np.uint8)},
            "mask: expected bool (16, 16) as the image, got uint8 (16, 16). "
            "Pass mask > 0, at the image's size.",
        ),
        (
            {"mask": np.zeros((17, 16), bool)},
            "mask: expected bool (16, 16) as the image, got bool (17, 16). "
            "Pass mask > 0, at the image's size.",
        ),
        (
            {"score": float("nan")},
            "score: expected a finite number, got nan. Check the model's outputs with "
            "destseg-evaluate.",
        ),
        (
            {"threshold": float("inf")},
            "threshold: expected a finite number, got inf. Check the model's outputs with "
            "destseg-evaluate.",
        ),
        (
            {"pixel_threshold": float("nan")},
            "pixel_threshold: expected a finite number, got nan. Check the model's outputs with "
            "destseg-evaluate.",
        ),
    ],
)
def test_wrong_arguments_are_named_with_what_to_do(
    draw: Draw, change: dict[str, Any], message: str
) -> None:
    arguments: dict[str, Any] = {
        "image": grey(16, 16),
        "anomaly_map": np.zeros((16, 16), np.float32),
        "pixel_threshold": 0.5,
        "score": 0.5,
        "threshold": 0.5,
        "mask": np.zeros((16, 16), bool),
    }
    draw(**arguments)
    with pytest.raises(ShapeError) as caught:
        draw(**(arguments | change))
    assert str(caught.value) == message


# --- contact sheet


def test_tiles_of_all_sizes_land_in_their_cells_in_reading_order() -> None:
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0), (0, 200, 200)]
    shapes = [(50, 100), (400, 800), (100, 100), (7, 7), (1000, 100)]
    tiles = [np.full((*shape, 3), c, np.uint8) for shape, c in zip(shapes, colours, strict=True)]
    sheet = contact_sheet(tiles, columns=3, tile_width=128)
    gap = 4
    assert sheet.shape == (3 * gap + 128 + 256, 3 * 128 + 4 * gap, 3)
    boxes = [  # top, left, height, width
        (gap, gap, 64, 128),
        (gap, 2 * gap + 128, 64, 128),
        (gap, 3 * gap + 256, 128, 128),
        (2 * gap + 128, gap, 128, 128),
        (2 * gap + 128, 2 * gap + 128 + 51, 256, 26),  # too high: limited to 256, then centred
    ]
    for (top, left, height, width), colour in zip(boxes, colours, strict=True):
        where = is_colour(sheet, colour)
        assert where.sum() == height * width
        assert abs(int(np.nonzero(where.any(axis=0))[0][0]) - left) <= 1
        assert np.nonzero(where.any(axis=1))[0][0] == top
    total = sum(height * width for _, _, height, width in boxes)
    assert is_colour(sheet, GROUND).sum() == sheet.shape[0] * sheet.shape[1] - total


def test_a_sheet_is_no_wider_than_its_tiles() -> None:
    assert contact_sheet([grey(64, 64)] * 2, columns=9, tile_width=64).shape == (72, 140, 3)


def test_captions_stand_under_their_tiles_and_stay_in_their_cells() -> None:
    tiles = [grey(64, 64, 0)] * 3
    captions = ["a", "", "a/very/long/folder/with/many/parts/000123.png\nand more"]
    plain = contact_sheet(tiles, columns=3, tile_width=128)
    sheet = contact_sheet(tiles, columns=3, tile_width=128, captions=captions)
    assert sheet.shape[0] > plain.shape[0] + 10
    np.testing.assert_array_equal(sheet[: 4 + 128], plain[: 4 + 128])
    ink = ~is_colour(sheet[4 + 128 :], GROUND)
    starts = [4 + 132 * column for column in range(3)]
    inked = [int(ink[:, start : start + 128].sum()) for start in starts]
    assert inked[2] > inked[0] > 0
    assert inked[1] == 0
    assert ink[:, :4].sum() + ink[:, starts[2] - 4 : starts[2]].sum() + ink[:, -4:].sum() == 0


# --- files


def test_a_png_comes_back_as_it_was_written(tmp_path: Path) -> None:
    image = np.random.default_rng(3).integers(0, 256, (20, 30, 3), np.uint8)
    path = tmp_path / "new" / "folder" / "a.PNG"
    write_png(path, image[:, ::-1])
    with Image.open(path) as stored:
        assert stored.format == "PNG"
        assert stored.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(stored), image[:, ::-1])
    assert os.listdir(path.parent) == ["a.PNG"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask  # readable by whom the user lets read


def test_a_failed_write_is_named_and_leaves_the_older_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"older")

    def save_half(self: Image.Image, file: BinaryIO, **_: object) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save_half)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_png(path, grey(8, 8))
    assert caught.value.filename == str(path)
    assert os.listdir(tmp_path) == ["a.png"]
    assert path.read_bytes() == b"older"


def test_paths_that_cannot_be_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "file" / "a.png", tmp_path / "folder.png"):
        with pytest.raises(OSError, match=re.escape(str(path.parent))):
            write_png(path, grey(8, 8))
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.png"]
