"""Our accuracy over categories and seeds, to be put beside the paper's Tables S5 and S6."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from destseg_bench.paper import paper_categories
from destseg_bench.runs import (
    METRICS,
    Measured,
    Progress,
    Run,
    Trainer,
    measure_runs,
    no_progress,
)
from destseg_bench.schedules import schedule_lines
from destseg_bench.statistic import of, over_categories, over_seeds
from destseg_deploy.atomic import replacing
from destseg_deploy.environment import describe_environment

Summarize = Callable[[Sequence[Measured]], dict[str, Any]]


def summarize(measured: Sequence[Measured]) -> dict[str, Any]:
    """Return mean and spread of each metric, by category and on average, ready for JSON.

    Args:
        measured: Runs, at most one of each category and seed.

    Returns:
        ``schedules``; ``categories``: category -> metric -> mean, std and count over seeds;
        ``average``: metric -> mean, std and count over seeds of the mean over those of the paper's
        categories that every seed has, with their names. Values in [0, 1], None where unknown.
    """
    names = dict.fromkeys(one.category for one in measured)
    return {
        "schedules": schedule_lines(measured),
        "categories": {name: _category(measured, name) for name in names},
        "average": {metric: average_of(measured, metric, paper_categories()) for metric in METRICS},
    }


def average_of(
    measured: Sequence[Measured], metric: str, categories: Sequence[str]
) -> dict[str, Any] | None:
    """Return ``statistic.over_categories`` of a metric, ready for JSON."""
    found = over_categories(measured, categories, of(metric))
    if found is None:
        return None
    return {**asdict(found.value), "categories": found.categories, "seeds": found.seeds}


def measure_accuracy(
    runs: Sequence[Run],
    *,
    device: str = "cpu",
    trainer: Trainer | None = None,
    output: Path | None = None,
    summarize: Summarize = summarize,
    progress: Progress = no_progress,
    notify: Callable[[str], None] = lambda message: None,
) -> list[Measured]:
    """Measure runs, and keep a file of the results so far.

    Args:
        runs: What to measure.
        device: Where to measure.
        trainer: Makes each checkpoint first; None where they are there.
        output: JSON, written anew after every run; ``complete`` says whether it has them all.
        summarize: Makes the file's ``summary``.
        progress: Shows how far it is.
        notify: Called with what the user should know.

    Raises:
        DestsegError: As ``measure_runs``.
        OSError: If the file cannot be written.
    """
    environment = describe_environment()

    def write(measured: Sequence[Measured]) -> None:
        if output is not None:
            result = {
                "environment": environment,
                "complete": len(measured) == len(runs),
                "runs_planned": len(runs),
                "runs": [one.to_dict() for one in measured],
                "summary": summarize(measured),
            }
            with replacing(output) as temporary:
                temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")

    return measure_runs(
        runs,
        device=device,
        trainer=trainer,
        progress=progress,
        notify=notify,
        finished=write,
    )


def _category(measured: Sequence[Measured], name: str) -> dict[str, Any]:
    values: dict[str, Any] = {"seeds": [one.seed for one in measured if one.category == name]}
    for metric in METRICS:
        found = over_seeds(measured, name, of(metric))
        values[metric] = None if found is None else asdict(found)
    return values
