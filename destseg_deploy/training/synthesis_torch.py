"""The synthesis of ``data/synthesis.py`` for a whole batch at once, on any device.

Perlin noise over a grid of any number of cells is a sum of products of a row's weight and a
column's weight. So the noise of a batch of grids of different sizes is two batched matrix products:

    noise = sqrt(2) * (V * dy) @ S @ U.T + sqrt(2) * V @ C @ (U * dx).T

V (H, 33) and U (W, 33) are the faded nearness of each pixel row and column to each grid line. dy
and dx are the signed distances to the grid lines, in cells. S and C are the sines and cosines of
the gradients; they are zero where a smaller grid has no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from destseg_deploy.data.synthesis import FILL, MAX_OCTAVE, NOISE_THRESHOLD, Draw

LINES = 2**MAX_OCTAVE + 1

Batch = tuple[Tensor, Tensor, Tensor]
"""Corrupted and clean images, float32 (N, 3, H, W) in [0, 255], and masks, float32 (N, 1, H, W)."""


@dataclass(frozen=True, eq=False)
class Draws:
    """The random choices of a batch, as tensors that travel to the device together.

    Attributes:
        numbers: float32 (N, 7): cosine and sine of the image's turn and of the noise's, rows,
            columns, beta.
        gradients: float32 (N, 2, 33, 33): sines and cosines of the gradients, zero beyond the grid.
        turned: Whether any image is rotated.
    """

    numbers: Tensor
    gradients: Tensor
    turned: bool

    def to(self, device: torch.device) -> Draws:
        """Return them on a device; the host does not wait for the copy."""
        if device.type == "cpu":
            return self
        numbers, gradients = self.numbers.pin_memory(), self.gradients.pin_memory()
        return Draws(
            numbers.to(device, non_blocking=True),
            gradients.to(device, non_blocking=True),
            self.turned,
        )


def stack_draws(choices: Sequence[Draw]) -> Draws:
    """Return the choices of a batch as tensors."""
    numbers = np.empty((len(choices), 7), np.float32)
    gradients = np.zeros((len(choices), 2, LINES, LINES), np.float32)
    for i, one in enumerate(choices):
        image, noise = np.deg2rad(one.turn), np.deg2rad(one.noise_turn)
        rows, columns = one.angles.shape
        turns = (np.cos(image), np.sin(image), np.cos(noise), np.sin(noise))
        numbers[i] = (*turns, rows - 1, columns - 1, one.beta)
        gradients[i, 0, :rows, :columns] = np.sin(one.angles)
        gradients[i, 1, :rows, :columns] = np.cos(one.angles)
    turned = any(one.turn != 0 for one in choices)
    return Draws(torch.from_numpy(numbers), torch.from_numpy(gradients), turned)


def synthesize_batch(images: Tensor, textures: Tensor, draws: Draws) -> Batch:
    """Make a batch of training samples.

    Args:
        images: uint8 (N, 3, H, W), normal images. Larger ones are turned and then cut to their
            middle, as in ``synthesis.synthesize``.
        textures: uint8 (N, 3, H, W), the look of their anomalies.
        draws: The random choices, on the same device.

    Returns:
        The batch, within rounding of ``synthesis.synthesize`` image by image.
    """
    height, width = textures.shape[-2:]
    numbers = draws.numbers
    clean = images.float()
    if draws.turned:
        # Shifted by the fill colour, so that the zeros that a rotation brings in become grey. One
        # number serves all channels; a tensor would be copied to the GPU, and the host would wait.
        grey = FILL[0]
        clean = _turn(clean - grey, numbers[:, 0], numbers[:, 1]) + grey
    margin = (images.shape[-1] - width) // 2
    if margin > 0:
        clean = clean[..., margin : margin + height, margin : margin + width].contiguous()
    noise = perlin_batch(height, width, numbers[:, 4], numbers[:, 5], draws.gradients)
    mask = _turn(noise[:, None], numbers[:, 2], numbers[:, 3]) > NOISE_THRESHOLD
    beta = numbers[:, 6].view(-1, 1, 1, 1)
    blended = beta * clean + (1 - beta) * textures.float()
    return torch.where(mask, blended, clean), clean, mask.float()


def perlin_batch(
    height: int, width: int, rows: Tensor, columns: Tensor, gradients: Tensor
) -> Tensor:
    """Return Perlin noise (N, H, W) over grids of rows x columns cells; see ``synthesis.perlin``.

    Args:
        height: H.
        width: W.
        rows: float32 (N,), at most 32.
        columns: float32 (N,), at most 32.
        gradients: float32 (N, 2, 33, 33): sines and cosines, zero beyond the grid.
    """
    down, near_row = _grid_lines(height, rows)
    right, near_column = _grid_lines(width, columns)
    sines, cosines = gradients[:, 0], gradients[:, 1]
    noise = (near_row * down) @ sines @ near_column.mT
    noise = noise + near_row @ cosines @ (near_column * right).mT
    return 2**0.5 * noise


def _grid_lines(length: int, cells: Tensor) -> tuple[Tensor, Tensor]:
    """Return each pixel's signed distance to each grid line, in cells, and its faded nearness."""
    position = torch.arange(length, device=cells.device).view(1, -1, 1) * cells.view(-1, 1, 1)
    lines = torch.arange(LINES, device=cells.device)
    distance = position / length - lines  # (N, length, LINES)
    t = (1 - distance.abs()).clamp_min(0)
    return distance, t * t * t * (t * (t * 6 - 15) + 10)


def _turn(images: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate float (N, C, H, W) bilinearly about the centre, counter-clockwise, zero outside."""
    height, width = images.shape[-2:]
    y = torch.arange(height, device=images.device).view(1, -1, 1) - (height - 1) / 2
    x = torch.arange(width, device=images.device).view(1, 1, -1) - (width - 1) / 2
    cosine, sine = cosine.view(-1, 1, 1), sine.view(-1, 1, 1)
    # grid_sample's coordinates run from -1 to 1 between the outer edges of the corner pixels.
    across = (cosine * x - sine * y) * (2 / width)
    along = (sine * x + cosine * y) * (2 / height)
    grid = torch.stack([across, along], dim=-1)
    return functional.grid_sample(images, grid, align_corners=False)
