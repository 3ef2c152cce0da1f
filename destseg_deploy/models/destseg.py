"""DeSTSeg's three networks: teacher, denoising student and segmentation network.

Source: Zhang et al., CVPR 2023, section 3. The submodules have the names of the official
checkpoints (``teacher_net``, ``student_net``, ``segmentation_net``), so that an official state dict
loads without renaming.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from destseg_deploy.models.resnet import CHANNELS, ResNet18, basic_layer, init_residual

LEVELS = CHANNELS[:3]
"""Channels of the three feature levels that teacher and student share."""


def upsample(x: Tensor, size: list[int] | torch.Size) -> Tensor:
    """Resize (N, C, H, W) bilinearly with half-pixel centres, not antialiased."""
    resized: Tensor = functional.interpolate(
        x, size=list(size), mode="bilinear", align_corners=False
    )
    return resized


def normalize(x: Tensor) -> Tensor:
    """Scale each pixel's feature vector (N, C, H, W) to unit length: x / (|x| + 1e-12)."""
    # A ReLU often gives a vector of zeros. vector_norm has the gradient 0 there; a square root of
    # the sum of squares would have NaN.
    norm: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / (norm + 1e-12)


class Teacher(nn.Module):
    """A frozen ImageNet ResNet18 up to ``layer3``. It is always in eval mode and never trained."""

    def __init__(self) -> None:
        """Make a teacher with random weights; ``models.weights.load_teacher`` loads real ones."""
        super().__init__()
        self.encoder = ResNet18(layers=3)
        init_residual(self.encoder, zero_last=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode for any ``mode``: the teacher's BatchNorm statistics are fixed."""
        return super().train(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map normalised images (N, 3, H, W) to three levels of features, strides 4, 8, 16."""
        features: list[Tensor] = self.encoder(x)
        return features


class Student(nn.Module):
    """A ResNet18 encoder and a mirrored decoder without skip connections.

    The decoder takes only the sizes of the encoder's inner features, not their values. So its
    outputs have the teacher's sizes for every image size.
    """

    def __init__(self) -> None:
        """Make a student with the reference's initial weights."""
        super().__init__()
        self.encoder = ResNet18(layers=4)
        self.decoder_layer4 = basic_layer(512, 512)
        self.decoder_layer3 = basic_layer(512, 256)
        self.decoder_layer2 = basic_layer(256, 128)
        self.decoder_layer1 = basic_layer(128, 64)
        init_residual(self, zero_last=False)
        init_residual(self.encoder, zero_last=True)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map normalised images (N, 3, H, W) to three levels shaped like the teacher's."""
        x1, x2, x3, x4 = self.encoder(x)
        x = self.decoder_layer4(x4)
        y3 = self.decoder_layer3(upsample(x, x3.shape[-2:]))
        y2 = self.decoder_layer2(upsample(y3, x2.shape[-2:]))
        y1 = self.decoder_layer1(upsample(y2, x1.shape[-2:]))
        return [y1, y2, y3]


class ConvNormRelu(nn.Module):
    """Convolution without bias, BatchNorm, ReLU; keeps the spatial size."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, dilation: int = 1) -> None:
        """Make the three layers; ``dilation`` also sets the padding."""
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, padding=padding, dilation=dilation, bias=False
        )
        self.norm = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in, H, W) to (N, out, H, W)."""
        x = self.relu(self.norm(self.conv(x)))
        return x


class GlobalMean(nn.Module):
    """The mean over height and width. It exports as one node; ``AdaptiveAvgPool2d`` does not."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, 1, 1)."""
        return x.mean(dim=(2, 3), keepdim=True)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: a pooled branch, then 3x3 convolutions of each dilation.

    There is no plain 1x1 branch. The pooled branch comes first in the concatenation; official
    checkpoints depend on this order.
    """

    def __init__(self, channels: int, dilations: tuple[int, ...] = (6, 12, 18)) -> None:
        """Make 1 + len(dilations) branches of ``channels`` and the 3x3 fusion convolution."""
        super().__init__()
        pooled = nn.Sequential(GlobalMean(), ConvNormRelu(channels, channels, 1))
        dilated = [ConvNormRelu(channels, channels, 3, d) for d in dilations]
        self.aspp_feature_extractors = nn.ModuleList([pooled, *dilated])
        self.aspp_fusion_layer = ConvNormRelu(channels * (1 + len(dilations)), channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H, W)."""
        branches = [branch(x) for branch in self.aspp_feature_extractors]
        branches[0] = upsample(branches[0], x.shape[-2:])
        x = self.aspp_fusion_layer(torch.cat(branches, dim=1))
        return x


class SegmentationNet(nn.Module):
    """Residual blocks and an ASPP head over the negative feature products of all levels.

    ``res`` and ``head`` are separate because they have different learning rates (supplement,
    section A).
    """

    def __init__(self, width: int = 256) -> None:
        """Make the network; ``head`` keeps PyTorch's default initialisation, as the reference."""
        super().__init__()
        self.res = basic_layer(sum(LEVELS), width)
        self.head = nn.Sequential(
            ASPP(width),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, 1, 1),
            nn.Sigmoid(),
        )
        init_residual(self.res, zero_last=False)

    def forward(self, x: Tensor, *, logits: bool = False) -> Tensor:
        """Map products (N, 448, H/4, W/4) to a segmentation in [0, 1] (N, 1, H/4, W/4).

        With ``logits``, the values before the last sigmoid are returned: the loss needs them. It is
        an argument and not a method, because ``torch.compile`` compiles ``forward`` alone.
        """
        # head[-1], the official module list's Sigmoid, is replaced by one in float32: under
        # autocast a half-precision sigmoid gives many pixels near 1 the same value.
        found = self.head[:-1](self.res(x)).float()
        return found if logits else torch.sigmoid(found)


class DeSTSeg(nn.Module):
    """The three networks together, as trained and as in an official checkpoint."""

    def __init__(self) -> None:
        """Make all three with random weights; seed torch first for a repeatable model."""
        super().__init__()
        self.teacher_net = Teacher()
        self.student_net = Student()
        self.segmentation_net = SegmentationNet()

    def features(
        self, student_image: Tensor, teacher_image: Tensor | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the unit-length features of teacher and student, three levels each.

        Args:
            student_image: float (N, 3, H, W), ImageNet-normalised RGB: the student's input.
            teacher_image: The teacher's input, of the same shape; ``student_image`` unless given.
        """
        if teacher_image is None:
            teacher_image = student_image
        with torch.no_grad():
            teacher = [normalize(x.float()) for x in self.teacher_net(teacher_image)]
        student = [normalize(x.float()) for x in self.student_net(student_image)]
        return teacher, student

    def segment(
        self, teacher: list[Tensor], student: list[Tensor], *, logits: bool = False
    ) -> Tensor:
        """Map unit-length features to a segmentation in [0, 1], or its logits (N, 1, H/4, W/4)."""
        size = teacher[0].shape[-2:]
        products = [upsample(-t * s, size) for t, s in zip(teacher, student, strict=True)]
        segmentation: Tensor = self.segmentation_net(torch.cat(products, dim=1), logits=logits)
        return segmentation

    def forward(
        self, student_image: Tensor, teacher_image: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the segmentation and the student-teacher map, both (N, 1, H/4, W/4).

        At inference both networks see the test image, so one pass of the teacher serves both
        outputs. The reference runs the teacher twice on the same pixels.

        Args:
            student_image: float (N, 3, H, W), ImageNet-normalised RGB.
            teacher_image: The teacher's input for the student-teacher map; ``student_image`` unless
                given.
        """
        teacher, student = self.features(student_image)
        segmentation = self.segment(teacher, student)
        if teacher_image is not None:
            teacher = [normalize(x) for x in self.teacher_net(teacher_image)]
        return segmentation, dest_map(teacher, student)


def cosine_distances(teacher: list[Tensor], student: list[Tensor]) -> list[Tensor]:
    """Return 1 - cos per pixel and level, (N, 1, h, w) in [0, 2], of unit-length features."""
    return [1 - (t * s).sum(dim=1, keepdim=True) for t, s in zip(teacher, student, strict=True)]


def dest_map(teacher: list[Tensor], student: list[Tensor]) -> Tensor:
    """Return the student-teacher map: the product of all levels' distances, at the first's size."""
    distances = cosine_distances(teacher, student)
    size = distances[0].shape[-2:]
    product = distances[0]
    for distance in distances[1:]:
        product = product * upsample(distance, size)
    return product
