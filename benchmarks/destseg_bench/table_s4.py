"""Table S4 on the machine at hand: training time per category, inference time per image.

The paper measured on one V100: STPM 15.4 min and 3.1 ms, DRAEM 158.3 and 22.2, PatchCore more than
11.3 ms, DeSTSeg 51.2 and 9.4. Minutes here are projected from steps of each stage unless whole
trainings were run; what is put beside the paper's milliseconds is the model's time at batch 1, from
the prepared image to map and score.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from destseg_bench.baselines.catalogue import check_systems, open_system
from destseg_bench.baselines.counting import count_macs, count_parameters
from destseg_bench.baselines.fitting import Progress, fit
from destseg_bench.baselines.inference_time import Seconds, time_inference
from destseg_bench.baselines.system import System, Task
from destseg_bench.baselines.training_time import TrainingTime, time_training
from destseg_bench.paper import OURS, paper_table
from destseg_bench.timing import summarize_timing
from destseg_deploy.errors import DataError, DestsegError

TABLE = ("stpm", "draem", "patchcore", "destseg-reference", "destseg")
"""The rows of the paper's table; its DeSTSeg is ``destseg-reference``."""

OTHERS = ("patchcore-resnet18", "dsr", "cutpaste", "uninformed-students")
"""Systems of the paper's other tables."""

Save = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Protocol:
    """How often each system runs.

    Attributes:
        batches: Images per call; the first is compared with the paper.
        rounds: Calls at each batch size that count.
        warmup: Calls before.
        training_rounds: Steps of each stage that count; 0 leaves training out.
        full: Train to the end instead, and take the time of that.
    """

    batches: tuple[int, ...] = (1, 8)
    rounds: int = 20
    warmup: int = 2
    training_rounds: int = 3
    full: bool = False


def measure_table(
    names: Sequence[str],
    task: Task,
    images: Sequence[Path],
    protocol: Protocol,
    *,
    save: Save = lambda systems: None,
    report: Progress = lambda done, total, name: None,
) -> dict[str, Any]:
    """Measure systems side by side.

    Args:
        names: Of ``baselines.catalogue.OPENERS``.
        task: What they are trained on; weights that cannot be had are random unless it asks for
            the real ones.
        images: Images to score.
        protocol: How often.
        save: Called with the rows so far whenever a part is done.
        report: Called with the calls or steps done in this part, their number, and the system.

    Returns:
        Name -> its row: what it is, where its weights came from, ``parameters`` and ``macs`` as
        counted, ``training``, ``inference`` by batch size, ``paper``; or ``skipped``, the reason.

    Raises:
        BackendError: If a name is unknown or there twice.
        DataError: If images cannot be read.
    """
    check_systems(names)
    rows: dict[str, Any] = {}
    systems = _open(names, task, rows)
    save(rows)
    for batch in protocol.batches:
        seconds = time_inference(
            systems,
            images,
            device=task.device,
            batch=batch,
            rounds=protocol.rounds,
            warmup=protocol.warmup,
            report=report,
        )
        for name, clocks in seconds.items():
            rows[name]["inference"][str(batch)] = _timings(clocks, batch)
        save(rows)
    for name, training in _trainings(systems, protocol, report):
        rows[name]["training"] = training
        save(rows)
    return rows


def _open(names: Sequence[str], task: Task, rows: dict[str, Any]) -> dict[str, System]:
    """Open systems ready to answer; one that cannot be opened is named with the reason."""
    systems: dict[str, System] = {}
    for name in names:
        try:
            system = open_system(name, task)
        except DestsegError as error:
            rows[name] = {"skipped": " ".join(str(error).split())}
            continue
        system.stand_in()
        systems[name] = system
        rows[name] = {**describe(system, task.device), "training": None, "inference": {}}
    return systems


def describe(system: System, device: torch.device) -> dict[str, Any]:
    """Return what a system is, ready for JSON."""
    return {
        **asdict(system.facts),
        "weights": system.weights,
        "size": list(system.size),
        "parameters_counted": count_parameters(system) / 1e6,
        "gmacs_counted": count_macs(system, device) / 1e9,
        "paper": paper_row(system.facts.name),
    }


def paper_row(name: str) -> dict[str, str] | None:
    """Return the paper's training minutes and inference milliseconds as printed; None without."""
    table = paper_table("S4")
    row = OURS if name.startswith(OURS) else name
    with suppress(DataError):
        minutes, milliseconds = (table.value(column, row) for column in table.columns)
        return {
            "training_minutes": "-" if minutes is None else str(minutes),
            "inference_ms": "-" if milliseconds is None else str(milliseconds),
        }
    return None


def _timings(clocks: dict[str, Seconds], batch: int) -> dict[str, Any]:
    """Return each stage's ``Timing``, in milliseconds per image."""
    return {
        clock: {
            stage: asdict(summarize_timing([s / batch for s in seconds]))
            for stage, seconds in stages.items()
        }
        for clock, stages in clocks.items()
    }


def _trainings(
    systems: Mapping[str, System], protocol: Protocol, report: Progress
) -> Iterable[tuple[str, dict[str, Any]]]:
    if protocol.full:
        for name, system in systems.items():
            start = time.perf_counter()
            fit(system, report)
            minutes = (time.perf_counter() - start) / 60
            yield name, {"projected": False, "minutes": minutes, "stages": []}
    elif protocol.training_rounds:
        timed = time_training(systems, rounds=protocol.training_rounds, report=report)
        for name, found in timed.items():
            yield name, _projected(found)


def _projected(found: TrainingTime) -> dict[str, Any]:
    stages = [
        {
            "name": stage.name,
            "steps": stage.steps,
            "images": stage.images,
            "timed": len(stage.seconds),
            "seconds_per_step": statistics.median(stage.seconds),
            "lowest": min(stage.seconds),
            "highest": max(stage.seconds),
        }
        for stage in found.stages
    ]
    return {"projected": True, "minutes": found.projected_minutes, "stages": stages}
