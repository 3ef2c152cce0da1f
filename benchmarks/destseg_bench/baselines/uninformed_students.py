"""Uninformed Students: where students disagree with a teacher, and with each other, is a defect.

Bergmann et al., Uninformed Students: Student-Teacher Anomaly Detection with Discriminative Latent
Embeddings, CVPR 2020; methods.md 3.7. Nobody has published its code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from destseg_bench.baselines.dense_descriptors import PLANS, PatchNetwork
from destseg_bench.baselines.descent import descend
from destseg_bench.baselines.distillation import (
    cut,
    distillation_loss,
    load_source,
    pooled_width,
    random_windows,
)
from destseg_bench.baselines.frames import TrainingFrames, normalized
from destseg_bench.baselines.moments import Moments
from destseg_bench.baselines.system import Facts, Stage, Task, steps_of
from destseg_deploy.data.images import expand

STUDENTS = 3
PATCHES = 64
DISTILLATION_STEPS = 50_000
EPOCHS = 100
QUICK_DISTILLATION_STEPS = 100
QUICK_STEPS = 150
QUICK_STATISTICS = 16
TEXTURES = 256
"""Photographs of textures that are held in memory for the distillation, at most."""

FACTS = Facts(
    "US",
    "Bergmann et al., CVPR 2020; methods.md 3.7",
    (
        "Teachers learn from the category's normal images, and textures where given, not from "
        "ImageNet.",
        "Where the weights of layer4 are missing they learn layer3's pooled features.",
        "ResNet18 sees patches enlarged to 64 x 64; patches are 1/4 to 1/16 of an image's side.",
        "There is no triplet term in the distillation.",
        "The first kernel is 6 x 6 for patches of 17, since 5 x 5 leaves no single descriptor, "
        "and 5 x 5 for patches of 33.",
        "Patches see zeros beyond the border of an image.",
        "Scores are standardised by the training images; none are held out.",
        "The quick schedule has an eighth of the channels and images of 128 x 128.",
    ),
)


@dataclass
class Scale:
    """What belongs to one size of patches: a teacher, its students, and what is known of normality.

    Attributes:
        teacher: Distilled.
        decoder: Only used to distil the teacher.
        students: Learn the teacher's standardised descriptors.
        descriptors: Moments of the teacher's descriptors of normal images.
        scores: Moments of regression error and variance on normal images.
    """

    teacher: PatchNetwork
    decoder: nn.Linear
    students: list[PatchNetwork]
    descriptors: Moments
    scores: Moments

    def modules(self) -> tuple[nn.Module, ...]:
        """Return all of it."""
        return (self.teacher, self.decoder, *self.students, self.descriptors, self.scores)


class UninformedStudents:
    """Teachers and three students each, for patches of 17, 33 and 65; see ``System``."""

    facts = FACTS
    window = 1.0

    def __init__(self, task: Task) -> None:
        """Make the networks; errors are ``load_resnet18``'s."""
        self._task = task
        side = steps_of(task, paper=256, quick=128)
        self.size = (side, side)
        self.source, self.weights = load_source(task)
        narrow = steps_of(task, paper=1, quick=8)
        self.scales = [_scale(patch, narrow, pooled_width(self.source)) for patch in PLANS]
        for scale in self.scales:
            for module in scale.modules():
                module.to(task.device).eval()

    def modules(self) -> tuple[nn.Module, ...]:
        """Return each scale's teacher and students; the ResNet18 only teaches the teachers."""
        return tuple(module for s in self.scales for module in (s.teacher, *s.students))

    def stages(self) -> list[Stage]:
        """Return distillation, the teachers' statistics, the students, and the scores'."""
        frames = TrainingFrames(self._task, self.prepare, 1)
        whole = len(frames)
        statistics = steps_of(self._task, paper=whole, quick=min(whole, QUICK_STATISTICS))
        steps = steps_of(self._task, paper=EPOCHS * whole, quick=QUICK_STEPS)

        @torch.no_grad()
        def describe(number: int) -> Tensor:
            for scale in self.scales:
                scale.descriptors.add(scale.teacher.describe(frames.batch(number)))
            return torch.zeros((), device=self._task.device)  # nothing is optimised

        @torch.no_grad()
        def score(number: int) -> Tensor:
            outputs = self.network(frames.batch(number))
            for scale, values in zip(self.scales, _raw_scores(outputs), strict=True):
                scale.scores.add(values)
            return torch.zeros((), device=self._task.device)  # nothing is optimised

        return [
            self._distillation(),
            Stage("teacher statistics", statistics, 1, describe),
            self._students(frames, steps),
            Stage("score statistics", statistics, 1, score),
        ]

    def _distillation(self) -> Stage:
        paths = list(self._task.images)
        if self._task.textures is not None:
            textures = expand([str(self._task.textures)])
            paths += textures[:: -(-len(textures) // TEXTURES)]
        frames = TrainingFrames(
            replace(self._task, images=tuple(paths)),
            lambda frame: normalized(frame, (256, 256)),
            PATCHES,
        )
        parameters = [
            p for s in self.scales for m in (s.teacher, s.decoder) for p in m.parameters()
        ]
        optimizer = torch.optim.Adam(parameters, lr=2e-4, weight_decay=1e-5)

        def step(number: int) -> Tensor:
            random = torch.Generator().manual_seed(self._task.seed * 1_000_003 + number)
            images = frames.batch(number)
            losses = []
            for scale in self.scales:
                patches = cut(images, random_windows(images, random), scale.teacher.patch)
                losses.append(distillation_loss(scale.teacher, scale.decoder, self.source, patches))
            return _learn(optimizer, losses)

        def end() -> None:
            for scale in self.scales:  # nothing in these networks differs between modes
                scale.teacher.requires_grad_(False)

        steps = steps_of(self._task, paper=DISTILLATION_STEPS, quick=QUICK_DISTILLATION_STEPS)
        return Stage("teachers", steps, PATCHES, step, end=end)

    def _students(self, frames: TrainingFrames, steps: int) -> Stage:
        parameters = [p for s in self.scales for m in s.students for p in m.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=1e-4, weight_decay=1e-5)

        def step(number: int) -> Tensor:
            images = frames.batch(number)
            losses = []
            for scale in self.scales:
                with torch.no_grad():
                    wanted = scale.descriptors.standardize(scale.teacher.describe(images))
                for student in scale.students:
                    losses.append(F.mse_loss(student.describe(images), wanted))
            return _learn(optimizer, losses)

        return Stage("students", steps, 1, step)

    def stand_in(self) -> None:
        """Do nothing: untrained networks and empty statistics take as long."""

    def prepare(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Resize with antialiasing and normalise as ImageNet's."""
        return normalized(frame, self.size)

    def network(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return each scale's standardised teacher (N, C, H, W), then students (N, 3, C, H, W)."""
        outputs: list[Tensor] = []
        for scale in self.scales:
            outputs.append(scale.descriptors.standardize(scale.teacher.describe(images)))
            students = [student.describe(images) for student in scale.students]
            outputs.append(torch.stack(students, dim=1))
        return tuple(outputs)

    def answer(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Average error plus variance, both standardised, over scales; score by the maximum."""
        total = torch.zeros((), device=outputs[0].device)
        for scale, values in zip(self.scales, _raw_scores(outputs), strict=True):
            total = total + scale.scores.standardize(values).sum(dim=1)
        maps = total / len(self.scales)
        return maps, maps.amax(dim=(1, 2))


def regression_error(teacher: Tensor, students: Tensor) -> Tensor:
    """Return the squared distance of the students' mean to the teacher, (N, H, W)."""
    return (students.mean(dim=1) - teacher).square().sum(dim=1)


def predictive_variance(students: Tensor) -> Tensor:
    """Return E|s|^2 - |E s|^2 over the students (N, M, C, H, W), as mean squared deviations."""
    away = students - students.mean(dim=1, keepdim=True)
    return away.square().sum(dim=2).mean(dim=1)


def _raw_scores(outputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Return each scale's error and variance, (N, 2, H, W)."""
    return [
        torch.stack([regression_error(t, s), predictive_variance(s)], dim=1)
        for t, s in zip(outputs[::2], outputs[1::2], strict=True)
    ]


def _learn(optimizer: torch.optim.Optimizer, losses: list[Tensor]) -> Tensor:
    """Step down the sum of losses and return it."""
    return descend(optimizer, torch.stack(losses).sum())


def _scale(patch: int, narrow: int, wanted: int) -> Scale:
    teacher = PatchNetwork(patch, narrow)
    return Scale(
        teacher,
        nn.Linear(teacher.width, wanted),
        [PatchNetwork(patch, narrow) for _ in range(STUDENTS)],
        Moments(teacher.width),
        Moments(2),
    )


def open_system(task: Task) -> UninformedStudents:
    """Make Uninformed Students for a task; see ``catalogue.open_system``."""
    return UninformedStudents(task)
