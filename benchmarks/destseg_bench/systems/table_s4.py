"""Table S4 on the machine at hand: training time per category, inference time per image.

The paper measured on one V100: STPM 15.4 min and 3.1 ms, DRAEM 158.3 and 22.2, PatchCore more than
11.3 ms, DeSTSeg 51.2 and 9.4. Minutes here are projected from steps of each stage unless whole
trainings were run. What stands beside the paper's milliseconds is the model's time at batch 1, from
the prepared image to map and score.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from destseg_bench.accuracy.paper import OURS, paper_table
from destseg_bench.systems.catalogue import open_system
from destseg_bench.systems.system import Report, System, Task
from destseg_bench.systems.times import Rounds, time_inference, time_training
from destseg_bench.systems.training import fit
from destseg_bench.timing import summarize_timing
from destseg_deploy.errors import DataError, DestsegError

TABLE = ("stpm", "draem", "patchcore", "destseg-reference", "destseg")
"""The rows of the paper's table; its DeSTSeg is ``destseg-reference``."""

OTHERS = ("patchcore-resnet18", "dsr", "cutpaste", "uninformed-students")
"""Systems of the paper's other tables."""


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
    save: Callable[[dict[str, Any]], None] = lambda systems: None,
    report: Report = lambda done, total, name: None,
) -> dict[str, Any]:
    """Measure systems side by side.

    Args:
        names: Of ``catalogue.SYSTEMS``.
        task: What they are trained on; weights that cannot be had are random unless it asks for
            the real ones.
        images: Images to score.
        protocol: How often.
        save: Called with the rows so far whenever a part is done.
        report: Called with the calls or steps done in this part, their number, and the system.

    Returns:
        Name -> its row: facts, where its weights came from, ``parameters_counted`` in millions and
        ``gmacs_counted``, ``training``, ``inference`` by batch size in milliseconds per image,
        ``paper``; or ``skipped``, the reason.

    Raises:
        DataError: If images cannot be read.
    """
    rows: dict[str, Any] = {}
    systems: dict[str, System] = {}
    for name in names:
        try:
            system = open_system(name, task)
        except DestsegError as error:
            rows[name] = {"skipped": " ".join(str(error).split())}
            continue
        system.stand_in()  # inference is timed before any training
        systems[name] = system
        rows[name] = {**describe(system), "training": None, "inference": {}}
    save(rows)
    rounds = Rounds(protocol.rounds, protocol.warmup, report)
    for batch in protocol.batches:
        for name, clocks in time_inference(systems, images, batch, rounds).items():
            rows[name]["inference"][str(batch)] = {
                clock: {
                    part: asdict(summarize_timing([s / batch for s in seconds]))
                    for part, seconds in parts.items()
                }
                for clock, parts in clocks.items()
            }
        save(rows)
    for name, training in _trainings(systems, protocol, report):
        rows[name]["training"] = training
        save(rows)
    return rows


def describe(system: System) -> dict[str, Any]:
    """Return what a system is, ready for JSON."""
    return {
        **asdict(system.facts),
        "weights": system.weights,
        "size": list(system.size),
        "parameters_counted": count_parameters(system) / 1e6,
        "gmacs_counted": count_macs(system) / 1e9,
        "paper": paper_row(system.facts.name),
    }


def count_parameters(system: System) -> int:
    """Return the parameters of the networks that inference runs."""
    return sum(p.numel() for module in system.modules() for p in module.parameters())


@torch.no_grad()
def count_macs(system: System) -> int:
    """Return the multiply-accumulates of an image's convolutions and matrix products.

    Those of ``network`` alone: a search through a memory bank is not among them.
    """
    images = torch.zeros(1, 3, *system.size, device=system.task.device)
    with FlopCounterMode(display=False) as counter:
        system.network(images)
    return int(counter.get_total_flops()) // 2  # a multiply-accumulate counts as two


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


def _trainings(
    systems: Mapping[str, System], protocol: Protocol, report: Report
) -> Iterable[tuple[str, dict[str, Any]]]:
    if protocol.full:
        for name, system in systems.items():
            start = time.perf_counter()
            fit(system, report)
            minutes = (time.perf_counter() - start) / 60
            yield name, {"projected": False, "minutes": minutes, "stages": []}
    elif protocol.training_rounds:
        timed = time_training(systems, Rounds(protocol.training_rounds, report=report))
        for name, stages in timed.items():
            minutes = sum(s["seconds_per_step"] * s["steps"] for s in stages) / 60
            yield name, {"projected": True, "minutes": minutes, "stages": stages}
