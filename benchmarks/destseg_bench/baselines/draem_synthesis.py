"""DRAEM's training samples: an augmented texture in a normal image, under Perlin noise.

Noise, threshold and blending are DeSTSeg's (methods.md 3.1.8). What is DRAEM's own (3.3): three of
ten augmentations are applied to the texture, and half of the samples stay normal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from destseg_bench.baselines.plain_frames import as_floats, rotate_on_black
from destseg_deploy.data.synthesis import draw, noise_mask
from destseg_deploy.data.texture_source import open_textures

NORMAL_SHARE = 0.5
AUGMENTATIONS_EACH = 3

Image = NDArray[np.uint8]
Augmentation = Callable[[Image, np.random.Generator], Image]


@dataclass(frozen=True, eq=False)
class Sample:
    """A training sample, BGR in [0, 1].

    Attributes:
        image: float32 (H, W, 3): the image with the anomaly in it.
        clean: float32 (H, W, 3): the same without.
        mask: bool (H, W): where they may differ; empty for a normal sample.
    """

    image: NDArray[np.float32]
    clean: NDArray[np.float32]
    mask: NDArray[np.bool_]


def synthesize(image: Image, texture: Image, rng: np.random.Generator) -> Sample:
    """Make a training sample.

    Args:
        image: uint8 (H, W, 3), normal.
        texture: uint8 (H, W, 3), what the anomaly is made of.
        rng: Source of every random choice.
    """
    strange, clean = as_floats(augment(texture, rng)), as_floats(image)
    choices = draw(rng)
    mask = noise_mask(clean.shape[0], clean.shape[1], choices)
    if rng.random() < NORMAL_SHARE:
        mask = np.zeros_like(mask)
    beta = np.float32(choices.beta)
    blended = beta * clean + (1 - beta) * strange
    return Sample(np.where(mask[:, :, None], blended, clean), clean, mask)


class BgrTextures:
    """The textures of a task in BGR; each is decoded when first drawn, and kept."""

    def __init__(self, folder: Path | None, size: tuple[int, int]) -> None:
        """Open a folder, or the procedural textures for None; errors are ``open_textures``'s."""
        self._textures = open_textures(folder, size)
        self._kept: dict[int, Image] = {}

    def pick(self, rng: np.random.Generator) -> Image:
        """Draw a texture, uint8 (H, W, 3)."""
        number = int(rng.integers(len(self._textures)))
        if number not in self._kept:
            texture = self._textures.read(number)
            self._kept[number] = np.ascontiguousarray(texture[:, :, ::-1])
        return self._kept[number]


def augment(texture: Image, rng: np.random.Generator) -> Image:
    """Apply three different augmentations of ``AUGMENTATIONS`` in random order."""
    for i in rng.choice(len(AUGMENTATIONS), AUGMENTATIONS_EACH, replace=False):
        texture = AUGMENTATIONS[i](texture, rng)
    return texture


# ------------------------------------------------------------------- the ten augmentations


def gamma(image: Image, rng: np.random.Generator) -> Image:
    """Raise each channel, in [0, 1], to a power between 1/2 and 2."""
    return _bytes(255 * as_floats(image) ** rng.uniform(0.5, 2.0, 3).astype(np.float32))


def brightness(image: Image, rng: np.random.Generator) -> Image:
    """Scale HSV's value by up to a fifth and shift it by up to 30."""
    hsv = _to_hsv(image)
    hsv[:, :, 2] = hsv[:, :, 2] * rng.uniform(0.8, 1.2) + rng.uniform(-30, 30)
    return _from_hsv(hsv)


def sharpness(image: Image, rng: np.random.Generator) -> Image:
    """Move away from the smoothed image, or towards it, by at most the whole difference."""
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
    smooth = cv2.filter2D(image, cv2.CV_32F, kernel)
    return _bytes(smooth + rng.uniform(0.0, 2.0) * (image - smooth))


def hue_and_saturation(image: Image, rng: np.random.Generator) -> Image:
    """Turn the hue by up to 50 / 255 of the circle and shift the saturation by up to 50."""
    hsv = _to_hsv(image)
    hsv[:, :, 0] = (hsv[:, :, 0] + rng.uniform(-50, 50) * 180 / 255) % 180
    hsv[:, :, 1] += rng.uniform(-50, 50)
    return _from_hsv(hsv)


def solarize(image: Image, rng: np.random.Generator) -> Image:
    """Invert, in half of the cases, the values from a threshold in [32, 128] up."""
    threshold = rng.uniform(32, 128)
    return np.where(image >= threshold, 255 - image, image) if rng.random() < 0.5 else image


def posterize(image: Image, rng: np.random.Generator) -> Image:
    """Keep the highest 1 to 8 bits."""
    return image & np.uint8(256 - (1 << int(rng.integers(8))))


def invert(image: Image, rng: np.random.Generator) -> Image:
    """Invert every value."""
    return 255 - image


def autocontrast(image: Image, rng: np.random.Generator) -> Image:
    """Stretch each channel to [0, 255], up to 20 % of the pixels at each end cut off."""
    cutoff = rng.uniform(0, 20)
    low, high = np.percentile(image, [cutoff, 100 - cutoff], axis=(0, 1)).astype(np.float32)
    flat = high <= low
    stretched = (image - low) * (255 / np.where(flat, 1, high - low))
    return np.where(flat, image, _bytes(stretched))


def equalize(image: Image, rng: np.random.Generator) -> Image:
    """Equalise each channel's histogram."""
    return np.stack([cv2.equalizeHist(plane) for plane in cv2.split(image)], axis=2)


def turn(image: Image, rng: np.random.Generator) -> Image:
    """Rotate by up to 45 degrees either way."""
    return rotate_on_black(image, rng.uniform(-45.0, 45.0))


AUGMENTATIONS: tuple[Augmentation, ...] = (
    gamma,
    brightness,
    sharpness,
    hue_and_saturation,
    solarize,
    posterize,
    invert,
    autocontrast,
    equalize,
    turn,
)


def _bytes(values: NDArray[np.floating]) -> Image:
    rounded: Image = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return rounded


def _to_hsv(image: Image) -> NDArray[np.float32]:
    return cv2.cvtColor(image, cv2.COLOR_BGR2HSV).astype(np.float32)


def _from_hsv(hsv: NDArray[np.float32]) -> Image:
    hsv[:, :, 0] %= 180
    return cv2.cvtColor(_bytes(hsv), cv2.COLOR_HSV2BGR).astype(np.uint8, copy=False)
