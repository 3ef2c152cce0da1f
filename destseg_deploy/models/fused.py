"""The half network as a GPU runs it fastest: fewer kernels, and no convolution in float32.

A GPU in half precision spends much of its time on what lies between two convolutions. So each
convolution adds its bias and its shortcut and takes the ReLU in its own kernel, what lies between
them is a kernel each (see ``Layers``), and the stems compute float32's answer on half precision's
matrix units. What is float32 in ``models.half`` is computed in float32 here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from destseg_deploy.models.destseg import DeSTSeg, normalize, upsample

Work = Callable[[], Tensor | list[Tensor]]

STEM_CHANNELS = 16
"""Input channels of a stem that is split in two halves: 3 times 3 colours and 2 for the bias, up to
a multiple of the 8 that matrix units read."""


class Layers(Protocol):
    """What lies between the convolutions; tensors are half with channels last unless said."""

    def split(self, image: Tensor) -> Tensor:
        """Write float32 as a sum of two halves, in the channels that a split stem reads.

        Args:
            image: Normalised pixels, float32 (N, 3, H, W).

        Returns:
            [high, low, high, 1, 1, 0, ...], (N, 16, H, W).
        """

    def pool(self, x: Tensor) -> Tensor:
        """Take the largest of 3 x 3 pixels, with a step of 2 and a border of 1."""

    def upsample(self, x: Tensor, size: torch.Size) -> Tensor:
        """Resize bilinearly; see ``destseg.upsample``."""

    def products(self, teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
        """Return the segmentation network's input, (N, 448, H/4, W/4).

        Args:
            teacher: Features of three levels, not normalised.
            student: Likewise.
        """

    def concatenate(self, pooled: Tensor, branches: Sequence[Tensor]) -> Tensor:
        """Put ASPP's pooled branch (N, C, 1, 1) and three others (N, C, H, W) side by side."""

    def probability(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return the last convolution's sigmoid, float32 (N, 1, H, W).

        Args:
            x: Half (N, C, H, W).
            weight: Float32 (1, C, 1, 1).
            bias: Float32 (1,).
        """

    def together(self, works: Sequence[Work]) -> list[Any]:
        """Do independent works, at the same time if the device can; return what they give."""


class PlainLayers:
    """See ``Layers``: PyTorch's own functions, on any device."""

    def __init__(self, kind: torch.dtype) -> None:
        """Take the half type."""
        self.kind = kind

    def split(self, image: Tensor) -> Tensor:
        """See ``Layers.split``."""
        high = image.to(self.kind)
        ones = torch.ones_like(high[:, :2])
        rest = torch.zeros_like(high[:, :1]).expand(-1, STEM_CHANNELS - 11, -1, -1)
        made = torch.cat([high, (image - high).to(self.kind), high, ones, rest], dim=1)
        return made.contiguous(memory_format=torch.channels_last)

    def pool(self, x: Tensor) -> Tensor:
        """See ``Layers.pool``."""
        return functional.max_pool2d(x, 3, 2, 1)

    def upsample(self, x: Tensor, size: torch.Size) -> Tensor:
        """See ``Layers.upsample``."""
        return upsample(x, size)

    def products(self, teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
        """See ``Layers.products``."""
        size, levels = teacher[0].shape[-2:], zip(teacher, student, strict=True)
        found = [upsample(-normalize(t.float()) * normalize(s.float()), size) for t, s in levels]
        return torch.cat(found, dim=1).to(self.kind)

    def concatenate(self, pooled: Tensor, branches: Sequence[Tensor]) -> Tensor:
        """See ``Layers.concatenate``."""
        return torch.cat([pooled.expand_as(branches[0]), *branches], dim=1)

    def probability(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """See ``Layers.probability``."""
        return torch.sigmoid(functional.conv2d(x.float(), weight, bias))

    def together(self, works: Sequence[Work]) -> list[Any]:
        """See ``Layers.together``."""
        return [work() for work in works]

    def close(self) -> None:
        """Nothing is held."""


class FusedDeSTSeg(nn.Module):
    """The networks of a ``DeSTSeg`` in half precision, for ``InferenceGraph``."""

    def __init__(self, half: DeSTSeg, layers: Layers) -> None:
        """Take the networks that ``half.to_half`` has made; they cannot be used afterwards."""
        super().__init__()
        self.layers = layers
        student, segmentation = half.student_net, half.segmentation_net
        self.teacher = _ResNet(half.teacher_net.encoder, layers)
        self.student = _ResNet(student.encoder, layers)
        decoder = (student.decoder_layer4, student.decoder_layer3, student.decoder_layer2)
        self.decoder = nn.ModuleList([_blocks(part) for part in (*decoder, student.decoder_layer1)])
        self.res = _blocks(segmentation.res)
        head: Any = segmentation.head
        pooled, *dilated = head[0].aspp_feature_extractors
        self.pooled = ConvRelu(pooled[1].conv)
        self.dilated = nn.ModuleList([ConvRelu(branch.conv) for branch in dilated])
        self.fusion = ConvRelu(head[0].aspp_fusion_layer.conv)
        self.last = ConvRelu(head[1])
        self.logit = head[4][1]

    def features(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the features of teacher and student, three levels each, not normalised.

        Args:
            image: Normalised pixels, float32 (N, 3, H, W).
        """
        split = self.layers.split(image)
        student, teacher = self.layers.together(
            [lambda: self._decode(self.student(split)), lambda: self.teacher(split)]
        )
        return teacher, student

    def segment(self, teacher: list[Tensor], student: list[Tensor]) -> Tensor:
        """Return the segmentation in [0, 1], float32 (N, 1, H/4, W/4)."""
        x = self.res(self.layers.products(teacher, student))
        works = [lambda: self._pooled(x), *(_bind(branch, x) for branch in self.dilated)]
        pooled, *dilated = self.layers.together(works)
        x = self.last(self.fusion(self.layers.concatenate(pooled, dilated)))
        return self.layers.probability(x, self.logit.weight, self.logit.bias)

    def _decode(self, encoded: list[Tensor]) -> list[Tensor]:
        """Return the student's features; see ``destseg.Student``."""
        x = self.decoder[0](encoded[3])
        found: list[Tensor] = []
        for block, beside in zip(self.decoder[1:], reversed(encoded[:3]), strict=True):
            x = block(self.layers.upsample(x, beside.shape[-2:]))
            found.insert(0, x)
        return found

    def _pooled(self, x: Tensor) -> Tensor:
        # The mean adds a whole plane, in float32.
        mean = x.mean(dim=(2, 3), keepdim=True, dtype=torch.float32)
        found: Tensor = self.pooled(mean.to(x.dtype))
        return found


class _ResNet(nn.Module):
    """An encoder: split pixels to features."""

    def __init__(self, encoder: Any, layers: Layers) -> None:
        """Take the stem and the layers of a ``ResNet18``."""
        super().__init__()
        self.layers = layers
        kind = encoder.layer1[0].conv1.weight.dtype
        self.stem = ConvRelu(split_stem(encoder.conv1, kind))
        parts = [encoder.get_submodule(f"layer{i + 1}") for i in range(encoder.layers)]
        self.parts = nn.ModuleList([_blocks(part) for part in parts])

    def forward(self, split: Tensor) -> list[Tensor]:
        """Map (N, 16, H, W) to the features of each layer."""
        x, features = self.layers.pool(self.stem(split)), []
        for part in self.parts:
            x = part(x)
            features.append(x)
        return features


class ConvRelu(nn.Module):
    """relu(conv(x) + shortcut), in one kernel of cuDNN on a GPU."""

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

    def __init__(self, block: Any) -> None:
        """Take a ``BasicBlock`` whose BatchNorms are folded."""
        super().__init__()
        self.conv1 = ConvRelu(block.conv1)
        self.projection: nn.Conv2d | None = None
        bias = None
        if block.downsample is not None:
            conv = block.downsample[0]
            bias, conv.bias = conv.bias, None  # it is added by the second convolution
            self.projection = conv
        self.conv2 = ConvRelu(block.conv2, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in, H, W) to (N, out, h, w)."""
        shortcut = x if self.projection is None else self.projection(x)
        found: Tensor = self.conv2(self.conv1(x), shortcut)
        return found


def split_stem(conv: Any, kind: torch.dtype) -> nn.Conv2d:
    """Return a half convolution that gives a float32 one's answers from what ``split`` makes.

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


def _blocks(layer: Any) -> nn.Sequential:
    """Return a layer's blocks without the casts between types."""
    return nn.Sequential(*(Block(one) for one in layer if hasattr(one, "conv1")))


def _bind(module: nn.Module, x: Tensor) -> Work:
    return lambda: module(x)
