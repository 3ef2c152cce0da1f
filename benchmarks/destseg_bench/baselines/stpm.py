"""STPM: a student learns the features of a pretrained ResNet18 on normal images.

Wang et al., Student-Teacher Feature Pyramid Matching for Anomaly Detection, BMVC 2021; methods.md
3.2, the official variant.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from destseg_bench.baselines.backbones import load_resnet18
from destseg_bench.baselines.descent import descend
from destseg_bench.baselines.frames import TrainingFrames, normalized
from destseg_bench.baselines.system import Facts, Stage, Task, steps_of
from destseg_deploy.models.resnet import ResNet18

BATCH = 32
EPOCHS = 100
QUICK_STEPS = 60
GRID = (64, 64)

FACTS = Facts(
    "STPM",
    "Wang et al., BMVC 2021; methods.md 3.2",
    (
        "The last weights are used: no image is held out to choose an epoch.",
        "The unused layer4 is neither built nor run.",
    ),
    parameters=5.57,
    gmacs=3.66,
)


class Stpm:
    """Two ResNet18 up to layer3; see ``System``."""

    facts = FACTS
    size = (256, 256)
    window = 1.0

    def __init__(self, task: Task) -> None:
        """Make the networks; errors are ``load_resnet18``'s."""
        self._task = task
        self.student = ResNet18(layers=3).to(task.device).eval()
        self.teacher = ResNet18(layers=3)
        self.weights = load_resnet18(self.teacher, task)
        self.teacher = self.teacher.to(task.device).eval().requires_grad_(False)

    def modules(self) -> tuple[torch.nn.Module, ...]:
        """Return teacher and student."""
        return self.teacher, self.student

    def stages(self) -> list[Stage]:
        """Return the one stage: 100 epochs of the normal images in batches of 32."""
        frames = TrainingFrames(self._task, self.prepare, BATCH)
        optimizer = torch.optim.SGD(
            self.student.parameters(), lr=0.4, momentum=0.9, weight_decay=1e-4
        )

        def step(number: int) -> Tensor:
            self.student.train()
            images = frames.batch(number)
            with torch.no_grad():
                wanted = self.teacher(images)
            loss = matching_loss(wanted, self.student(images))
            return descend(optimizer, loss)

        steps = steps_of(self._task, paper=EPOCHS * frames.batches_per_epoch, quick=QUICK_STEPS)
        return [Stage("student", steps, BATCH, step, end=lambda: _to_eval(self.student))]

    def stand_in(self) -> None:
        """Do nothing: an untrained student takes as long."""

    def prepare(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Resize with antialiasing and normalise as ImageNet's."""
        return normalized(frame, self.size)

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


def matching_loss(teacher: list[Tensor], student: list[Tensor]) -> Tensor:
    """Return the sum over levels of the mean squared distance of unit features."""
    losses = [squared_distance(t, s).mean() for t, s in zip(teacher, student, strict=True)]
    return torch.stack(losses).sum()


def squared_distance(teacher: Tensor, student: Tensor) -> Tensor:
    """Map features (N, C, H, W) to the squared distance of their unit vectors, (N, 1, H, W)."""
    difference = F.normalize(teacher, dim=1) - F.normalize(student, dim=1)
    return difference.square().sum(dim=1, keepdim=True)


def _to_eval(module: torch.nn.Module) -> None:
    module.eval()


def open_system(task: Task) -> Stpm:
    """Make STPM for a task; see ``catalogue.open_system``."""
    return Stpm(task)
