"""Synthetic anomalies: the paper's recipe, and nothing that depends on anything but the seed."""

from __future__ import annotations

import math
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from destseg_deploy.data.synthesis import (
    FILL,
    PAPER_ROTATIONS,
    ROTATIONS,
    Anomaly,
    Draw,
    draw,
    noise_mask,
    perlin,
    rotate,
    synthesize,
)

SIZE = 64
Floats = NDArray[np.float32]


def pixels(seed: int, size: int = SIZE) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def draws(count: int, rotation: str = "none") -> list[Draw]:
    rng = np.random.default_rng(0)
    return [draw(rng, rotation) for _ in range(count)]


def many(count: int, size: int = SIZE, rotation: str = "none") -> list[Anomaly]:
    return [synthesize(pixels(1, size), pixels(2, size), one) for one in draws(count, rotation)]


def directions(seed: int, rows: int, columns: int) -> Floats:
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 2 * math.pi, (rows + 1, columns + 1)).astype(np.float32)


# ---------------------------------------------------------------------------- choices


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_choices_are_drawn_in_a_fixed_order(rotation: str) -> None:
    """The order is part of what a seed means: another one gives other samples."""
    for seed in range(20):
        choices, rng = draw(np.random.default_rng(seed), rotation), np.random.default_rng(seed)
        turn = 0.0
        if rotation == "full":
            turn += 90 * int(rng.integers(4))
        if rotation != "none":
            turn += rng.uniform(-5, 5)
        rows, columns = (2 ** int(octave) for octave in rng.integers(0, 6, size=2))
        angles = rng.uniform(0, 2 * math.pi, (rows + 1, columns + 1))
        noise_turn, beta = rng.uniform(-90, 90), rng.uniform(0, 0.8)
        assert choices.angles.dtype == np.float32
        assert np.array_equal(choices.angles, angles.astype(np.float32))
        assert (choices.turn, choices.noise_turn, choices.beta) == (turn, noise_turn, beta)


def test_one_generator_gives_one_draw_after_another() -> None:
    assert len({one.beta for one in draws(50)}) == 50


# ---------------------------------------------------------------------------- noise


def slow_perlin(height: int, width: int, angles: Floats) -> NDArray[np.float64]:
    """Perlin noise as the textbook has it, a pixel at a time."""
    rows, columns = angles.shape[0] - 1, angles.shape[1] - 1
    noise = np.zeros((height, width))
    for row in range(height):
        for column in range(width):
            y, x = row * rows / height, column * columns / width
            i, j = math.floor(y), math.floor(x)
            total = 0.0
            for k in (i, i + 1):
                for m in (j, j + 1):
                    down, right = y - k, x - m
                    gradient = math.sin(angles[k, m]) * down + math.cos(angles[k, m]) * right
                    near_y, near_x = 1 - abs(down), 1 - abs(right)
                    total += gradient * fade(near_y) * fade(near_x)
            noise[row, column] = math.sqrt(2) * total
    return noise


def fade(t: float) -> float:
    return 6 * t**5 - 15 * t**4 + 10 * t**3


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    [(16, 16, 1, 1), (32, 32, 4, 8), (24, 40, 8, 2), (20, 36, 16, 32), (33, 33, 32, 1)],
)
def test_perlin_is_the_textbooks(height: int, width: int, rows: int, columns: int) -> None:
    noise = perlin(height, width, directions(3, rows, columns))
    expected = slow_perlin(height, width, directions(3, rows, columns))
    assert noise.dtype == np.float32
    assert np.abs(noise - expected).max() < 2e-5
    other = slow_perlin(height, width, directions(4, rows, columns))
    assert np.abs(noise - other).max() > 0.1


def test_perlin_is_zero_on_the_grid_and_fills_the_unit_range() -> None:
    fields = [perlin(64, 64, directions(seed, 8, 4)) for seed in range(100)]
    assert all(np.abs(field[::8, ::16]).max() < 1e-6 for field in fields)
    assert 0.9 < max(np.abs(field).max() for field in fields) <= 1.0 + 1e-6
    assert abs(np.mean(fields)) < 0.02


def test_masks_cover_a_few_percent_and_may_be_empty() -> None:
    areas = np.array([noise_mask(128, 128, one).mean() for one in draws(300)])
    assert 0.02 < areas.mean() < 0.12
    assert areas.max() < 0.6
    assert (areas == 0).any()
    assert (areas > 0.2).any()


def test_a_mask_is_turned_noise_above_one_half() -> None:
    """Turned by up to 90 degrees either way; what comes from outside is no anomaly."""
    outside = inside = total = 0.0
    for one in draws(40):
        mask = noise_mask(SIZE, SIZE, one)
        assert mask.dtype == np.bool_
        noise = perlin(SIZE, SIZE, one.angles)
        turned = slow_turn(noise, one.noise_turn)
        inside += float((mask != (turned > 0.5)).mean())
        outside += float((mask != (noise > 0.5)).mean())
        total += float(mask.mean())
    assert inside < 0.02 * total
    assert outside > 0.5 * total  # the noise as it was is another mask


def slow_turn(field: Floats, degrees: float) -> NDArray[np.float64]:
    """Turn counter-clockwise about the centre, bilinearly, zero outside."""
    height, width = field.shape
    padded = np.pad(field.astype(np.float64), 1)
    middle_y, middle_x = (height - 1) / 2, (width - 1) / 2
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    y, x = np.mgrid[:height, :width].astype(float)
    y, x = y - middle_y, x - middle_x
    source_y = np.clip(sin * x + cos * y + middle_y, -1, height)
    source_x = np.clip(cos * x - sin * y + middle_x, -1, width)
    i, j = np.floor(source_y).astype(int), np.floor(source_x).astype(int)
    i, j = np.minimum(i, height - 1), np.minimum(j, width - 1)
    v, u = source_y - i, source_x - j
    i, j = i + 1, j + 1
    top = padded[i, j] * (1 - u) + padded[i, j + 1] * u
    bottom = padded[i + 1, j] * (1 - u) + padded[i + 1, j + 1] * u
    turned: NDArray[np.float64] = top * (1 - v) + bottom * v
    return turned


# ---------------------------------------------------------------------------- blending


def test_outside_the_mask_nothing_changes_and_inside_one_beta_blends() -> None:
    texture = pixels(2).astype(np.float64)
    seen = 0
    for sample in many(40):
        assert sample.image.dtype == sample.clean.dtype == np.float32
        assert sample.image.shape == sample.clean.shape == (SIZE, SIZE, 3)
        assert (sample.image[~sample.mask] == sample.clean[~sample.mask]).all()
        if not sample.mask.any():
            continue
        seen += 1
        change = (sample.image - sample.clean)[sample.mask].astype(np.float64)
        way = (texture - sample.clean)[sample.mask]
        share = (change * way).sum() / (way * way).sum()  # 1 - beta
        assert 0.2 - 1e-6 <= share <= 1 + 1e-6
        assert np.abs(change - share * way).max() < 1e-3
    assert seen > 20


def test_beta_is_the_share_of_the_normal_image() -> None:
    black, white = np.zeros((SIZE, SIZE, 3), np.uint8), np.full((SIZE, SIZE, 3), 255, np.uint8)
    seen = 0
    for one in draws(40):
        sample = synthesize(black, white, one)
        if sample.mask.any():
            seen += 1
            assert abs(1 - float(sample.image.max()) / 255 - one.beta) < 1e-6
    assert seen > 20


def test_pixels_keep_their_range() -> None:
    for sample in many(20, rotation="full"):
        for image in (sample.image, sample.clean):
            assert image.min() >= 0
            assert image.max() <= 255


def test_the_clean_image_is_the_image_when_nothing_turns() -> None:
    assert all((sample.clean == pixels(1)).all() for sample in many(5))


def test_an_image_need_not_be_square() -> None:
    image = np.full((48, 80, 3), 9, np.uint8)
    for rotation in ROTATIONS:
        for one in draws(8, rotation):
            sample = synthesize(image, image, one)
            assert sample.image.shape == sample.clean.shape == (48, 80, 3)
            assert sample.mask.shape == (48, 80)
            assert (sample.clean[24, 40] == 9).all()  # the centre stays in the picture


# ---------------------------------------------------------------------------- determinism


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_a_sample_depends_on_the_generator_alone(rotation: str) -> None:
    def sample(seed: int) -> Anomaly:
        return synthesize(pixels(1), pixels(2), draw(np.random.default_rng(seed), rotation))

    samples = []
    for noise in (0, 1):
        cv2.setRNGSeed(noise)
        samples.append(sample(5))
    other = sample(6)
    for name in ("image", "clean", "mask"):
        assert (getattr(samples[0], name) == getattr(samples[1], name)).all()
    assert (samples[0].mask != other.mask).any()


def test_inputs_are_left_as_they_were() -> None:
    image, texture = pixels(1), pixels(2)
    for rotation in ROTATIONS:
        choices = draw(np.random.default_rng(0), rotation)
        angles = choices.angles.copy()
        synthesize(image, texture, choices)
        assert (choices.angles == angles).all()
    assert (image == pixels(1)).all()
    assert (texture == pixels(2)).all()


# ---------------------------------------------------------------------------- rotation


def angle_of(degrees: float) -> float:
    """Return by how many degrees an image is turned: its pixels hold their own positions."""
    size = 65
    y, x = np.mgrid[:size, :size].astype(np.float32) - (size - 1) / 2
    turned = rotate(np.dstack([x, y, np.ones_like(x)]).astype(np.float32), degrees)
    inside = np.hypot(x, y) < size / 2 - 1
    assert np.abs(turned[inside][:, 2] - 1).max() < 1e-5  # the centre stays the centre
    assert np.abs(turned[inside].mean(axis=0)[:2]).max() < 0.05
    a = (turned[..., 0] * x + turned[..., 1] * y)[inside].sum()
    b = (turned[..., 1] * x - turned[..., 0] * y)[inside].sum()
    return math.degrees(math.atan2(b, a))


@pytest.mark.parametrize("degrees", [-5.0, -0.5, 3.0, 87.5, 93.0, 181.0, 268.0])
def test_an_image_turns_by_the_angle_counter_clockwise(degrees: float) -> None:
    assert abs((angle_of(degrees) - degrees + 180) % 360 - 180) < 0.1


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_quarter_turn_is_numpys(quarters: int) -> None:
    image = pixels(1).astype(np.float32)
    turned = rotate(image, 90.0 * quarters)
    assert np.abs(turned - np.rot90(image, quarters))[1:-1, 1:-1].max() < 1e-3
    assert np.abs(turned - np.rot90(image, quarters + 2)).max() > 100


def test_no_rotation_is_none_at_all() -> None:
    image = pixels(1).astype(np.float32)
    assert rotate(image, 0.0) is image


def test_uncovered_corners_turn_grey() -> None:
    black = np.zeros((SIZE, SIZE, 3), np.float32)
    turned = np.stack([rotate(black, degrees) for degrees in (-5.0, -1.0, 2.0, 184.0)])
    assert turned.shape == (4, *black.shape)
    assert (turned.max(axis=(0, 1, 2)) == FILL).all()
    assert FILL == (114, 114, 114)
    assert (turned[:, 16:48, 16:48] == 0).all()


def test_rotations_are_the_papers() -> None:
    assert PAPER_ROTATIONS == {
        "bottle": "full",
        "cable": "slight",
        "capsule": "none",
        "carpet": "full",
        "grid": "full",
        "hazelnut": "full",
        "leather": "full",
        "metal_nut": "none",
        "pill": "none",
        "screw": "full",
        "tile": "full",
        "toothbrush": "none",
        "transistor": "none",
        "wood": "slight",
        "zipper": "slight",
    }
    assert set(PAPER_ROTATIONS.values()) == set(ROTATIONS)


def test_rotations_are_the_supplements(shared: Path) -> None:
    text = (shared / "reference/destseg_supplement.md").read_text()
    section = text.split("### A.")[1].split("**Optimization.**")[0]
    full, slight = section.split("where", 1)[0], section.split("For the", 1)[1].split(",", 3)
    named = {name: "full" for name in re.findall(r"\*(\w+)\*", full)}
    named |= {name: "slight" for name in re.findall(r"\*(\w+)\*", ",".join(slight))}
    assert {name: r for name, r in PAPER_ROTATIONS.items() if r != "none"} == named
    categories = set(re.findall(r"^([a-z_]+)\t", text, re.M)) - {"average"}
    assert set(PAPER_ROTATIONS) == categories
