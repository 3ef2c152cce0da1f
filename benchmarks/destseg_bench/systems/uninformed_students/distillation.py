"""Teaches patch networks what a pretrained ResNet18 says of patches, and standardises by moments.

Bergmann et al., CVPR 2020, Section 3.1 (distillation, compactness) and Sections 3.2 and 3.3 (the
means and deviations by which descriptors and scores are standardised).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from destseg_bench.systems.uninformed_students.patches import PatchNetwork
from destseg_deploy.models.resnet import ResNet18

ZOOM = (4.0, 16.0)
"""Side of an image by the side of a patch cut from it."""

SEEN = 64
"""Height and width to which the ResNet18 gets a patch enlarged."""


def random_windows(images: Tensor, random: torch.Generator) -> Tensor:
    """Draw a square window of each image, 1/4 to 1/16 of its side, as sampling points.

    Args:
        images: (N, 3, H, W).
        random: On the host; every choice is drawn from it.

    Returns:
        float32 (N, 2, 3) matrices for ``cut``.
    """
    count = len(images)
    zoom = torch.empty(count).uniform_(*ZOOM, generator=random)
    middle = torch.rand(count, 2, generator=random) * 2 - 1
    matrices = torch.zeros(count, 2, 3)
    matrices[:, 0, 0] = matrices[:, 1, 1] = 1 / zoom
    matrices[:, :, 2] = middle * (1 - 1 / zoom)[:, None]
    return matrices.to(images.device)


def cut(images: Tensor, windows: Tensor, size: int) -> Tensor:
    """Cut windows out, bilinearly resized to (N, 3, size, size)."""
    points = F.affine_grid(windows, [len(images), images.shape[1], size, size], align_corners=False)
    cut_out: Tensor = F.grid_sample(images, points, padding_mode="border", align_corners=False)
    return cut_out


def distillation_loss(
    network: PatchNetwork, decoder: nn.Module, source: ResNet18, patches: Tensor
) -> Tensor:
    """Return the squared error of the decoded descriptors, and their compactness.

    Args:
        network: Describes the patches.
        decoder: Maps a descriptor to as many numbers as the source's pooled features have.
        source: Sees the patches enlarged.
        patches: (N, 3, p, p), ImageNet-normalised, at least two.
    """
    with torch.no_grad():
        enlarged = F.interpolate(patches, (SEEN, SEEN), mode="bilinear", align_corners=False)
        wanted = source(enlarged)[-1].mean(dim=(2, 3))
    descriptors: Tensor = network(patches)
    error: Tensor = (decoder(descriptors) - wanted).square().sum(dim=1).mean()
    return error + compactness(descriptors)


def compactness(descriptors: Tensor) -> Tensor:
    """Return the sum of squared correlations between different numbers of descriptors (N, C)."""
    away = descriptors - descriptors.mean(dim=0)
    unit = F.normalize(away, dim=0)
    correlations = unit.T @ unit
    others = correlations - torch.diag(correlations.diagonal())
    return others.square().sum()


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
        rows = values.transpose(0, 1).flatten(1).double()  # (channels, N * H * W)
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
