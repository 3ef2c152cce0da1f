"""A step's loss, twice: with no dead work, and literally as the reference computes it.

The gradients are the same (methods.md 3.1.7); tests/deploy/test_training_steps.py shows it.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from destseg_deploy.models.destseg import DeSTSeg, dest_map, normalize
from destseg_deploy.training.losses import segmentation_loss, student_loss


class Steps(Protocol):
    """How a phase prepares the networks and computes a loss."""

    def enter(self, net: DeSTSeg, phase: str) -> None:
        """Set modes and gradients of the networks for ``student`` or ``segmentation``."""

    def loss(self, net: DeSTSeg, phase: str, image: Tensor, clean: Tensor, mask: Tensor) -> Tensor:
        """Return the loss of a batch.

        Args:
            net: The networks.
            phase: ``student`` or ``segmentation``.
            image: The corrupted images, float (N, 3, H, W), normalised.
            clean: The same without the anomaly.
            mask: float (N, 1, H, W) of 0 and 1.
        """


class LeanSteps:
    """Computes what contributes a gradient and nothing else.

    No segmentation in phase one, one pass of the teacher, and no gradient through the student in
    phase two.
    """

    def __init__(self, gamma: float) -> None:
        """Take the focal loss's exponent."""
        self.gamma = gamma

    def enter(self, net: DeSTSeg, phase: str) -> None:
        """Train one network; the other neither learns nor keeps statistics."""
        student = phase == "student"
        net.student_net.train(student).requires_grad_(student)
        net.segmentation_net.train(not student).requires_grad_(not student)

    def loss(self, net: DeSTSeg, phase: str, image: Tensor, clean: Tensor, mask: Tensor) -> Tensor:
        """Return the loss of a batch; see ``Steps``."""
        if phase == "student":
            return student_loss(*net.features(image, clean))
        with torch.no_grad():
            teacher, student = net.features(image)
        return segmentation_loss(net.segment(teacher, student), mask, self.gamma)


class LiteralSteps:
    """Computes what the reference does: every network in every step, the teacher twice.

    Kept for Table S4's training time and to be compared with.
    """

    def __init__(self, gamma: float) -> None:
        """Take the focal loss's exponent."""
        self.gamma = gamma

    def enter(self, net: DeSTSeg, phase: str) -> None:
        """Set the modes; gradients flow into both networks in both phases."""
        net.student_net.train(phase == "student")
        net.segmentation_net.train(phase == "segmentation")

    def loss(self, net: DeSTSeg, phase: str, image: Tensor, clean: Tensor, mask: Tensor) -> Tensor:
        """Return the loss of a batch; see ``Steps``."""
        seen, student = net.features(image)
        segmentation = net.segment(seen, student)
        origin = clean if phase == "student" else image.clone()
        with torch.no_grad():
            target = [normalize(x) for x in net.teacher_net(origin)]
        dest_map(target, student)  # computed in every step, read in none
        if phase == "student":
            return student_loss(target, student)
        return segmentation_loss(segmentation, mask, self.gamma)
