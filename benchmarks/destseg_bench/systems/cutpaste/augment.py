"""CutPaste's defects: a piece of a normal image, pasted onto it elsewhere.

Li et al., CVPR 2021, Sections 2.1 and 2.2. Images here are float32 (H, W, 3) RGB in [0, 1]; what is
returned is a copy.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.float32]
Box = tuple[slice, slice]
"""Rows and columns of a rectangle: ``image[box]`` is the view of its pixels."""

AREA = (0.02, 0.15)
"""Area of a patch, as a share of the image's."""

ASPECT = (0.3, 3.33)
"""Height of a patch by its width, drawn uniformly in its logarithm."""

SCAR_WIDTH = (2, 16)
SCAR_HEIGHT = (10, 25)
"""Pixels, both ends included."""

SCAR_ANGLE = 45.0
"""Degrees that a scar is turned at most, either way."""

JITTER = 0.1
"""Brightness, contrast and saturation change by this share at most, hue by this part of a turn."""

LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def paste_patch(image: Pixels, random: np.random.Generator) -> Pixels:
    """Paste a rectangle with jittered colours at a random place.

    Args:
        image: float32 (H, W, 3) in [0, 1].
        random: Every choice is drawn from it.
    """
    height, width = patch_size(image.shape[0], image.shape[1], random)
    piece = jitter(image[random_box(image, height, width, random)], random)
    pasted = image.copy()
    pasted[random_box(image, height, width, random)] = piece
    return pasted


def paste_scar(image: Pixels, random: np.random.Generator) -> Pixels:
    """Paste a thin turned rectangle with jittered colours at a random place."""
    width = int(random.integers(SCAR_WIDTH[0], SCAR_WIDTH[1] + 1))
    height = int(random.integers(SCAR_HEIGHT[0], SCAR_HEIGHT[1] + 1))
    piece = jitter(image[random_box(image, height, width, random)], random)
    turned, inside = turn(piece, random.uniform(-SCAR_ANGLE, SCAR_ANGLE))
    pasted = image.copy()
    target = pasted[random_box(image, inside.shape[0], inside.shape[1], random)]
    target[inside] = turned[inside]  # the canvas around the turned rectangle stays
    return pasted


def patch_size(rows: int, columns: int, random: np.random.Generator) -> tuple[int, int]:
    """Draw height and width of a patch for an image of ``rows`` x ``columns`` pixels."""
    area = random.uniform(*AREA) * rows * columns
    aspect = math.exp(random.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
    height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    return min(max(height, 1), rows), min(max(width, 1), columns)


def random_box(image: Pixels, height: int, width: int, random: np.random.Generator) -> Box:
    """Draw where a box of this size lies inside an image."""
    top = int(random.integers(0, image.shape[0] - height + 1))
    left = int(random.integers(0, image.shape[1] - width + 1))
    return slice(top, top + height), slice(left, left + width)


def turn(piece: Pixels, degrees: float) -> tuple[Pixels, NDArray[np.bool_]]:
    """Turn a rectangle about its middle, onto the smallest canvas that holds it.

    Each pixel of the canvas takes the nearest one of the rectangle.

    Args:
        piece: float32 (h, w, 3).
        degrees: Anticlockwise.

    Returns:
        The canvas, float32 (H, W, 3), and where the rectangle is on it, bool (H, W).
    """
    height, width = piece.shape[:2]
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    shape = (
        # less a rounding error, which would add a row at right angles
        math.ceil(height * abs(cosine) + width * abs(sine) - 1e-9),
        math.ceil(width * abs(cosine) + height * abs(sine) - 1e-9),
    )
    y, x = np.indices(shape)
    y, x = y - (shape[0] - 1) / 2, x - (shape[1] - 1) / 2
    row = np.rint(cosine * y + sine * x + (height - 1) / 2).astype(int)
    column = np.rint(cosine * x - sine * y + (width - 1) / 2).astype(int)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return piece[row.clip(0, height - 1), column.clip(0, width - 1)], inside


def jitter(piece: Pixels, random: np.random.Generator) -> Pixels:
    """Change brightness, contrast, saturation and hue at random, in a random order.

    Args:
        piece: float32 (h, w, 3) in [0, 1].
        random: Every choice is drawn from it.

    Returns:
        float32 (h, w, 3) in [0, 1], a copy.
    """
    changed = piece.copy()
    for change in random.permutation(4):
        if change == 3:
            changed = shift_hue(changed, random.uniform(-JITTER, JITTER))
            continue
        share = np.float32(random.uniform(1 - JITTER, 1 + JITTER))
        grey = changed @ LUMA
        base = (np.float32(0), grey.mean(), grey[..., None])[change]
        changed = np.clip(share * changed + (1 - share) * base, 0, 1)
    return changed.astype(np.float32)


def shift_hue(piece: Pixels, turns: float) -> Pixels:
    """Turn the hue of RGB in [0, 1] by a part of the colour circle."""
    hsv = cv2.cvtColor(np.ascontiguousarray(piece), cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + 360 * turns) % 360
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.float32)
