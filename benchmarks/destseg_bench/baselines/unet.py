"""Blocks of the encoders and decoders of DRAEM and DSR; methods.md 3.3 and 3.5."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]


def convolutions(widths: Sequence[int], norm: Norm) -> nn.Sequential:
    """Return 3x3 convolutions with bias from each width to the next, each normalised, then ReLU."""
    layers: list[nn.Module] = []
    for source, target in pairwise(widths):
        layers += [nn.Conv2d(source, target, 3, padding=1), norm(target), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def enlargement(source: int, target: int, norm: Norm) -> nn.Sequential:
    """Return a bilinear enlargement to twice the size, corners aligned, and one convolution."""
    up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
    return nn.Sequential(up, *convolutions((source, target), norm))


class UNet(nn.Module):
    """An encoder and a decoder that sees the encoder's features of each size."""

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        up_widths: Sequence[int],
        outputs: int,
        norm: Norm,
    ) -> None:
        """Make the network.

        Args:
            channels: Of its input.
            widths: Of the encoder's levels; each level has half the size of the one before.
            up_widths: Of the decoder's levels, from the smallest to the full size, one fewer.
            outputs: Channels of its output.
            norm: Makes a normalisation for a width.
        """
        super().__init__()
        self.down = nn.ModuleList(
            convolutions((source, width, width), norm)
            for source, width in pairwise((channels, *widths))
        )
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList()
        self.join = nn.ModuleList()
        source = widths[-1]
        for width, skip in zip(up_widths, reversed(widths[:-1]), strict=True):
            self.up.append(enlargement(source, width, norm))
            self.join.append(convolutions((width + skip, width, width), norm))
            source = width
        self.last = nn.Conv2d(source, outputs, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, channels, H, W) to (N, outputs, H, W); H and W are divided evenly by the pools.

        Nothing is applied to the last convolution.
        """
        skips: list[Tensor] = []
        features = images
        for i, block in enumerate(self.down):
            features = block(self.pool(features) if i else features)
            skips.append(features)
        for up, join, skip in zip(self.up, self.join, reversed(skips[:-1]), strict=True):
            features = join(torch.cat([up(features), skip], dim=1))
        answer: Tensor = self.last(features)
        return answer
