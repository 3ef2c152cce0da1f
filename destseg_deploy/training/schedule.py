"""The two phases: which networks, which optimiser, which learning rate at which step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from torch.optim import SGD

from destseg_deploy.models.destseg import DeSTSeg
from destseg_deploy.recipe import Recipe


@dataclass(frozen=True)
class Phase:
    """A stretch of steps that trains one network.

    Attributes:
        name: ``student`` or ``segmentation``.
        start: Its first step, counted from the beginning of the run.
        stop: The step after its last.
    """

    name: str
    start: int
    stop: int


def phases(recipe: Recipe) -> tuple[Phase, Phase]:
    """Return the phases of a run: the student, then the segmentation network."""
    first, total = recipe.student_steps, recipe.student_steps + recipe.segmentation_steps
    return Phase("student", 0, first), Phase("segmentation", first, total)


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


def rate_factor(recipe: Recipe, phase: Phase, step: int) -> float:
    """Return what the learning rates are multiplied with at a step, in [0, 1]."""
    if recipe.decay == "none":
        return 1.0
    done = (step - phase.start) / (phase.stop - phase.start)
    return 0.5 * (1 + math.cos(math.pi * done))
