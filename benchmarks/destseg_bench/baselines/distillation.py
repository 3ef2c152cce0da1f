"""Teaches patch networks what a pretrained ResNet18 says of patches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from destseg_bench.baselines.backbones import RANDOM, load_resnet18
from destseg_bench.baselines.dense_descriptors import PatchNetwork
from destseg_bench.baselines.system import Task
from destseg_deploy.errors import WeightsError
from destseg_deploy.models.resnet import CHANNELS, ResNet18

ZOOM = (4.0, 16.0)
"""Side of an image by the side of a patch cut from it."""

SEEN = 64
"""Height and width to which the ResNet18 gets a patch enlarged."""


def load_source(task: Task) -> tuple[ResNet18, str]:
    """Return the ResNet18 to learn from, as many layers of it as there are weights, and its origin.

    Raises:
        WeightsError: If weights cannot be had, or are of another network.
    """
    try:
        network, layers = ResNet18(), ""
        origin = load_resnet18(network, task)
    except WeightsError:
        network, layers = ResNet18(layers=3), " up to layer3"
        origin = load_resnet18(network, task)  # raises again, unless layer4 alone is missing
    network.to(task.device).eval().requires_grad_(False)
    return network, origin if origin == RANDOM else origin + layers


def pooled_width(source: ResNet18) -> int:
    """Return how many numbers the source's last feature map has when pooled."""
    return CHANNELS[source.layers - 1]


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
