"""Structural similarity of images (Wang et al., 2004), as DRAEM's loss takes it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 11
SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2
"""Against division by zero, for values that span 1."""


def structural_similarity(one: Tensor, two: Tensor) -> Tensor:
    """Return the similarity around each pixel, 1 where the images are alike.

    A pixel's neighbours are weighted by a Gaussian over 11 x 11 pixels; what is beyond the border
    counts as zero.

    Args:
        one: float (N, C, H, W), values spanning 1.
        two: The same shape.

    Returns:
        float (N, C, H, W).
    """
    parts = torch.stack([one, two, one * one, two * two, one * two])
    mean_1, mean_2, square_1, square_2, product = _blurred(parts.flatten(0, 2)).view_as(parts)
    variances = square_1 - mean_1 * mean_1 + square_2 - mean_2 * mean_2
    covariance = product - mean_1 * mean_2
    luminance = (2 * mean_1 * mean_2 + C1) / (mean_1 * mean_1 + mean_2 * mean_2 + C1)
    similar: Tensor = luminance * (2 * covariance + C2) / (variances + C2)
    return similar


def _blurred(planes: Tensor) -> Tensor:
    """Blur planes (N, H, W), first along the height, then along the width."""
    away = torch.arange(WINDOW, device=planes.device, dtype=planes.dtype) - WINDOW // 2
    weights = torch.softmax(-away * away / (2 * SIGMA**2), dim=0)  # exp(...), with a sum of 1
    blurred = F.conv2d(planes[:, None], weights.view(1, 1, -1, 1), padding=(WINDOW // 2, 0))
    blurred = F.conv2d(blurred, weights.view(1, 1, 1, -1), padding=(0, WINDOW // 2))
    return blurred.squeeze(1)
