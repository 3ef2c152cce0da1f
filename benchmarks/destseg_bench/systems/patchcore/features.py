"""PatchCore's patch features: two feature maps of a WideResNet50-2 to 1024 numbers per patch.

Roth et al., CVPR 2022, Section 3.1. The authors' code takes the 3x3 neighbourhood of every
position, flattens its C x 9 numbers, pools them adaptively to 1024, enlarges the coarser grid
bilinearly, and pools the two vectors in a row to 1024. All of it is linear, and 1024 is a whole
multiple of every C here, so that no pooling window crosses from channel to channel: each layer is
one 3x3 convolution with fixed weights and channels in groups, and enlarging comes after it. The
result is the same, for 0.1 % of the work.

The network is torchvision's ``wide_resnet50_2`` (Zagoruyko and Komodakis, BMVC 2016), with its key
names: ResNet50 whose 3x3 convolutions are twice as wide, built up to ``layer3``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from destseg_deploy.errors import ShapeError
from destseg_deploy.models.resnet import projection

BLOCKS = (3, 4, 6)
"""Blocks of ``layer1`` to ``layer3``."""

WIDE_CHANNELS = (256, 512, 1024)
"""Output channels of ``layer1`` to ``layer3``."""

WIDTH = 1024
"""Numbers per patch, after the first pooling and at the end."""

KERNEL = 3


class PatchEmbedding(nn.Module):
    """Two feature maps, the finer one first, to patch features; nothing in it is trained."""

    fine: Tensor
    coarse: Tensor

    def __init__(self, channels: tuple[int, int]) -> None:
        """Make the fixed weights.

        Args:
            channels: Channels of the finer and the coarser map; each divides 1024.

        Raises:
            ShapeError: If one does not.
        """
        super().__init__()
        for number in channels:
            if WIDTH % number:
                raise ShapeError(f"channels {number}: expected a divisor of {WIDTH}.")
        self.register_buffer("fine", pooling_weights(channels[0]))
        self.register_buffer("coarse", pooling_weights(channels[1]))

    def forward(self, features: list[Tensor]) -> Tensor:
        """Map (N, C0, H, W) and (N, C1, h, w) to (N, H * W, 1024), rows of the grid in order."""
        fine = _pool(features[0], self.fine)
        coarse = _pool(features[1], self.coarse)
        coarse = F.interpolate(coarse, fine.shape[2:], mode="bilinear", align_corners=False)
        return torch.cat([fine, coarse], dim=1).flatten(2).transpose(1, 2).contiguous()


def _pool(features: Tensor, weights: Tensor) -> Tensor:
    """Map (N, C, H, W) to (N, 512, H, W), with zeros beyond the border."""
    groups = features.shape[1] // weights.shape[1]
    return F.conv2d(features, weights, padding=KERNEL // 2, groups=groups)


def pooling_weights(channels: int) -> Tensor:
    """Return a layer's two successive poolings as the weights of a convolution in groups.

    The second pooling maps two layers of 1024, 2048 numbers, to 1024: it averages neighbours, and
    each layer contributes 512 numbers.

    Args:
        channels: C, a divisor of 1024.

    Returns:
        float32 (512, C / groups, 3, 3), where groups is C, or 512 for C = 1024.
    """
    inputs = max(1, channels * 2 // WIDTH)  # channels that one output reads
    unit = torch.eye(inputs * KERNEL**2)[:, None]
    outputs = WIDTH * inputs // channels
    pooled = F.avg_pool1d(F.adaptive_avg_pool1d(unit, outputs), 2)  # (inputs * 9, 1, outputs / 2)
    group = pooled.squeeze(1).T.reshape(-1, inputs, KERNEL, KERNEL)
    return group.repeat(channels // inputs, 1, 1, 1)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut; the 3x3 one has the stride."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        """Make a block whose 3x3 convolution has half as many channels as its output."""
        super().__init__()
        width = out_channels // 2
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in, H, W) to (N, out, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.relu(self.bn3(self.conv3(x)) + shortcut)
        return x


class WideResNet50(nn.Module):
    """The stem and ``layer1`` to ``layer3``: 24.9 M parameters."""

    def __init__(self) -> None:
        """Make the network with random weights."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        one, two, three = WIDE_CHANNELS
        self.layer1 = _layer(64, one, BLOCKS[0], 1)
        self.layer2 = _layer(one, two, BLOCKS[1], 2)
        self.layer3 = _layer(two, three, BLOCKS[2], 2)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map images (N, 3, H, W) to [(N, 256, H/4, W/4), (N, 512, ...), (N, 1024, ...)]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        first = self.layer1(x)
        second = self.layer2(first)
        return [first, second, self.layer3(second)]


def _layer(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    """Return ``blocks`` blocks; the first changes channels and size."""
    later = [Bottleneck(out_channels, out_channels) for _ in range(blocks - 1)]
    return nn.Sequential(Bottleneck(in_channels, out_channels, stride), *later)
