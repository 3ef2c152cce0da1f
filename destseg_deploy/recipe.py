"""Recipes: every number that decides what is trained. The defaults are the paper's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from destseg_deploy.data.synthesis import PAPER_ROTATIONS, ROTATIONS
from destseg_deploy.errors import TrainingError

DECAYS = ("none", "cosine")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what is trained; the defaults are the paper's (supplement, A).

    Attributes:
        name: What the schedule is called in reports.
        size: Height and width at which the network sees images.
        batch_size: The student's loss is summed over the batch, which ties its rate to this.
        student_steps: Steps of phase one.
        segmentation_steps: Steps of phase two.
        student_lr: Learning rate of the student.
        res_lr: Learning rate of the segmentation network's residual blocks.
        head_lr: Learning rate of its ASPP head.
        decay: ``none`` as the paper, or ``cosine``: down to zero within each phase.
        momentum: Of SGD.
        weight_decay: Of SGD.
        gamma: Exponent of the focal loss.
        rotation: Rotation of normal images; None takes the category's group in the paper, or
            ``slight`` for a category the paper does not name.
        holdout: Share of the normal images kept from training, for the threshold.
        seed: Seed of weights, order and anomalies.
    """

    name: str = "paper"
    size: int = 256
    batch_size: int = 32
    student_steps: int = 1000
    segmentation_steps: int = 4000
    student_lr: float = 0.4
    res_lr: float = 0.1
    head_lr: float = 0.01
    decay: str = "none"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    gamma: float = 4.0
    rotation: str | None = None
    holdout: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that cannot be trained with."""
        check_option(
            self.size >= 64 and self.size % 32 == 0, "size", self.size, "a multiple of 32, from 64"
        )
        check_option(self.batch_size >= 2, "batch_size", self.batch_size, "at least 2 (BatchNorm)")
        steps = min(self.student_steps, self.segmentation_steps)
        check_option(steps >= 1, "steps", steps, "at least 1")
        check_option(self.decay in DECAYS, "decay", self.decay, " or ".join(DECAYS))
        check_option(self.gamma >= 0, "gamma", self.gamma, "at least 0")
        check_option(0 <= self.holdout < 1, "holdout", self.holdout, "a share in [0, 1)")
        check_option(
            self.rotation in (None, *ROTATIONS), "rotation", self.rotation, ", ".join(ROTATIONS)
        )

    @property
    def steps(self) -> int:
        """Steps of both phases."""
        return self.student_steps + self.segmentation_steps

    def for_category(self, category: str) -> Recipe:
        """Return the recipe with the rotation settled: the paper's group, or ``slight``."""
        if self.rotation is not None:
            return self
        return replace(self, rotation=PAPER_ROTATIONS.get(category, "slight"))


def check_option(valid: bool, name: str, value: object, expected: str) -> None:
    """Refuse an option of the training.

    Raises:
        TrainingError: If it is not valid.
    """
    if not valid:
        raise TrainingError(f"{name} is {value}, expected {expected}. Change that option.")


PRESETS = {
    "paper": Recipe(),
    "quick": Recipe(
        name="quick",
        size=128,
        batch_size=8,
        student_steps=100,
        segmentation_steps=160,
        head_lr=0.05,
        decay="cosine",
        holdout=0.2,
    ),
}
"""``paper`` to reproduce the tables on a GPU; ``quick`` to try the way through on a CPU."""


def make_recipe(preset: str = "paper", **changes: Any) -> Recipe:
    """Return a preset with some of its values changed; None leaves a value as it is.

    A recipe whose schedule was changed is named ``custom``, so that nothing is called the paper's
    that is not; seed, rotation and held-out images do not change the schedule.

    Raises:
        TrainingError: If the preset is unknown or a value cannot be trained with.
    """
    if preset not in PRESETS:
        raise TrainingError(f"preset {preset!r}: expected one of {', '.join(PRESETS)}.")
    given = {name: value for name, value in changes.items() if value is not None}
    base = PRESETS[preset]
    recipe = replace(base, **given)
    same = {name: getattr(base, name) for name in ("seed", "rotation", "holdout")}
    return recipe if replace(recipe, **same) == base else replace(recipe, name="custom")
