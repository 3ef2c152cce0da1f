"""Synthetic anomalies: a texture blended into a normal image under a Perlin-noise mask.

DeSTSeg learns from normal images alone; this is where its anomalies come from (methods.md 3.1.8).
Every random number of a sample comes from the generator that is passed in, so that a sample depends
on its seed and on nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

ROTATIONS = ("none", "slight", "full")
"""``slight``: uniform in ±5 degrees. ``full``: 0, 90, 180 or 270 degrees, plus slight."""

PAPER_ROTATIONS = {
    **dict.fromkeys(("capsule", "metal_nut", "pill", "toothbrush", "transistor"), "none"),
    **dict.fromkeys(("wood", "zipper", "cable"), "slight"),
    **dict.fromkeys(("bottle", "grid", "hazelnut", "leather", "tile", "carpet", "screw"), "full"),
}
"""Rotation by MVTec AD category (supplement, section A)."""

FILL = (114, 114, 114)
MAX_BETA = 0.8
NOISE_THRESHOLD = 0.5
MAX_OCTAVE = 5


@dataclass(frozen=True)
class Anomaly:
    """A training sample.

    Attributes:
        image: float32 (H, W, 3) in [0, 255]: the image with the anomaly in it.
        clean: float32 (H, W, 3) in [0, 255]: the same without.
        mask: bool (H, W): where they differ; may be empty.
    """

    image: NDArray[np.float32]
    clean: NDArray[np.float32]
    mask: NDArray[np.bool_]


def synthesize(
    image: NDArray[np.uint8],
    texture: NDArray[np.uint8],
    rng: np.random.Generator,
    rotation: str = "none",
) -> Anomaly:
    """Make a training sample from a normal image and a texture.

    Args:
        image: uint8 (H, W, 3).
        texture: uint8 (H, W, 3), what the anomaly looks like.
        rng: Source of every random choice.
        rotation: One of ``ROTATIONS``, applied before the anomaly.
    """
    clean = rotate(image.astype(np.float32), rotation, rng)
    mask = noise_mask(clean.shape[0], clean.shape[1], rng)
    beta = np.float32(rng.uniform(0.0, MAX_BETA))
    blended = beta * clean + (1 - beta) * texture.astype(np.float32)
    return Anomaly(np.where(mask[:, :, None], blended, clean), clean, mask)


def rotate(
    image: NDArray[np.float32], rotation: str, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Rotate about the centre as the category's group allows; uncovered corners turn grey."""
    if rotation == "none":
        return image
    if rotation == "full":
        image = np.ascontiguousarray(np.rot90(image, int(rng.integers(4))))
    return _turn(image, rng.uniform(-5.0, 5.0), FILL)


def noise_mask(height: int, width: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return the blobs of rotated Perlin noise above one half; bool (H, W), may be empty."""
    rows, columns = 2 ** rng.integers(0, MAX_OCTAVE + 1, size=2)
    noise = perlin(height, width, int(rows), int(columns), rng)
    return _turn(noise, rng.uniform(-90.0, 90.0), (0, 0, 0)) > NOISE_THRESHOLD


def perlin(
    height: int, width: int, rows: int, columns: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Return Perlin gradient noise over a grid of ``rows`` x ``columns`` cells.

    Scaled by sqrt(2), so that it fills about [-1, 1]; float32 (H, W).
    """
    angles = rng.uniform(0.0, 2 * np.pi, (rows + 1, columns + 1)).astype(np.float32)
    gradients = np.stack([np.sin(angles), np.cos(angles)])
    y, cell_y = np.modf(np.arange(height, dtype=np.float32) * rows / height)
    x, cell_x = np.modf(np.arange(width, dtype=np.float32) * columns / width)
    i, j = cell_y.astype(int)[:, None], cell_x.astype(int)[None, :]

    def corner(down: int, right: int) -> NDArray[np.float32]:
        g = gradients[:, i + down, j + right]
        dot: NDArray[np.float32] = g[0] * (y - down)[:, None] + g[1] * (x - right)[None, :]
        return dot

    u, v = _fade(y)[:, None], _fade(x)[None, :]
    top = corner(0, 0) * (1 - v) + corner(0, 1) * v
    bottom = corner(1, 0) * (1 - v) + corner(1, 1) * v
    noise: NDArray[np.float32] = np.float32(np.sqrt(2)) * np.asarray(
        top * (1 - u) + bottom * u, np.float32
    )
    return noise


def _fade(t: NDArray[np.float32]) -> NDArray[np.float32]:
    return t * t * t * (t * (t * 6 - 15) + 10)


def _turn(
    image: NDArray[np.float32], degrees: float, fill: tuple[int, int, int]
) -> NDArray[np.float32]:
    """Rotate bilinearly about the centre, keeping the size."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    turned = cv2.warpAffine(
        image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=fill
    )
    return turned.astype(np.float32, copy=False)
