"""ResNet18 without its classifier, with the state dict names of torchvision and timm.

It has the stem, ``layer1`` to ``layer4``, and the residual block of which the student's decoder and
the segmentation network consist. Source: He et al., CVPR 2016, in the form of torchvision's
``resnet18``.
"""

from __future__ import annotations

from torch import Tensor, nn

CHANNELS = (64, 128, 256, 512)
"""Output channels of ``layer1`` to ``layer4``."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut: relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x)).

    The shortcut is a 1x1 convolution with BatchNorm where the shape changes, else the identity.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        """Make a block from ``in_channels`` to ``out_channels`` that shrinks by ``stride``."""
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = projection(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in, H, W) to (N, out, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)) + shortcut)
        return x


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """Return a shortcut's 1x1 convolution with BatchNorm; None where the shape stays."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
    )


def basic_layer(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """Return two residual blocks; the first changes channels and size."""
    return nn.Sequential(
        BasicBlock(in_channels, out_channels, stride), BasicBlock(out_channels, out_channels)
    )


class ResNet18(nn.Module):
    """The convolutional part of ResNet18, up to ``layer<layers>``."""

    def __init__(self, layers: int = 4) -> None:
        """Make the stem and the first ``layers`` (1 to 4) of the four layers."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        widths = (64, *CHANNELS)
        self.layers = layers
        for i in range(1, layers + 1):
            self.add_module(f"layer{i}", basic_layer(widths[i - 1], widths[i], 1 if i == 1 else 2))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map images (N, 3, H, W) to features [(N, 64, H/4, W/4), (N, 128, H/8, W/8), ...]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        features = []
        for i in range(1, self.layers + 1):
            x = self.get_submodule(f"layer{i}")(x)
            features.append(x)
        return features


def init_residual(module: nn.Module, *, zero_last: bool) -> None:
    """Initialise convolutions and BatchNorms as the reference does.

    Kaiming-normal by fan-out for convolutions, gamma 1 and beta 0 for BatchNorms.

    Args:
        module: Initialised in place, all the way down.
        zero_last: Whether gamma of each block's second BatchNorm starts at 0, so that a block
            starts as its shortcut. True for the student's encoder, False for its decoder and for
            the segmentation network, as in the reference.
    """
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            nn.init.kaiming_normal_(child.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(child, nn.BatchNorm2d):
            nn.init.ones_(child.weight)
            nn.init.zeros_(child.bias)
    if zero_last:
        for child in module.modules():
            if isinstance(child, BasicBlock):
                nn.init.zeros_(child.bn2.weight)
