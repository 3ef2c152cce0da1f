"""DRAEM's two networks, 97.4 M parameters (Zavrtanik et al., ICCV 2021, Sections 3.1 and 3.2)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from destseg_bench.systems.two_class import UNet, convolutions, enlargement

RECONSTRUCTIVE = (128, 256, 512, 1024, 1024)
DISCRIMINATIVE = (64, 128, 256, 512, 512, 512)
NARROWED = (512, 256, 128, 64, 64)
"""Widths of the discriminative decoder's levels, from the smallest to the full size."""


def reconstructive() -> nn.Sequential:
    """Return the autoencoder from an image to the same without anomalies, with DRAEM's init.

    It has no skips and no activation after the last convolution. The second convolution of each
    decoder level but the last reduces the channels to those of the next level.
    """
    norm, widths = nn.BatchNorm2d, RECONSTRUCTIVE
    layers: list[nn.Module] = [convolutions((3, widths[0], widths[0]), norm)]
    for source, width in pairwise(widths):
        layers += [nn.MaxPool2d(2), convolutions((source, width, width), norm)]
    source = widths[-1]
    for width, narrowed in zip(widths[-2::-1], (*widths[-3::-1], widths[0]), strict=True):
        layers += [enlargement(source, width, norm), convolutions((width, width, narrowed), norm)]
        source = narrowed
    layers.append(nn.Conv2d(source, 3, 3, padding=1))
    network = nn.Sequential(*layers)
    initialize(network)
    return network


def discriminative() -> UNet:
    """Return the U-Net from reconstruction and image, 6 channels, to 2 logits, with its init."""
    network = UNet(6, DISCRIMINATIVE, NARROWED, nn.BatchNorm2d)
    initialize(network)
    return network


@torch.no_grad()
def initialize(network: nn.Module) -> None:
    """Draw the kernels from N(0, 0.02) and the normalisations' scales from N(1, 0.02)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.normal_(0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            module.weight.normal_(1.0, 0.02)
