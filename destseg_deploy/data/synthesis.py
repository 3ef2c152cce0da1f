"""Synthetic anomalies: a texture blended into a normal image under a Perlin-noise mask.

DeSTSeg is trained on normal images only; its anomalies are made here (paper, section 3.1;
rotations: supplement, section A). ``draw`` makes every random choice of a sample with one
generator. ``synthesize`` applies the choices to one image, as the reference does;
``training/batches.py`` applies them to a batch on the training device.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

ROTATIONS = ("none", "slight", "full")
"""``slight``: uniform in ±5 degrees. ``full``: 0, 90, 180 or 270 degrees, plus slight."""

SLIGHT = 5.0
"""Largest slight turn, in degrees."""

PAPER_ROTATIONS = {
    **dict.fromkeys(("capsule", "metal_nut", "pill", "toothbrush", "transistor"), "none"),
    **dict.fromkeys(("wood", "zipper", "cable"), "slight"),
    **dict.fromkeys(("bottle", "grid", "hazelnut", "leather", "tile", "carpet", "screw"), "full"),
}
"""Rotation by MVTec AD category (supplement, section A)."""

FILL = (114, 114, 114)
"""Grey of the corners that a rotation uncovers, as in the reference."""
MAX_BETA = 0.8
NOISE_THRESHOLD = 0.5
MAX_OCTAVE = 5
"""The noise has up to 2⁵ = 32 cells along each side."""


@dataclass(frozen=True, eq=False)
class Draw:
    """Every random choice of a sample.

    Attributes:
        turn: Rotation of the normal image in degrees counter-clockwise, quarter turns included.
        angles: float32 (rows + 1, columns + 1): directions of the noise's gradients, in radians.
        noise_turn: Rotation of the noise in degrees, in [-90, 90).
        beta: Share of the normal image that shows through the anomaly, in [0, 0.8).
    """

    turn: float
    angles: NDArray[np.float32]
    noise_turn: float
    beta: float


@dataclass(frozen=True, eq=False)
class Anomaly:
    """A training sample.

    Attributes:
        image: float32 (H, W, 3) in [0, 255]: the image with the anomaly.
        clean: float32 (H, W, 3) in [0, 255]: the same image without it.
        mask: bool (H, W): the anomaly; may be empty.
    """

    image: NDArray[np.float32]
    clean: NDArray[np.float32]
    mask: NDArray[np.bool_]


def draw(rng: np.random.Generator, rotation: str = "none") -> Draw:
    """Make a sample's random choices.

    Args:
        rng: Generator of all choices.
        rotation: One of ``ROTATIONS``.
    """
    turn = 0.0
    if rotation != "none":
        quarters = int(rng.integers(4)) if rotation == "full" else 0
        turn = 90 * quarters + rng.uniform(-SLIGHT, SLIGHT)
    rows, columns = 2 ** rng.integers(0, MAX_OCTAVE + 1, size=2)
    angles = rng.uniform(0.0, 2 * np.pi, (rows + 1, columns + 1)).astype(np.float32)
    return Draw(turn, angles, rng.uniform(-90.0, 90.0), rng.uniform(0.0, MAX_BETA))


def synthesize(image: NDArray[np.uint8], texture: NDArray[np.uint8], choices: Draw) -> Anomaly:
    """Make a training sample from a normal image and a texture.

    Args:
        image: uint8 (H, W, 3). A larger one is rotated and then cut to its middle; see
            ``turn_margin``.
        texture: uint8 (H, W, 3), the look of the anomaly.
        choices: The sample's random choices.
    """
    clean = middle(rotate(image.astype(np.float32), choices.turn), texture.shape[0])
    mask = noise_mask(clean.shape[0], clean.shape[1], choices)
    beta = np.float32(choices.beta)
    blended = beta * clean + (1 - beta) * texture.astype(np.float32)
    return Anomaly(np.where(mask[:, :, None], blended, clean), clean, mask)


def turn_margin(side: int, rotation: str) -> int:
    """Return the pixels that a square image needs beyond each border to be turned without a gap.

    Args:
        side: Of the image that is left after the turn.
        rotation: One of ``ROTATIONS``; quarter turns of a square need nothing.
    """
    if rotation == "none":
        return 0
    slight = np.deg2rad(SLIGHT)
    # One pixel more, because OpenCV rounds positions to 1/32 pixel and blends two pixels.
    return int(np.ceil((side - 1) / 2 * (np.cos(slight) + np.sin(slight) - 1))) + 1


def middle(image: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Return the middle of a square image (H, H, 3), or all of it where it has that side."""
    margin = (image.shape[0] - side) // 2
    return image[margin : margin + side, margin : margin + side] if margin > 0 else image


def rotate(image: NDArray[np.float32], degrees: float) -> NDArray[np.float32]:
    """Rotate counter-clockwise about the centre; uncovered corners turn grey."""
    # Without a rotation there is no interpolation, so that the sample has the image's pixels.
    return image if degrees == 0 else _turn(image, degrees, FILL)


def noise_mask(height: int, width: int, choices: Draw) -> NDArray[np.bool_]:
    """Return the blobs of rotated Perlin noise above one half; bool (H, W), may be empty."""
    noise = perlin(height, width, choices.angles)
    return _turn(noise, choices.noise_turn, (0, 0, 0)) > NOISE_THRESHOLD


def perlin(height: int, width: int, angles: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return Perlin gradient noise, scaled by sqrt(2) to about [-1, 1].

    Args:
        height: H.
        width: W.
        angles: float32 (rows + 1, columns + 1), radians: the gradients at the corners of a grid of
            rows x columns cells.

    Returns:
        float32 (H, W).
    """
    rows, columns = angles.shape[0] - 1, angles.shape[1] - 1
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
    """Return Perlin's 6t⁵ - 15t⁴ + 10t³, which has no slope and no curvature at 0 and 1."""
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
