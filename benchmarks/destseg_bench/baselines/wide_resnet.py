"""WideResNet50-2 up to ``layer3``, with the key names torchvision uses, and its weights.

Zagoruyko and Komodakis, BMVC 2016, as laid out in torchvision's ``wide_resnet50_2``: ResNet50 whose
3x3 convolutions are twice as wide. Only what PatchCore reads is built.
"""

from __future__ import annotations

from torch import Tensor, nn

from destseg_bench.baselines.backbones import load_pretrained
from destseg_bench.baselines.system import Task
from destseg_deploy.models.resnet import projection

FILE = "wide_resnet50_2-95faca4d.pth"
"""torchvision's ``Wide_ResNet50_2_Weights.IMAGENET1K_V1``, the one that the paper's code loads."""

BLOCKS = (3, 4, 6)
"""Blocks of ``layer1`` to ``layer3``."""

CHANNELS = (256, 512, 1024)
"""Output channels of them."""


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut; the 3x3 one shrinks."""

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
        return self.relu(self.bn3(self.conv3(x)) + shortcut)  # type: ignore[no-any-return]  # nn.Module calls are untyped


class WideResNet50(nn.Module):
    """The stem and ``layer1`` to ``layer3``: 24.9 M parameters."""

    def __init__(self) -> None:
        """Make the network with random weights."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = _layer(64, CHANNELS[0], BLOCKS[0], 1)
        self.layer2 = _layer(CHANNELS[0], CHANNELS[1], BLOCKS[1], 2)
        self.layer3 = _layer(CHANNELS[1], CHANNELS[2], BLOCKS[2], 2)

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


def load_wide_resnet(network: nn.Module, task: Task) -> str:
    """Fill a WideResNet50-2, 132 MB, by ``backbones.load_pretrained``."""
    return load_pretrained(network, task, "wide_resnet50_2", FILE)
