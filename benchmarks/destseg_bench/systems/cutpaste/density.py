"""A Gaussian fitted to embeddings with a shrunk covariance, and distances from it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from destseg_deploy.errors import ShapeError

FLOOR = 1e-9
"""Added to every variance, so that the covariance of equal embeddings can be inverted."""


class GaussianDensity(nn.Module):
    """Mean and inverse covariance; the unit Gaussian until fitted."""

    mean: Tensor
    precision: Tensor

    def __init__(self, width: int) -> None:
        """Make the unit Gaussian of ``width`` numbers."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("precision", torch.eye(width))

    @torch.no_grad()
    def fit(self, embeddings: Tensor) -> None:
        """Fit to embeddings (n, width).

        Raises:
            ShapeError: If there are fewer than two.
        """
        samples = embeddings.double()  # inverting 512 x 512 numbers loses digits in float32
        inverse = torch.linalg.inv(ledoit_wolf(samples))
        self.mean.copy_(samples.mean(dim=0))
        self.precision.copy_(inverse)

    def distance(self, embeddings: Tensor) -> Tensor:
        """Return Mahalanobis distances (N,) of embeddings (N, width)."""
        away = embeddings - self.mean
        return ((away @ self.precision) * away).sum(dim=1).clamp(min=0).sqrt()


def ledoit_wolf(samples: Tensor) -> Tensor:
    """Return the covariance of samples (n, width), shrunk towards a multiple of the identity.

    The share is Ledoit and Wolf's estimate of the best one (Journal of Multivariate Analysis,
    2004).

    Returns:
        float64 (width, width).

    Raises:
        ShapeError: If there are fewer than two samples.
    """
    count, width = samples.shape
    if count < 2:
        raise ShapeError(f"samples {count}: expected at least 2 to estimate a covariance.")
    away = samples.double() - samples.double().mean(dim=0)
    covariance = away.T @ away / count
    variance = covariance.trace() / width
    identity = torch.eye(width, dtype=torch.float64, device=samples.device)
    # Of equal samples the spread is 0: without its least value the share would be 0 / 0.
    spread = (covariance - variance * identity).square().sum()
    lengths = away.square().sum(dim=1)
    noise = (lengths.square().mean() - covariance.square().sum()) / count
    share = (noise / spread.clamp(min=1e-300)).clamp(0, 1)
    return (1 - share) * covariance + (share * variance + FLOOR) * identity
