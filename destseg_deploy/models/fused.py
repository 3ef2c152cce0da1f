"""The half network as cuDNN runs it fastest: fewer kernels, and no convolution in float32.

A GPU in half precision spends much of its time on what lies between two convolutions. So each
convolution adds its bias and its shortcut and takes the ReLU in its own kernel, and the stems
compute float32's answer on half precision's matrix units. On a CPU the same modules compute the
same by PyTorch's ordinary functions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from destseg_deploy.models.destseg import ConvNormRelu, DeSTSeg
from destseg_deploy.models.resnet import BasicBlock

STEM_CHANNELS = 16
"""Input channels of a stem that is split in two halves: 3 times 3 colours and 2 for the bias, up to
a multiple of the 8 that matrix units read."""


def fuse(half: DeSTSeg) -> DeSTSeg:
    """Replace the modules of a network that ``half.to_half`` has made; in place, and returned."""
    stems: list[Any] = [half.teacher_net.encoder, half.student_net.encoder]
    for stem in stems:
        _fuse_stem(stem)
    head: Any = half.segmentation_net.head
    head[1], head[3] = ConvRelu(head[1]), nn.Identity()
    for module in list(half.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, BasicBlock):
                setattr(module, name, Block(child))
            elif isinstance(child, ConvNormRelu):
                setattr(module, name, ConvRelu(child.conv))
    return half


class ConvRelu(nn.Module):
    """relu(conv(x) + shortcut), in one kernel on a GPU."""

    def __init__(self, conv: nn.Conv2d, more_bias: Tensor | None = None) -> None:
        """Take a convolution; ``more_bias`` (C,) is that of the shortcut."""
        super().__init__()
        self.weight = conv.weight
        bias = conv.bias
        if bias is not None and more_bias is not None:
            bias = nn.Parameter(bias + more_bias, requires_grad=False)
        self.bias = bias
        self.shape: Any = conv.stride, conv.padding, conv.dilation

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """Map (N, in, H, W) to (N, out, h, w); the shortcut has the output's shape."""
        if x.is_cuda:
            stride, padding, dilation = self.shape
            where = (self.bias, stride, padding, dilation, 1)
            if shortcut is None:
                return torch.cudnn_convolution_relu(x, self.weight, *where)
            return torch.cudnn_convolution_add_relu(x, self.weight, shortcut, 1.0, *where)
        found = functional.conv2d(x, self.weight, self.bias, *self.shape)
        return torch.relu(found if shortcut is None else found + shortcut)


class Block(nn.Module):
    """A residual block of two kernels, or three with a projection."""

    def __init__(self, block: BasicBlock) -> None:
        """Take a block whose BatchNorms are folded."""
        super().__init__()
        self.conv1 = ConvRelu(block.conv1)
        self.projection: nn.Conv2d | None = None
        bias = None
        if block.downsample is not None:
            conv: Any = block.downsample[0]
            bias, conv.bias = conv.bias, None  # it is added by the second convolution
            self.projection = conv
        self.conv2 = ConvRelu(block.conv2, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in, H, W) to (N, out, h, w)."""
        shortcut = x if self.projection is None else self.projection(x)
        found: Tensor = self.conv2(self.conv1(x), shortcut)
        return found


class Split(nn.Module):
    """Writes float32 as a sum of two halves, in the channels that a split stem reads."""

    def __init__(self, kind: torch.dtype) -> None:
        """Split into halves of a type."""
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, H, W) to [high, low, high, 1, 1, 0, ...] (N, 16, H, W)."""
        count, colours, height, width = x.shape
        made = x.new_zeros((count, height, width, STEM_CHANNELS), dtype=self.kind).permute(
            0, 3, 1, 2
        )  # channels last
        high = x.to(self.kind)
        made[:, :colours] = high
        made[:, colours : 2 * colours] = x - high
        made[:, 2 * colours : 3 * colours] = high
        made[:, 3 * colours : 3 * colours + 2] = 1
        return made


def split_stem(conv: Any, kind: torch.dtype) -> nn.Conv2d:
    """Return a half convolution that gives a float32 one's answers from what ``Split`` makes.

    With weights w = W + w' and pixels x = X + x' of a high and a low half, w x is W X + W x' + w' X
    but for w' x', which is as small as float32's own rounding. The matrix units add in float32, so
    only the answer is rounded. The bias is the weight of a channel of ones, where the kernel's
    centre lies.
    """
    weight, bias = conv.weight.detach(), conv.bias.detach()
    shape = conv.kernel_size, conv.stride, conv.padding
    made = nn.Conv2d(STEM_CHANNELS, len(weight), *shape, bias=False)
    wide = torch.zeros(len(weight), STEM_CHANNELS, *conv.kernel_size)
    high = weight.to(kind).float()
    wide[:, 0:3], wide[:, 3:6], wide[:, 6:9] = high, high, weight - high
    top, left = (length // 2 for length in conv.kernel_size)
    wide[:, 9, top, left] = bias.to(kind).float()
    wide[:, 10, top, left] = bias - bias.to(kind).float()
    made.weight = nn.Parameter(wide.to(kind), requires_grad=False)
    return made


def _fuse_stem(stem: Any) -> None:
    """Split a ResNet's first convolution, and pool halves in place of floats: that keeps order."""
    pool = stem.maxpool
    kind = pool[1].kind
    stem.conv1 = nn.Sequential(Split(kind), ConvRelu(split_stem(stem.conv1, kind)))
    stem.relu = nn.Identity()
    stem.maxpool = pool[0]
