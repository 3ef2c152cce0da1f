"""What the schedules of several systems take, from some steps of each, interleaved.

The first stages of all systems are timed together, round after round a step of each, then the
second ones, and so on. Steps of a stage cost the same, so seconds per step times steps is the
schedule's time, **projected**. Decoding the images once and evaluation are not in it.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from destseg_bench.baselines.fitting import Progress
from destseg_bench.baselines.system import Stage, System
from destseg_bench.timing import interleave


@dataclass(frozen=True)
class StageTime:
    """What steps of a stage took.

    Attributes:
        name: The stage.
        steps: Steps that its schedule has.
        images: Images of a step.
        seconds: Of each timed step.
    """

    name: str
    steps: int
    images: int
    seconds: tuple[float, ...]

    @property
    def projected_minutes(self) -> float:
        """The stage's time: its steps at the median second per step."""
        return statistics.median(self.seconds) * self.steps / 60


@dataclass(frozen=True)
class TrainingTime:
    """What a system's schedule takes; see ``StageTime``."""

    stages: list[StageTime] = field(default_factory=list)

    @property
    def projected_minutes(self) -> float:
        """The time of all stages."""
        return sum(stage.projected_minutes for stage in self.stages)


def time_training(
    systems: Mapping[str, System],
    *,
    rounds: int,
    warmup: int = 1,
    report: Progress = lambda done, total, name: None,
) -> dict[str, TrainingTime]:
    """Time steps of every stage of every system.

    Args:
        systems: Name -> the system; changed in place. What a stage leaves after these steps is
            not what it leaves after all of them.
        rounds: Steps of each stage that count; fewer where it has fewer.
        warmup: Steps before.
        report: Called with the steps done at this stage of all systems, their number, and the
            system.

    Raises:
        BackendError: If a number is below 1.
        DataError: If an image cannot be read.
    """
    pending = {name: list(system.stages()) for name, system in systems.items()}
    found = {name: TrainingTime() for name in systems}
    while pending := {name: stages for name, stages in pending.items() if stages}:
        current = {name: stages.pop(0) for name, stages in pending.items()}
        with _begun(current.values()):
            calls = {name: partial(_next_step, _numbers(s), s) for name, s in current.items()}
            # All of them are PyTorch's, which has one pool of threads: nobody's are left spinning.
            seconds = interleave(calls, rounds=rounds, warmup=warmup, settle=0, report=report)
        for name, stage in current.items():
            times = tuple(seconds[name])
            found[name].stages.append(StageTime(stage.name, stage.steps, stage.images, times))
    return found


@contextmanager
def _begun(stages: Iterable[Stage]) -> Iterator[None]:
    stages = list(stages)
    for stage in stages:
        stage.begin()
    yield
    for stage in stages:
        stage.end()


def _numbers(stage: Stage) -> Iterator[int]:
    """Count the steps; a stage with fewer steps than are timed repeats its last one."""
    yield from range(stage.steps)
    while True:
        yield stage.steps - 1


def _next_step(numbers: Iterator[int], stage: Stage) -> float:
    """Do a step; reading its loss waits for the device."""
    return float(stage.step(next(numbers)))
