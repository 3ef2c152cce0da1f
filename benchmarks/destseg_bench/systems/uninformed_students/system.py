"""Uninformed Students: where students disagree with a teacher, and with each other, is a defect.

Bergmann et al., Uninformed Students: Student-Teacher Anomaly Detection with Discriminative Latent
Embeddings, CVPR 2020, Section 3; no code of the authors is published.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from destseg_bench.systems.frames import TrainingFrames
from destseg_bench.systems.system import Facts, Stage, System, Task, normalized
from destseg_bench.systems.training import Descent, parameters
from destseg_bench.systems.uninformed_students.distillation import (
    Moments,
    cut,
    distillation_loss,
    random_windows,
)
from destseg_bench.systems.uninformed_students.patches import PLANS, PatchNetwork
from destseg_bench.systems.weights import RANDOM, load_resnet18
from destseg_deploy.data.finding import expand
from destseg_deploy.models.resnet import CHANNELS

STUDENTS = 3
PATCHES = 64
DISTILLATION_STEPS = 50_000
EPOCHS = 100
QUICK_DISTILLATION_STEPS = 100
QUICK_STEPS = 150
QUICK_STATISTICS = 16
TEXTURES = 256
"""Photographs of textures that are held in memory for the distillation, at most."""


class Scale(nn.Module):
    """What belongs to one size of patches.

    Attributes:
        teacher: Distilled from the ResNet18.
        decoder: Maps the teacher's descriptors to the ResNet18's features; only for distillation.
        students: Learn the teacher's standardised descriptors.
        descriptors: Moments of the teacher's descriptors of normal images.
        scores: Moments of regression error and variance on normal images.
    """

    def __init__(self, patch: int, narrow: int, features: int) -> None:
        """Make the networks and empty moments.

        Args:
            patch: Height and width of patches.
            narrow: Divisor of every number of channels.
            features: Numbers that the decoder returns.
        """
        super().__init__()
        self.teacher = PatchNetwork(patch, narrow)
        self.decoder = nn.Linear(self.teacher.width, features)
        self.students = nn.ModuleList(PatchNetwork(patch, narrow) for _ in range(STUDENTS))
        self.descriptors = Moments(self.teacher.width)
        self.scores = Moments(2)

    def target(self, images: Tensor) -> Tensor:
        """Return the teacher's standardised descriptors, (N, C, H, W)."""
        return self.descriptors.standardize(self.teacher.describe(images))

    def predictions(self, images: Tensor) -> Tensor:
        """Return the students' descriptors, (N, students, C, H, W)."""
        found = [student.describe(images) for student in self.students]  # type: ignore[operator]  # ModuleList forgets its type
        return torch.stack(found, dim=1)


class UninformedStudents(System):
    """Teachers and three students each, for patches of 17, 33 and 65."""

    facts = Facts(
        "US",
        "Bergmann et al., CVPR 2020, Section 3",
        (
            "Teachers learn from the category's normal images, and textures where given, not from "
            "ImageNet.",
            "Where the weights of layer4 are missing they learn layer3's pooled features.",
            "ResNet18 sees patches enlarged to 64 x 64; patches are 1/4 to 1/16 of an image's "
            "side.",
            "There is no triplet term in the distillation.",
            "The first kernel is 6 x 6 for patches of 17, since 5 x 5 leaves no single "
            "descriptor, and 5 x 5 for patches of 33.",
            "Patches see zeros beyond the border of an image.",
            "Scores are standardised by the training images; none are held out.",
            "The quick schedule has an eighth of the channels and images of 128 x 128.",
        ),
    )

    def __init__(self, task: Task) -> None:
        """Make the networks; errors are ``load_resnet18``'s."""
        super().__init__(task)
        self.size = task.choose(paper=(256, 256), quick=(128, 128))
        self.source, self.weights = load_resnet18(task)
        if self.weights != RANDOM and self.source.layers == 3:
            self.weights += " up to layer3"
        self.source.to(task.device).eval().requires_grad_(False)
        narrow, features = task.choose(paper=1, quick=8), CHANNELS[self.source.layers - 1]
        self.scales = [Scale(patch, narrow, features).to(task.device).eval() for patch in PLANS]

    def modules(self) -> tuple[nn.Module, ...]:
        """Return each scale's teacher and students; the ResNet18 only teaches the teachers."""
        return tuple(module for s in self.scales for module in (s.teacher, *s.students))

    def stages(self) -> list[Stage]:
        """Return distillation, the teachers' statistics, the students, and the scores'."""
        frames = TrainingFrames(self.task, self.prepare, 1)
        count = len(frames)
        statistics = self.task.choose(paper=count, quick=min(count, QUICK_STATISTICS))

        @torch.no_grad()
        def describe(number: int) -> Tensor:
            for scale in self.scales:
                scale.descriptors.add(scale.teacher.describe(frames.batch(number)))
            return torch.zeros((), device=self.task.device)  # nothing is optimised

        @torch.no_grad()
        def score(number: int) -> Tensor:
            outputs = self.network(frames.batch(number))
            for scale, values in zip(self.scales, _raw_scores(outputs), strict=True):
                scale.scores.add(values)
            return torch.zeros((), device=self.task.device)  # nothing is optimised

        return [
            self._teachers(),
            Stage("teacher statistics", statistics, 1, describe),
            self._students(frames),
            Stage("score statistics", statistics, 1, score),
        ]

    def _teachers(self) -> Stage:
        task, paths = self.task, list(self.task.images)
        if task.textures is not None:
            textures = expand([str(task.textures)])
            paths += textures[:: -(-len(textures) // TEXTURES)]
        frames = TrainingFrames(
            replace(task, images=tuple(paths)), lambda frame: normalized(frame, (256, 256)), PATCHES
        )

        def batch(step: int) -> list[Tensor]:
            """Return patches of every scale; their places depend on the step alone."""
            random = torch.Generator().manual_seed(task.seed * 1_000_003 + step)
            images = frames.batch(step)
            return [cut(images, random_windows(images, random), patch) for patch in PLANS]

        def loss(patches: list[Tensor]) -> Tensor:
            pairs = zip(self.scales, patches, strict=True)
            losses = [distillation_loss(s.teacher, s.decoder, self.source, p) for s, p in pairs]
            return torch.stack(losses).sum()

        learning = tuple(module for s in self.scales for module in (s.teacher, s.decoder))
        optimizer = torch.optim.Adam(parameters(learning), lr=2e-4, weight_decay=1e-5)
        steps = task.choose(paper=DISTILLATION_STEPS, quick=QUICK_DISTILLATION_STEPS)
        return Descent("teachers", steps, PATCHES, learning, optimizer, batch, loss).stage()

    def _students(self, frames: TrainingFrames) -> Stage:
        def loss(images: Tensor) -> Tensor:
            losses = []
            for scale in self.scales:
                with torch.no_grad():
                    wanted = scale.target(images)
                errors = (scale.predictions(images) - wanted[:, None]).square()
                losses.append(errors.mean() * STUDENTS)  # the sum of the students' mean errors
            return torch.stack(losses).sum()

        learning = tuple(scale.students for scale in self.scales)
        optimizer = torch.optim.Adam(parameters(learning), lr=1e-4, weight_decay=1e-5)
        steps = self.task.choose(paper=EPOCHS * len(frames), quick=QUICK_STEPS)
        return Descent("students", steps, 1, learning, optimizer, frames.batch, loss).stage()

    def network(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return each scale's standardised teacher (N, C, H, W), then students (N, 3, C, H, W)."""
        return tuple(
            part for s in self.scales for part in (s.target(images), s.predictions(images))
        )

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
