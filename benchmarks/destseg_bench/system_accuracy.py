"""Trains compared systems on a category and scores its test set: is each one what it claims to be?

With the ``quick`` schedule the numbers only say that a system works; they are no reproduction of
the paper's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from destseg_bench.baselines.catalogue import check_systems, open_system
from destseg_bench.baselines.fitting import Progress, fit
from destseg_bench.baselines.scoring import score_system
from destseg_bench.baselines.system import System, Task
from destseg_bench.paper import OURS, paper_table
from destseg_deploy.errors import DestsegError
from destseg_deploy.evaluation import compute_metrics

Bar = Callable[[str], AbstractContextManager[Progress]]
ENDS = 10
"""Losses averaged at both ends of a stage."""


def measure_systems(
    names: Sequence[str],
    task: Task,
    *,
    progress: Bar,
    save: Callable[[dict[str, Any]], None] = lambda systems: None,
) -> dict[str, Any]:
    """Train and score systems one after another.

    Args:
        names: Of ``baselines.catalogue.OPENERS``.
        task: What they are trained and judged on.
        progress: Shows how far training or scoring is, under a label.
        save: Called with the rows so far after each system.

    Returns:
        Name -> its facts, ``weights``, ``minutes`` of training, ``losses`` (of each stage the mean
        of the first and of the last steps), ``metrics`` in [0, 1] and the ``paper``'s image AUROC
        in percent; or ``skipped``, the reason.

    Raises:
        BackendError: If a name is unknown or there twice.
    """
    check_systems(names)
    rows: dict[str, Any] = {}
    for name in names:
        try:
            rows[name] = _measure(name, task, progress)
        except DestsegError as error:
            rows[name] = {"skipped": " ".join(str(error).split())}
        save(rows)
    return rows


def _measure(name: str, task: Task, progress: Bar) -> dict[str, Any]:
    system = open_system(name, task)
    start = time.perf_counter()
    with progress(f"{name}: training") as advance:
        losses = fit(system, advance)
    minutes = (time.perf_counter() - start) / 60
    with progress(f"{name}: scoring") as advance:
        test = score_system(system, task.category, device=task.device, report=advance)
    return {
        "name": system.facts.name,
        "source": system.facts.source,
        "differs": list(system.facts.differs),
        "weights": system.weights,
        "minutes": minutes,
        "losses": {stage: _ends(values) for stage, values in losses.items()},
        "metrics": dict(compute_metrics(test).rows()),
        "paper": paper_auroc(system, task.category),
    }


def _ends(losses: list[float]) -> dict[str, Any]:
    return {
        "steps": len(losses),
        "first": float(np.mean(losses[:ENDS])),
        "last": float(np.mean(losses[-ENDS:])),
    }


def paper_auroc(system: System, category: Path) -> str | None:
    """Return the paper's image AUROC of a system on a category, as printed; None without."""
    table = paper_table("S5")
    column = OURS if system.facts.name.startswith(OURS) else system.facts.name
    if column not in table.columns or category.name not in table.rows:
        return None
    return str(table.value(column, category.name))
