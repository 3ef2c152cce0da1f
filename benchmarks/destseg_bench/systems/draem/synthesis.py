"""DRAEM's training samples: an augmented texture in a normal image, under Perlin noise.

Zavrtanik et al., ICCV 2021, Section 3.3. Noise, threshold and blending are those that DeSTSeg took
over. DRAEM's own are the three of ten augmentations of the texture, and that half of the samples
stay normal.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from destseg_bench.systems.frames import BgrFrames, Pixels, as_floats, draw_mask, rotate_on_black
from destseg_deploy.data.textures import open_textures

AUGMENTATIONS_EACH = 3

Augmentation = Callable[[Pixels, np.random.Generator], Pixels]
Batch = tuple[Tensor, Tensor, Tensor]
"""Images with anomalies and without, float32 (N, 3, H, W), and masks, float32 (N, 1, H, W)."""


class BgrTextures:
    """The textures of a task in BGR; each is decoded when first drawn, and kept."""

    def __init__(self, folder: Path | None, size: tuple[int, int]) -> None:
        """Open a folder, or the procedural textures for None; errors are ``open_textures``'s."""
        self._textures = open_textures(folder, size)
        self._kept: dict[int, Pixels] = {}

    def draw(self, rng: np.random.Generator) -> Pixels:
        """Draw a texture, uint8 (H, W, 3)."""
        number = int(rng.integers(len(self._textures)))
        if number not in self._kept:
            texture = self._textures.read(number)
            self._kept[number] = np.ascontiguousarray(texture[:, :, ::-1])
        return self._kept[number]


def make_batch(
    frames: BgrFrames, textures: BgrTextures, size: int, rng: np.random.Generator
) -> Batch:
    """Make a batch of ``size`` samples on the host; the same generator gives the same batch."""
    samples = [synthesize(frames.draw(rng), textures.draw(rng), rng) for _ in range(size)]
    images, clean, masks = (np.stack(parts) for parts in zip(*samples, strict=True))
    return (
        torch.from_numpy(images.transpose(0, 3, 1, 2).copy()),
        torch.from_numpy(clean.transpose(0, 3, 1, 2).copy()),
        torch.from_numpy(masks[:, None].astype(np.float32)),
    )


def synthesize(
    image: Pixels, texture: Pixels, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Make a training sample.

    Args:
        image: uint8 (H, W, 3), normal.
        texture: uint8 (H, W, 3), the anomaly's material.
        rng: Source of every random choice.

    Returns:
        The image with the anomaly in it and the image without, float32 (H, W, 3) in [0, 1], and
        where they may differ, bool (H, W); empty for a normal sample.
    """
    strange, clean = as_floats(augment(texture, rng)), as_floats(image)
    mask, beta = draw_mask(clean.shape[0], clean.shape[1], rng)
    blended = beta * clean + (1 - beta) * strange
    return np.where(mask[:, :, None], blended, clean), clean, mask


def augment(texture: Pixels, rng: np.random.Generator) -> Pixels:
    """Apply three different augmentations of ``AUGMENTATIONS`` in random order."""
    for i in rng.choice(len(AUGMENTATIONS), AUGMENTATIONS_EACH, replace=False):
        texture = AUGMENTATIONS[i](texture, rng)
    return texture


def gamma(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Raise each channel, in [0, 1], to a power between 1/2 and 2."""
    return _bytes(255 * as_floats(image) ** rng.uniform(0.5, 2.0, 3).astype(np.float32))


def brightness(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Scale HSV's value by up to a fifth and shift it by up to 30."""
    hsv = _to_hsv(image)
    hsv[:, :, 2] = hsv[:, :, 2] * rng.uniform(0.8, 1.2) + rng.uniform(-30, 30)
    return _from_hsv(hsv)


def sharpness(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Move away from the smoothed image, or towards it, by at most the whole difference."""
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
    smooth = cv2.filter2D(image, cv2.CV_32F, kernel)
    return _bytes(smooth + rng.uniform(0.0, 2.0) * (image - smooth))


def hue_and_saturation(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Turn the hue by up to 50 / 255 of the circle and shift the saturation by up to 50."""
    hsv = _to_hsv(image)
    hsv[:, :, 0] = (hsv[:, :, 0] + rng.uniform(-50, 50) * 180 / 255) % 180
    hsv[:, :, 1] += rng.uniform(-50, 50)
    return _from_hsv(hsv)


def solarize(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Invert, in half of the cases, the values from a threshold in [32, 128] up."""
    threshold = rng.uniform(32, 128)
    return np.where(image >= threshold, 255 - image, image) if rng.random() < 0.5 else image


def posterize(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Keep the highest 1 to 8 bits."""
    return image & np.uint8(256 - (1 << int(rng.integers(8))))


def invert(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Invert every value."""
    return 255 - image


def autocontrast(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Stretch each channel to [0, 255], up to 20 % of the pixels at each end cut off."""
    cutoff = rng.uniform(0, 20)
    low, high = np.percentile(image, [cutoff, 100 - cutoff], axis=(0, 1)).astype(np.float32)
    flat = high <= low
    stretched = (image - low) * (255 / np.where(flat, 1, high - low))
    return np.where(flat, image, _bytes(stretched))


def equalize(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Equalise each channel's histogram."""
    return np.stack([cv2.equalizeHist(plane) for plane in cv2.split(image)], axis=2)


def rotation(image: Pixels, rng: np.random.Generator) -> Pixels:
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
    rotation,
)


def _bytes(values: NDArray[np.floating]) -> Pixels:
    rounded: Pixels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return rounded


def _to_hsv(image: Pixels) -> NDArray[np.float32]:
    return cv2.cvtColor(image, cv2.COLOR_BGR2HSV).astype(np.float32)


def _from_hsv(hsv: NDArray[np.float32]) -> Pixels:
    hsv[:, :, 0] %= 180  # OpenCV's hue of bytes has the period 180
    return cv2.cvtColor(_bytes(hsv), cv2.COLOR_HSV2BGR).astype(np.uint8, copy=False)
