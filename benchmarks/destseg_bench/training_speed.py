"""How fast the lean training is beside the reference's loop, phase by phase, interleaved."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from destseg_deploy.data.texture_bank import TextureBank
from destseg_deploy.errors import TrainingError
from destseg_deploy.recipe import Recipe
from destseg_deploy.training.compiling import compile_networks
from destseg_deploy.training.loop import LOG_EVERY, Loop, Progress
from destseg_deploy.training.resume import RunState
from destseg_deploy.training.schedule import phases
from destseg_deploy.training.setup import Setup, prepare

CONTENDERS = ("literal", "lean-fp32", "lean", "lean-compiled")
"""``literal``: the reference's loop. ``lean-fp32``: without its dead work, channels-last, synthesis
on the device. ``lean``: the same in the half precision that the device computes."""


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
    contenders: Sequence[str] = CONTENDERS[:3],
    steps: int = 4,
    rounds: int = 3,
    bank: TextureBank,
    device: str = "auto",
    workers: int = 2,
    teacher: str = "imagenet",
    teacher_weights: Path | None = None,
    report: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> list[Measured]:
    """Train each contender for some steps in turn, round after round.

    In each round and phase the first step warms up (the reads of the loss before and after the
    others wait for the device, so the clock is right on a GPU, too). A first round is not counted.

    Args:
        category: A folder in the MVTec AD layout.
        recipe: Batch and image size; its steps are not used.
        contenders: Of ``CONTENDERS``; ratios are to the first.
        steps: Steps that count in each phase of a round, at most 10.
        rounds: Rounds that count.
        bank: Textures on the device.
        device: As ``training.run.train``'s.
        workers: Threads, and for the literal loop processes.
        teacher: As ``training.run.train``'s.
        teacher_weights: As ``training.run.train``'s.
        report: Called with the rounds done, all rounds, and the contender.

    Raises:
        TrainingError: If a contender is unknown or the number of steps does not fit.
    """
    if unknown := set(contenders) - set(CONTENDERS):
        raise TrainingError(f"{min(unknown)}: expected one of {', '.join(CONTENDERS)}.")
    if not 1 <= steps <= LOG_EVERY:
        raise TrainingError(f"steps: {steps}, expected 1 to {LOG_EVERY}.")
    short = replace(recipe, student_steps=steps + 1, segmentation_steps=steps + 1)
    runners = [
        _Runner(
            name,
            prepare(
                category,
                short,
                textures=bank,
                teacher=teacher,
                teacher_weights=teacher_weights,
                device=device,
                precision="fp32" if name in ("literal", "lean-fp32") else "auto",
                literal=name == "literal",
            ),
            workers,
        )
        for name in contenders
    ]
    done, total = 0, (rounds + 1) * len(runners)
    for number in range(rounds + 1):
        for runner in runners:
            runner.round(counted=number > 0)
            done += 1
            report(done, total, runner.measured.name)
    return [runner.measured for runner in runners]


class _Runner:
    """One contender with networks of its own."""

    def __init__(self, name: str, setup: Setup, workers: int) -> None:
        self.measured = Measured(name, setup.precision)
        self._setup = setup
        self._workers = workers
        self._marks: list[tuple[str, int, float]] = []
        if name == "lean-compiled":
            compile_networks(setup.model, setup.device)
        self._loop = Loop(
            setup.model,
            setup.recipe,
            setup.device,
            setup.precision,
            literal=setup.literal,
            report=self._mark,
        )

    def _mark(self, progress: Progress) -> None:
        self._marks.append((progress.phase, progress.done, time.perf_counter()))

    def round(self, *, counted: bool) -> None:
        """Train both phases once more, from the same samples, and note the time."""
        recipe, measured = self._setup.recipe, self.measured
        self._marks.clear()
        state = RunState(0, np.full(recipe.steps, np.nan, np.float32))
        losses = self._loop.fit(self._setup.source(self._workers), state)
        times = {done: moment for _, done, moment in self._marks}
        for phase in phases(recipe):
            measured.losses.setdefault(phase.name, losses[phase.start : phase.stop].tolist())
            if counted:
                took = times[phase.stop] - times[phase.start + 1]
                per_step = took / (phase.stop - phase.start - 1)
                measured.seconds.setdefault(phase.name, []).append(per_step)


def summarize(measured: Sequence[Measured], paper: Recipe) -> list[dict[str, Any]]:
    """Return a row for each contender.

    Args:
        measured: The contenders.
        paper: The schedule to project the time of a whole run to.

    Returns:
        Median, lowest and highest seconds per step of both phases, how many times faster than the
        first contender (medians), and the whole schedule's minutes, projected.
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
