"""Synthetic anomalies: the paper's recipe, and nothing that depends on anything but the seed."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from destseg_deploy.data import synthesis
from destseg_deploy.data.synthesis import (
    FILL,
    PAPER_ROTATIONS,
    ROTATIONS,
    Anomaly,
    noise_mask,
    perlin,
    rotate,
    synthesize,
)

SIZE = 64
Floats = NDArray[np.float32]


def pixels(seed: int, size: int = SIZE) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def many(count: int, size: int = SIZE, **options: Any) -> list[Anomaly]:
    rng = np.random.default_rng(0)
    return [synthesize(pixels(1, size), pixels(2, size), rng, **options) for _ in range(count)]


# ---------------------------------------------------------------------------- noise


def slow_perlin(
    height: int, width: int, rows: int, columns: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Perlin noise as the textbook has it, a pixel at a time."""
    angles = rng.uniform(0, 2 * math.pi, (rows + 1, columns + 1))
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
    noise = perlin(height, width, rows, columns, np.random.default_rng(3))
    expected = slow_perlin(height, width, rows, columns, np.random.default_rng(3))
    assert noise.dtype == np.float32
    assert np.abs(noise - expected).max() < 2e-5
    other = slow_perlin(height, width, rows, columns, np.random.default_rng(4))
    assert np.abs(noise - other).max() > 0.1


def test_perlin_is_zero_on_the_grid_and_fills_the_unit_range() -> None:
    rng = np.random.default_rng(0)
    fields = [perlin(64, 64, 8, 4, rng) for _ in range(100)]
    assert all(np.abs(field[::8, ::16]).max() < 1e-6 for field in fields)
    assert 0.9 < max(np.abs(field).max() for field in fields) <= 1.0 + 1e-6
    assert abs(np.mean(fields)) < 0.02


def test_grids_have_1_to_32_cells_a_side(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    def record(height: int, width: int, rows: int, columns: int, rng: object) -> Floats:
        seen.append((rows, columns))
        return np.zeros((height, width), np.float32)

    monkeypatch.setattr(synthesis, "perlin", record)
    rng = np.random.default_rng(0)
    for _ in range(600):
        noise_mask(8, 8, rng)
    powers = {1, 2, 4, 8, 16, 32}
    assert {rows for rows, _ in seen} == {columns for _, columns in seen} == powers
    assert len(set(seen)) == 36  # the two sides are drawn apart
    assert min(seen.count(pair) for pair in set(seen)) > 4


def test_masks_cover_a_few_percent_and_may_be_empty() -> None:
    rng = np.random.default_rng(0)
    areas = np.array([noise_mask(128, 128, rng).mean() for _ in range(300)])
    assert 0.02 < areas.mean() < 0.12
    assert areas.max() < 0.6
    assert (areas == 0).any()
    assert (areas > 0.2).any()


def test_a_mask_is_turned_noise_above_one_half() -> None:
    """Turned by up to 90 degrees either way; what comes from outside is no anomaly."""
    outside = inside = total = 0.0
    for seed in range(40):
        mask = noise_mask(SIZE, SIZE, np.random.default_rng(seed))
        assert mask.dtype == np.bool_
        rng = np.random.default_rng(seed)
        rows, columns = 2 ** rng.integers(0, 6, size=2)
        noise = perlin(SIZE, SIZE, int(rows), int(columns), rng)
        turned = slow_turn(noise, rng.uniform(-90, 90))
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


def test_beta_is_uniform_up_to_0_8() -> None:
    black, white = np.zeros((SIZE, SIZE, 3), np.uint8), np.full((SIZE, SIZE, 3), 255, np.uint8)
    rng = np.random.default_rng(0)
    betas = []
    for _ in range(400):
        sample = synthesize(black, white, rng)
        if sample.mask.any():
            betas.append(1 - float(sample.image.max()) / 255)
    assert 0 <= min(betas) < 0.02
    assert 0.78 < max(betas) <= 0.8 + 1e-6
    assert abs(np.mean(betas) - 0.4) < 0.03
    assert abs(np.std(betas) - 0.8 / math.sqrt(12)) < 0.02


def test_pixels_keep_their_range() -> None:
    for sample in many(20, rotation="full"):
        for image in (sample.image, sample.clean):
            assert image.min() >= 0
            assert image.max() <= 255


def test_the_clean_image_is_the_image_when_nothing_turns() -> None:
    assert all((sample.clean == pixels(1)).all() for sample in many(5))


def test_an_image_need_not_be_square() -> None:
    image = np.full((48, 80, 3), 9, np.uint8)
    sample = synthesize(image, image, np.random.default_rng(0), "slight")
    assert sample.image.shape == (48, 80, 3)
    assert sample.mask.shape == (48, 80)


# ---------------------------------------------------------------------------- determinism


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_a_sample_depends_on_the_generator_alone(rotation: str) -> None:
    samples = []
    for noise in (0, 1):
        cv2.setRNGSeed(noise)
        samples.append(synthesize(pixels(1), pixels(2), np.random.default_rng(5), rotation))
    other = synthesize(pixels(1), pixels(2), np.random.default_rng(6), rotation)
    for name in ("image", "clean", "mask"):
        assert (getattr(samples[0], name) == getattr(samples[1], name)).all()
    assert (samples[0].mask != other.mask).any()


def test_inputs_are_left_as_they_were() -> None:
    image, texture = pixels(1), pixels(2)
    for rotation in ROTATIONS:
        synthesize(image, texture, np.random.default_rng(0), rotation)
    assert (image == pixels(1)).all()
    assert (texture == pixels(2)).all()


# ---------------------------------------------------------------------------- rotation


def angle_of(rotation: str, rng: np.random.Generator) -> float:
    """Return by how many degrees an image is turned: its pixels hold their own positions."""
    size = 65
    y, x = np.mgrid[:size, :size].astype(np.float32) - (size - 1) / 2
    turned = rotate(np.dstack([x, y, np.ones_like(x)]).astype(np.float32), rotation, rng)
    inside = np.hypot(x, y) < size / 2 - 1
    assert np.abs(turned[inside][:, 2] - 1).max() < 1e-5  # the centre stays the centre
    assert np.abs(turned[inside].mean(axis=0)[:2]).max() < 0.05
    a = (turned[..., 0] * x + turned[..., 1] * y)[inside].sum()
    b = (turned[..., 1] * x - turned[..., 0] * y)[inside].sum()
    return math.degrees(math.atan2(b, a))


def test_no_rotation_is_none_at_all() -> None:
    image = pixels(1).astype(np.float32)
    assert rotate(image, "none", np.random.default_rng(0)) is image


def test_slight_rotations_are_uniform_within_5_degrees() -> None:
    rng = np.random.default_rng(0)
    angles = np.array([angle_of("slight", rng) for _ in range(200)])
    assert 4.5 < np.abs(angles).max() < 5.1
    assert abs(angles.mean()) < 0.6
    assert abs(angles.std() - 10 / math.sqrt(12)) < 0.4


def test_full_rotations_are_quarter_turns_and_slight_ones() -> None:
    rng = np.random.default_rng(0)
    angles = np.array([angle_of("full", rng) for _ in range(200)])
    quarters = np.rint(angles / 90)
    rest = angles - 90 * quarters
    assert 4.5 < np.abs(rest).max() < 5.1
    counts = [int((quarters % 4 == quarter).sum()) for quarter in range(4)]
    assert min(counts) > 30
    assert abs(rest.std() - 10 / math.sqrt(12)) < 0.4


def test_uncovered_corners_turn_grey() -> None:
    black, rng = np.zeros((SIZE, SIZE, 3), np.float32), np.random.default_rng(0)
    turned = np.stack([rotate(black, "slight", rng) for _ in range(20)])
    assert turned.shape == (20, *black.shape)
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
