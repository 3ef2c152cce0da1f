"""Losses, steps and optimisers of the two phases.

The steps exist twice: lean, which computes only what a gradient needs, and literal, which computes
all that the reference's loop computes. Both give the same gradients
(``tests/deploy/training/test_steps.py``). Losses: paper, section 3; rates: supplement, section A.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import SGD

from destseg_deploy.models.destseg import DeSTSeg, cosine_distances, dest_map, normalize, upsample
from destseg_deploy.training.recipe import Phase, Recipe


def student_loss(teacher: list[Tensor], student: list[Tensor]) -> Tensor:
    """Return the loss of phase one: 1 - cos, averaged over pixels, summed over levels and images.

    The sum over the batch ties the learning rate to the batch size, as in the reference.

    Args:
        teacher: Unit-length features of the clean images, three levels of (N, C, h, w).
        student: Those of the corrupted images.
    """
    distances = cosine_distances(teacher, student)
    return torch.stack([d.mean(dim=(1, 2, 3)).sum() for d in distances]).sum()


def segmentation_loss(logits: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """Return the loss of phase two: focal loss plus L1, both averaged over all pixels.

    It is computed from logits, so that a pixel that is wrong by far keeps its gradient. From
    probabilities, the logarithm must be cut somewhere (the reference cuts it at -100), and float32
    holds no probability between 1 - 6e-8 and 1.

    Args:
        logits: float (N, 1, h, w); their sigmoid is the segmentation.
        mask: float (N, 1, H, W) of 0 and 1; resized to (h, w) and cut at one half.
        gamma: Exponent of the focal loss. There are no class weights.
    """
    anomalous = upsample(mask, logits.shape[-2:]) >= 0.5
    right = torch.where(anomalous, logits, -logits)  # log-odds of the right answer
    wrong = torch.sigmoid(-right)  # the distance from the right answer: 1 - p, and |p - target|
    focal = -(wrong**gamma) * functional.logsigmoid(right)
    return focal.mean() + wrong.mean()


class Steps(Protocol):
    """How a phase prepares the networks and computes a loss."""

    def enter(self, net: DeSTSeg, phase: str) -> None:
        """Set modes and gradients of the networks for ``student`` or ``segmentation``."""

    def loss(self, net: DeSTSeg, phase: str, image: Tensor, clean: Tensor, mask: Tensor) -> Tensor:
        """Return the loss of a batch.

        Args:
            net: The networks.
            phase: ``student`` or ``segmentation``.
            image: The corrupted images, float (N, 3, H, W), ImageNet-normalised.
            clean: The same images without the anomaly.
            mask: float (N, 1, H, W) of 0 and 1: the anomaly.
        """


class LeanSteps:
    """Computes only what contributes a gradient.

    Phase one runs no segmentation network and the teacher once. Phase two computes no gradient
    through the student.
    """

    def __init__(self, gamma: float) -> None:
        """Take the exponent of the focal loss."""
        self.gamma = gamma

    def enter(self, net: DeSTSeg, phase: str) -> None:
        """Train one network; the other one keeps its weights and BatchNorm statistics."""
        student = phase == "student"
        net.student_net.train(student).requires_grad_(student)
        net.segmentation_net.train(not student).requires_grad_(not student)

    def loss(self, net: DeSTSeg, phase: str, image: Tensor, clean: Tensor, mask: Tensor) -> Tensor:
        """Return the loss of a batch; see ``Steps``."""
        if phase == "student":
            return student_loss(*net.features(image, clean))
        with torch.no_grad():
            teacher, student = net.features(image)
        return segmentation_loss(net.segment(teacher, student, logits=True), mask, self.gamma)


class LiteralSteps:
    """Computes what the reference computes: every network in every step, the teacher twice.

    It serves as the contender in the measurement of training time (Table S4).
    """

    def __init__(self, gamma: float) -> None:
        """Take the exponent of the focal loss."""
        self.gamma = gamma

    def enter(self, net: DeSTSeg, phase: str) -> None:
        """Set the modes. Gradients flow into both networks in both phases, as in the reference."""
        net.student_net.train(phase == "student")
        net.segmentation_net.train(phase == "segmentation")

    def loss(self, net: DeSTSeg, phase: str, image: Tensor, clean: Tensor, mask: Tensor) -> Tensor:
        """Return the loss of a batch; see ``Steps``."""
        seen, student = net.features(image)
        logits = net.segment(seen, student, logits=True)
        # The reference clones the image, so its second pass of the teacher cannot be shared.
        origin = clean if phase == "student" else image.clone()
        with torch.no_grad():
            target = [normalize(x) for x in net.teacher_net(origin)]
        dest_map(target, student)  # the reference computes it in every step and never uses it
        if phase == "student":
            return student_loss(target, student)
        return segmentation_loss(logits, mask, self.gamma)


def make_optimizer(net: DeSTSeg, recipe: Recipe, phase: Phase) -> SGD:
    """Return the optimiser of a phase's network, at the recipe's rates (supplement, section A)."""
    sgd = partial(SGD, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    if phase.name == "student":
        return sgd(net.student_net.parameters(), recipe.student_lr)
    groups = [
        {"params": net.segmentation_net.res.parameters(), "lr": recipe.res_lr},
        {"params": net.segmentation_net.head.parameters(), "lr": recipe.head_lr},
    ]
    return sgd(groups, recipe.head_lr)
