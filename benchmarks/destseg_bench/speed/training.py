"""How fast the lean training is beside the reference's loop, phase by phase, interleaved."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from destseg_deploy.errors import TrainingError
from destseg_deploy.training.batches import TextureBank
from destseg_deploy.training.checkpointing import RunState
from destseg_deploy.training.loop import READ_EVERY, Observers, StepReport
from destseg_deploy.training.precision import Precision, compile_networks
from destseg_deploy.training.recipe import Recipe, TrainingOptions, phases
from destseg_deploy.training.setup import prepare

CONTENDERS: dict[str, dict[str, Any]] = {
    "literal": {"precision": "fp32", "literal": True},
    "lean-full": {"precision": "fp32"},
    "lean": {},
    "lean-compiled": {"compiled": True},
}
"""Contender -> its training options. ``literal``: the reference's loop. ``lean-full``: without its
unused computations, in channels-last order, with the synthesis on the device, in float32 (a GPU's
convolutions may round it to TF32, which the precision says). ``lean``: the same in
the half precision that the device computes."""


@dataclass(frozen=True)
class Measured:
    """One contender's steps.

    Attributes:
        name: One of ``CONTENDERS``.
        precision: What it computed in.
        seconds: Seconds per step of each round, by phase.
        losses: Loss of every step of the first round, by phase.
    """

    name: str
    precision: str
    seconds: dict[str, list[float]] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)


def measure_training(
    category: Path,
    recipe: Recipe,
    *,
    bank: TextureBank,
    options: TrainingOptions,
    contenders: Sequence[str] = ("literal", "lean-full", "lean"),
    steps: int = 4,
    rounds: int = 3,
    report: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> list[Measured]:
    """Train each contender for some steps in turn, round after round.

    In each round and phase the first step is the warm-up and is not counted. The loss is read after
    it and after the last step, and each read waits for the device, so the clock is also right on a
    GPU. The first round is not counted.

    Args:
        category: A folder in the MVTec AD layout.
        recipe: Batch size and image size; its steps are not used.
        bank: Textures on the device.
        options: Device, teacher and workers; each contender changes the options that define it.
        contenders: Names of ``CONTENDERS``; ratios are to the first.
        steps: Counted steps in each phase of a round, at most 10.
        rounds: Counted rounds.
        report: Called with the rounds done, the number of rounds, and the contender.

    Raises:
        TrainingError: If a contender is unknown or ``steps`` is out of range.
    """
    if unknown := set(contenders) - set(CONTENDERS):
        raise TrainingError(f"{min(unknown)}: expected one of {', '.join(CONTENDERS)}.")
    if not 1 <= steps <= READ_EVERY:
        raise TrainingError(f"steps: {steps}, expected 1 to {READ_EVERY}.")
    # Of another name than the paper's recipe, which would train "lean" in fp32, too.
    short = replace(recipe, name="timing", student_steps=steps + 1, segmentation_steps=steps + 1)
    runners = [
        _Runner(name, category, short, bank, replace(options, **CONTENDERS[name]))
        for name in contenders
    ]
    done, total = 0, (rounds + 1) * len(runners)
    for number in range(rounds + 1):
        for runner in runners:
            runner.round(counted=number > 0)
            done += 1
            report(done, total, runner.measured.name)
    return [runner.measured for runner in runners]


def computed_in(precision: Precision) -> str:
    """Return what a training really computes in: a GPU's float32 is TF32 where torch allows it."""
    rounds = precision.device.type == "cuda" and torch.backends.cudnn.allow_tf32
    return "tf32" if precision.name == "fp32" and rounds else precision.name


class _Runner:
    """One contender with its own networks."""

    def __init__(
        self,
        name: str,
        category: Path,
        recipe: Recipe,
        bank: TextureBank,
        options: TrainingOptions,
    ) -> None:
        self._setup = prepare(category, recipe, options, bank)
        self.measured = Measured(name, computed_in(self._setup.loop.precision))
        if options.compiled:
            compile_networks(self._setup.loop.model, bank.device)

    def round(self, *, counted: bool) -> None:
        """Train both phases once more, from the same samples, and note the time."""
        recipe, measured = self._setup.recipe, self.measured
        state, times = RunState.fresh(recipe.steps), dict[int, float]()

        def mark(step: StepReport) -> None:
            times[step.done] = time.perf_counter()

        self._setup.loop.fit(self._setup.source(), state, Observers(mark))
        for phase in phases(recipe):
            losses = state.losses[phase.start : phase.stop].tolist()
            measured.losses.setdefault(phase.name, losses)
            if counted:
                took = times[phase.stop] - times[phase.start + 1]
                per_step = took / (phase.stop - phase.start - 1)
                measured.seconds.setdefault(phase.name, []).append(per_step)


def summarize(measured: Sequence[Measured], paper: Recipe) -> list[dict[str, Any]]:
    """Return a row for each contender.

    Args:
        measured: The contenders.
        paper: The schedule whose time is estimated.

    Returns:
        For both phases: median, lowest and highest seconds per step, and how many times faster than
        the first contender the median is. For the whole schedule: the estimated minutes.
    """
    rows: list[dict[str, Any]] = []
    for one in measured:
        row: dict[str, Any] = {"contender": one.name, "precision": one.precision}
        minutes = 0.0
        for phase in phases(paper):
            seconds = one.seconds[phase.name]
            median = statistics.median(seconds)
            first = statistics.median(measured[0].seconds[phase.name])
            row[phase.name] = {
                "seconds_per_step": median,
                "lowest": min(seconds),
                "highest": max(seconds),
                "times_faster": first / median,
                "losses": one.losses[phase.name],
            }
            minutes += (phase.stop - phase.start) * median / 60
        row["projected_minutes"] = minutes
        row["times_faster"] = rows[0]["projected_minutes"] / minutes if rows else 1.0
        rows.append(row)
    return rows
