"""Mean and standard deviation of channels, gathered image by image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEAST = 1e-12
"""Least standard deviation, so that a channel without any can be divided by it."""


class Moments(nn.Module):
    """Mean 0 and deviation 1 until something was added; all float64.

    Images are merged by their own means and squared deviations (Chan et al., 1979), which loses
    no digits however far the mean is from 0.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, channels: int) -> None:
        """Make empty moments."""
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(channels, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(channels, dtype=torch.float64))

    @torch.no_grad()
    def add(self, values: Tensor) -> None:
        """Add values, (N, channels, H, W)."""
        rows = values.transpose(0, 1).flatten(1).double()
        count, mean = rows.shape[1], rows.mean(dim=1)
        total = self.count + count
        away = mean - self.mean
        self.squares += (rows - mean[:, None]).square().sum(dim=1)
        self.squares += away.square() * self.count * count / total
        self.mean += away * count / total
        self.count.copy_(total)

    @property
    def deviation(self) -> Tensor:
        """Standard deviation of the values added, (channels,)."""
        if self.count == 0:
            return torch.ones_like(self.mean)
        return (self.squares / self.count).sqrt().clamp(min=LEAST)

    def standardize(self, values: Tensor) -> Tensor:
        """Map values (N, channels, H, W) to mean 0 and deviation 1, float32."""
        mean, deviation = self.mean.float(), self.deviation.float()
        return (values - mean[:, None, None]) / deviation[:, None, None]
