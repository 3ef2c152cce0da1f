"""Trains a compared system to the end of its schedule."""

from __future__ import annotations

from collections.abc import Callable

from destseg_bench.baselines.system import System

Progress = Callable[[int, int, str], None]


def fit(
    system: System, report: Progress = lambda done, total, stage: None
) -> dict[str, list[float]]:
    """Train a system to the end of its schedule.

    Args:
        system: Changed in place.
        report: Called with the steps done, the steps of all stages, and the stage.

    Returns:
        Stage -> loss of every step. Losses are read when a stage has ended, so that a GPU is not
        waited for at each step.
    """
    stages = system.stages()
    total, done = sum(stage.steps for stage in stages), 0
    losses: dict[str, list[float]] = {}
    for stage in stages:
        stage.begin()
        kept = []
        for i in range(stage.steps):
            kept.append(stage.step(i))
            done += 1
            report(done, total, stage.name)
        stage.end()
        losses[stage.name] = [float(loss) for loss in kept]
    return losses
