"""STPM: a student learns the features of a pretrained ResNet18 on normal images.

Wang et al., Student-Teacher Feature Pyramid Matching for Anomaly Detection, BMVC 2021, Section 3;
where the authors' code and the paper differ, as the code does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from destseg_bench.systems.frames import TrainingFrames
from destseg_bench.systems.system import Facts, Stage, System, Task
from destseg_bench.systems.training import Descent
from destseg_bench.systems.weights import load_pretrained
from destseg_deploy.models.resnet import ResNet18, init_residual

BATCH = 32
EPOCHS = 100
QUICK_STEPS = 60
GRID = (64, 64)


class Stpm(System):
    """Two ResNet18 up to layer3: a frozen teacher and a student."""

    facts = Facts(
        "STPM",
        "Wang et al., BMVC 2021, Section 3",
        (
            "The last weights are used: no image is held out to choose an epoch.",
            "The unused layer4 is neither built nor run.",
        ),
        parameters=5.57,
        gmacs=3.66,
    )

    def __init__(self, task: Task) -> None:
        """Make the networks; errors are ``load_pretrained``'s."""
        super().__init__(task)
        self.student, self.teacher = ResNet18(layers=3), ResNet18(layers=3)
        for network in (self.student, self.teacher):  # as torchvision's, which the code takes
            init_residual(network, zero_last=False)
        self.student = self.student.to(task.device).eval()
        self.weights = load_pretrained(self.teacher, task, "resnet18")
        self.teacher = self.teacher.to(task.device).eval().requires_grad_(False)

    def modules(self) -> tuple[torch.nn.Module, ...]:
        """Return teacher and student."""
        return self.teacher, self.student

    def stages(self) -> list[Stage]:
        """Return the one stage: 100 epochs of the normal images in batches of 32."""
        frames = TrainingFrames(self.task, self.prepare, BATCH)
        optimizer = torch.optim.SGD(
            self.student.parameters(), lr=0.4, momentum=0.9, weight_decay=1e-4
        )
        steps = self.task.choose(paper=EPOCHS * frames.batches_per_epoch, quick=QUICK_STEPS)
        student = (self.student,)
        return [
            Descent("student", steps, BATCH, student, optimizer, frames.batch, self.loss).stage()
        ]

    def loss(self, images: Tensor) -> Tensor:
        """Return the sum over levels of the mean squared distance of unit features."""
        with torch.no_grad():
            wanted = self.teacher(images)
        pairs = zip(wanted, self.student(images), strict=True)
        return torch.stack([squared_distance(t, s).mean() for t, s in pairs]).sum()

    def network(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the teacher's three feature maps, then the student's."""
        return (*self.teacher(images), *self.student(images))

    def answer(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Multiply the squared distances of the levels at 64 x 64; the score is the map's maximum.

        The map is enlarged bilinearly to 256 x 256.
        """
        product = torch.ones((), device=outputs[0].device)
        for teacher, student in zip(outputs[:3], outputs[3:], strict=True):
            level = squared_distance(teacher, student)
            product = product * F.interpolate(level, GRID, mode="bilinear", align_corners=False)
        maps = F.interpolate(product, self.size, mode="bilinear", align_corners=False).squeeze(1)
        return maps, maps.amax(dim=(1, 2))


def squared_distance(teacher: Tensor, student: Tensor) -> Tensor:
    """Map features (N, C, H, W) to the squared distance of their unit vectors, (N, 1, H, W)."""
    difference = F.normalize(teacher, dim=1) - F.normalize(student, dim=1)
    return difference.square().sum(dim=1, keepdim=True)
