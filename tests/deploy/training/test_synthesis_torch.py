"""The batched synthesis is the reference's, image by image."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from destseg_deploy.data.synthesis import FILL, ROTATIONS, Anomaly, Draw, draw, perlin, synthesize
from destseg_deploy.training.batches import (
    LINES,
    Batch,
    perlin_batch,
    stack_draws,
    synthesize_batch,
)

COUNT = 24
SIZES = [(64, 64), (48, 80), (65, 50)]


def smooth(seed: int, height: int, width: int, count: int = COUNT) -> NDArray[np.uint8]:
    """Return images without fine texture, (count, height, width, 3): OpenCV rounds positions."""
    grids = np.random.default_rng(seed).integers(0, 256, (count, 7, 9, 3)).astype(np.float32)
    images = [cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) for grid in grids]
    return np.clip(np.stack(images), 0, 255).astype(np.uint8)


def tensor(images: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def draws(rotation: str, count: int = COUNT, first: int = 0) -> list[Draw]:
    return [draw(np.random.default_rng(first + i), rotation) for i in range(count)]


def reference(height: int, width: int, choices: Sequence[Draw]) -> list[Anomaly]:
    images, textures = smooth(1, height, width), smooth(2, height, width)
    return [synthesize(*parts) for parts in zip(images, textures, choices, strict=True)]


def batched(height: int, width: int, choices: Sequence[Draw]) -> Batch:
    images, textures = tensor(smooth(1, height, width)), tensor(smooth(2, height, width))
    return synthesize_batch(images, textures, stack_draws(choices))


@dataclass(frozen=True)
class Distance:
    """How far a batch is from the reference.

    Attributes:
        worst: Largest difference of clean images, and of corrupted ones where the masks agree.
        mean: Mean difference of clean images in grey levels.
        blend: Mean difference of corrupted images under both masks.
        mask: Share of pixels in which the masks differ.
    """

    worst: float
    mean: float
    blend: float
    mask: float

    def close(self) -> bool:
        """Tell whether rounding explains it: OpenCV rounds positions to 1/32 pixel.

        Measured: 2.3 grey levels, 0.15, 0.15 and 0.0007.
        """
        return self.worst < 3 and self.mean < 0.2 and self.blend < 0.2 and self.mask < 0.0015


def distance(batch: Batch, expected: Sequence[Anomaly]) -> Distance:
    image, clean, mask = (part.numpy().transpose(0, 2, 3, 1) for part in batch)
    masks = np.stack([sample.mask for sample in expected])
    same, both = (mask[..., 0] > 0) == masks, (mask[..., 0] > 0) & masks
    of_clean = np.abs(clean - np.stack([sample.clean for sample in expected]))
    of_image = np.abs(image - np.stack([sample.image for sample in expected]))
    worst = max(of_clean.max(), of_image[same].max())
    blend = of_image[both].mean() if both.any() else 0
    return Distance(
        float(worst), float(of_clean.mean()), float(blend), 1 - float(np.mean(same, dtype=float))
    )


# ---------------------------------------------------------------------------- image by image


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_batch_is_the_reference_image_by_image(height: int, width: int, rotation: str) -> None:
    choices = draws(rotation)
    expected = reference(height, width, choices)
    found = distance(batched(height, width, choices), expected)
    assert found.close(), found
    others = [*choices[1:], choices[0]]
    wrong = distance(batched(height, width, others), expected)
    assert not wrong.close()
    assert wrong.mask > 0.03  # by the masks alone


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_larger_images_are_turned_and_cut_alike(rotation: str) -> None:
    """Crops of frames have a margin; see ``synthesis.turn_margin``."""
    choices = draws(rotation)
    images, textures = smooth(1, 76, 76), smooth(2, 64, 64)
    expected = [synthesize(*parts) for parts in zip(images, textures, choices, strict=True)]
    assert expected[0].clean.shape == (64, 64, 3)
    stacked = stack_draws(choices)
    assert distance(synthesize_batch(tensor(images), tensor(textures), stacked), expected).close()
    shifted = np.roll(images, 1, axis=1)
    wrong = distance(synthesize_batch(tensor(shifted), tensor(textures), stacked), expected)
    assert not wrong.close()


WRONG: dict[str, Callable[[Draw], Draw]] = {
    "image turned the other way": lambda one: replace(one, turn=-one.turn),
    "image turned a tenth of a degree further": lambda one: replace(one, turn=one.turn + 0.1),
    "noise turned the other way": lambda one: replace(one, noise_turn=-one.noise_turn),
    "noise turned a degree further": lambda one: replace(one, noise_turn=one.noise_turn + 1),
    "rows and columns swapped": lambda one: replace(one, angles=one.angles.T),
    "gradients mirrored": lambda one: replace(one, angles=-one.angles),
    "image and texture swapped": lambda one: replace(one, beta=1 - one.beta),
    "beta one hundredth off": lambda one: replace(one, beta=one.beta + 0.01),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_comparison_notices(name: str) -> None:
    choices = draws("full")
    expected = reference(64, 64, choices)
    assert not distance(batched(64, 64, [WRONG[name](one) for one in choices]), expected).close()


def test_neither_other_images_nor_other_textures_pass() -> None:
    choices = draws("slight")
    expected = reference(64, 64, choices)
    images, textures = tensor(smooth(1, 64, 64)), tensor(smooth(2, 64, 64))
    stacked = stack_draws(choices)
    for wrong in ((images.roll(1, 0), textures), (images, textures.roll(1, 0)), (textures, images)):
        assert not distance(synthesize_batch(*wrong, stacked), expected).close()
    assert distance(synthesize_batch(images, textures, stacked), expected).close()


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    """Up to the last bits: another size of batch may add in another order."""
    choices = draws("full")
    together = batched(64, 64, choices)
    images, textures = tensor(smooth(1, 64, 64)), tensor(smooth(2, 64, 64))
    for i in (0, 7, 23):
        alone = synthesize_batch(
            images[i : i + 1], textures[i : i + 1], stack_draws(choices[i : i + 1])
        )
        assert torch.allclose(alone[1][0], together[1][i], atol=1e-3)
        assert not torch.allclose(alone[1][0], together[1][i - 1], atol=1e-3)
        assert (alone[2][0] != together[2][i]).float().mean() < 1e-3


def test_the_batch_is_as_documented() -> None:
    image, clean, mask = batched(48, 80, draws("full"))
    assert image.shape == clean.shape == (COUNT, 3, 48, 80)
    assert mask.shape == (COUNT, 1, 48, 80)
    assert {part.dtype for part in (image, clean, mask)} == {torch.float32}
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    for part in (image, clean):
        assert -1e-3 < part.min()
        assert part.max() < 255 + 1e-3
    outside = (mask == 0).expand_as(image)
    assert torch.equal(image[outside], clean[outside])
    assert not torch.equal(image[~outside], clean[~outside])


def test_inputs_are_left_as_they_were() -> None:
    images, textures = tensor(smooth(1, 64, 64)), tensor(smooth(2, 64, 64))
    stacked = stack_draws(draws("full"))
    before = (stacked.numbers.clone(), stacked.gradients.clone())
    synthesize_batch(images, textures, stacked)
    assert torch.equal(images, tensor(smooth(1, 64, 64)))
    assert torch.equal(textures, tensor(smooth(2, 64, 64)))
    assert torch.equal(stacked.numbers, before[0])
    assert torch.equal(stacked.gradients, before[1])


# ---------------------------------------------------------------------------- turning


def test_images_that_do_not_turn_stay_exactly_as_they_are() -> None:
    stacked = stack_draws(draws("none"))
    assert not stacked.turned
    images = tensor(smooth(1, 48, 80))
    _, clean, _ = synthesize_batch(images, tensor(smooth(2, 48, 80)), stacked)
    assert torch.equal(clean, images.float())


def test_a_batch_is_turned_if_one_of_its_images_is() -> None:
    choices = draws("none")
    choices[5] = replace(choices[5], turn=40.0)
    stacked = stack_draws(choices)
    assert stacked.turned
    clean = batched(48, 80, choices)[1]
    still = torch.arange(COUNT) != 5
    images = tensor(smooth(1, 48, 80)).float()
    assert torch.allclose(clean[still], images[still], atol=1e-2)  # a turn by zero
    assert not torch.allclose(clean[5], images[5], atol=10)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_turn_is_bilinear_about_the_centre(height: int, width: int) -> None:
    """Against float64. Positions rounded to 1/32 pixel, as in OpenCV before 5, would not pass."""
    choices = draws("full")
    clean = batched(height, width, choices)[1].numpy()
    exact, rounded = (
        np.stack(
            [
                exact_turn(image, one.turn, grid)
                for image, one in zip(smooth(1, height, width), choices, strict=True)
            ]
        )
        for grid in (None, 32)
    )
    assert np.abs(clean - exact).max() < 0.02
    assert np.abs(rounded - exact).max() > 0.5


def exact_turn(image: NDArray[np.uint8], degrees: float, grid: int | None) -> NDArray[np.float64]:
    """Turn counter-clockwise, weighing every pixel by how near it is; (3, H, W).

    With a grid, positions are rounded to 1/grid pixel.
    """
    height, width = image.shape[:2]
    y, x = (a.ravel() for a in np.mgrid[:height, :width].astype(float))
    middle_y, middle_x = (height - 1) / 2, (width - 1) / 2
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    source_y = sin * (x - middle_x) + cos * (y - middle_y) + middle_y
    source_x = cos * (x - middle_x) - sin * (y - middle_y) + middle_x
    if grid is not None:
        source_y, source_x = (np.round(source * grid) / grid for source in (source_y, source_x))
    total = np.zeros((height * width, 3))
    covered = np.zeros((height * width, 1))
    for down in (0, 1):
        for right in (0, 1):
            i, j = np.floor(source_y).astype(int) + down, np.floor(source_x).astype(int) + right
            weight = (1 - np.abs(source_y - i)) * (1 - np.abs(source_x - j))
            weight = np.where((0 <= i) & (i < height) & (0 <= j) & (j < width), weight, 0)
            total += weight[:, None] * image[i.clip(0, height - 1), j.clip(0, width - 1)]
            covered += weight[:, None]
    return (total + (1 - covered) * FILL).T.reshape(3, height, width)


# ---------------------------------------------------------------------------- noise


def noise_of(height: int, width: int, choices: Sequence[Draw]) -> NDArray[np.float32]:
    stacked = stack_draws(choices)
    rows, columns = stacked.numbers[:, 4], stacked.numbers[:, 5]
    noise: NDArray[np.float32] = perlin_batch(
        height, width, rows, columns, stacked.gradients
    ).numpy()
    return noise


@pytest.mark.parametrize(("height", "width"), [*SIZES, (33, 41)])
def test_noise_is_the_reference_for_every_grid(height: int, width: int) -> None:
    """All 36 grids in one batch; measured 1.4e-6."""
    rng = np.random.default_rng(3)
    grids = [(2**i + 1, 2**j + 1) for i in range(6) for j in range(6)]
    angles = [rng.uniform(0, 2 * math.pi, grid).astype(np.float32) for grid in grids]
    choices = [Draw(0.0, one, 0.0, 0.0) for one in angles]
    noise = noise_of(height, width, choices)
    assert noise.shape == (36, height, width)
    assert noise.dtype == np.float32
    expected = np.stack([perlin(height, width, one) for one in angles])
    assert np.abs(noise - expected).max() < 5e-6
    swapped = noise_of(height, width, [replace(one, angles=one.angles.T) for one in choices])
    assert np.abs(swapped - expected).max(axis=(1, 2)).min() > 0.1
    nudged = noise_of(height, width, [replace(one, angles=one.angles + 1e-3) for one in choices])
    assert np.abs(nudged - expected).max(axis=(1, 2)).min() > 1e-4


# ---------------------------------------------------------------------------- the tensors


def test_draws_are_stacked_as_documented() -> None:
    choices = draws("full", 5)
    stacked = stack_draws(choices)
    assert stacked.numbers.dtype == stacked.gradients.dtype == torch.float32
    assert stacked.gradients.shape == (5, 2, LINES, LINES) == (5, 2, 33, 33)
    for one, numbers, gradients in zip(choices, stacked.numbers, stacked.gradients, strict=True):
        turn, noise_turn = math.radians(one.turn), math.radians(one.noise_turn)
        rows, columns = one.angles.shape
        expected = [math.cos(turn), math.sin(turn), math.cos(noise_turn), math.sin(noise_turn)]
        expected += [rows - 1, columns - 1, one.beta]
        assert np.abs(numbers.numpy() - expected).max() < 1e-6
        angles = one.angles.astype(np.float64)
        expected_gradients = np.stack([np.sin(angles), np.cos(angles)])
        assert np.abs(gradients[:, :rows, :columns].numpy() - expected_gradients).max() < 1e-6
        assert not gradients[:, rows:].any()
        assert not gradients[:, :, columns:].any()


def test_on_the_cpu_nothing_is_copied() -> None:
    stacked = stack_draws(draws("none", 2))
    assert stacked.to(torch.device("cpu")) is stacked


@pytest.mark.gpu
def test_a_gpu_makes_the_same_batch() -> None:
    device, choices = torch.device("cuda"), draws("full")
    images, textures = tensor(smooth(1, 48, 80)), tensor(smooth(2, 48, 80))
    made = synthesize_batch(images.to(device), textures.to(device), stack_draws(choices).to(device))
    assert {part.device.type for part in made} == {"cuda"}
    image, clean, mask = (part.cpu() for part in made)
    assert distance((image, clean, mask), reference(48, 80, choices)).close()
