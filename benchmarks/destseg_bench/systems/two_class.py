"""What DRAEM and DSR share: U-Nets, and the loss and score of maps of two classes.

A map has the classes "normal" and "anomalous". DSR (Zavrtanik et al., ECCV 2022) takes over
DRAEM's (Zavrtanik et al., ICCV 2021) building blocks, focal loss and image score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]
"""Makes a normalisation for a number of channels."""

SMOOTH = 1e-5
POOL = 21


def focal_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Return the mean focal loss with exponent 2 and labels clamped to [1e-5, 1 - 1e-5].

    With p the softmax's share for a pixel's own class,
    q = p (1 - 1e-5) + (1 - p) 1e-5 + 1e-5 and the loss is -(1 - q)² log q.

    Args:
        logits: float (N, 2, H, W), normal and anomalous.
        mask: float (N, 1, H, W), 1 where anomalous, else 0.
    """
    anomalous = torch.softmax(logits, dim=1)[:, 1:]
    own = torch.where(mask > 0.5, anomalous, 1 - anomalous)
    # Without the clamp, a pixel that is wrong beyond doubt would have an infinite loss.
    smoothed = own * (1 - SMOOTH) + (1 - own) * SMOOTH + SMOOTH
    return (-(1 - smoothed).square() * smoothed.log()).mean()


def pooled_score(maps: Tensor) -> Tensor:
    """Return the highest mean over 21 x 21 pixels of maps (N, H, W), as (N,).

    A square may reach over the border; what is beyond counts as zero.
    """
    means = F.avg_pool2d(maps[:, None], POOL, stride=1, padding=POOL // 2, count_include_pad=True)
    return means.amax(dim=(1, 2, 3))


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
        norm: Norm,
    ) -> None:
        """Make the network from ``channels`` to the logits of two classes.

        Args:
            channels: Channels of its input.
            widths: Channels of the encoder's levels; each level has half the size of the one
                before.
            up_widths: Channels of the decoder's levels, from the smallest to the full size; one
                level fewer.
            norm: Makes the normalisations.
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
        self.last = nn.Conv2d(source, 2, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, channels, H, W) to logits (N, 2, H, W); every pooling must divide H and W."""
        skips: list[Tensor] = []
        features = images
        for i, block in enumerate(self.down):
            features = block(self.pool(features) if i else features)
            skips.append(features)
        for up, join, skip in zip(self.up, self.join, reversed(skips[:-1]), strict=True):
            features = join(torch.cat([up(features), skip], dim=1))
        logits: Tensor = self.last(features)
        return logits
