"""How long systems take: inference part by part, and training from a few steps of each stage.

Systems take turns on the same images, so that what the machine does meets all of them. Inference
has six parts. ``decode``: file to pixels. ``prepare``: resize and normalise, on the host. ``copy
in``: to the device. ``network``: the networks. ``answer``: from their outputs to map and score.
``copy out``: back to the host. Each part is waited for, so that the parts add up to the end-to-end
time. Training time is **projected**: the steps of a stage cost the same, so it is the median step
times the schedule's steps. Decoding the images once and evaluation are not in it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from destseg_bench.systems.system import Report, Stage, System
from destseg_bench.timing import interleave
from destseg_deploy.data.images import read_image
from destseg_deploy.errors import DataError

INFERENCE_PARTS = ("decode", "prepare", "copy in", "network", "answer", "copy out")
MODEL_PARTS = ("network", "answer")
"""What is compared with the paper's inference time: from the prepared image to map and score."""

Seconds = dict[str, list[float]]


@dataclass(frozen=True)
class Rounds:
    """How often systems take turns.

    Attributes:
        count: Calls or steps of each system that count; at least 1.
        warmup: Calls or steps of each before, which do not; at least 1.
        report: Called with the calls done, all calls, and the system's name.
    """

    count: int
    warmup: int = 1
    report: Report = lambda done, total, name: None

    def seconds(self, calls: Mapping[str, Any]) -> Seconds:
        """Time calls in turn; errors are ``timing.interleave``'s."""
        # All calls are PyTorch's, which has one pool of threads: no other pool keeps spinning
        # after a call, so they need no rest between them.
        return interleave(
            calls, rounds=self.count, warmup=self.warmup, settle=0, report=self.report
        )


def time_inference(
    systems: Mapping[str, System], images: Sequence[Path], batch: int, rounds: Rounds
) -> dict[str, dict[str, Seconds]]:
    """Time systems batch by batch, in turn.

    Args:
        systems: Name -> the system, on its task's device and ready to answer.
        images: Files; call ``i`` of every system takes the same ones.
        batch: Images per call.
        rounds: How many calls.

    Returns:
        Name -> ``wall`` and, on a GPU, ``events`` -> part -> seconds of each call. ``end to end``
        is the whole call by the host's clock and ``model`` the sum of ``MODEL_PARTS``.

    Raises:
        DataError: If there is no image or one cannot be read.
        BackendError: If a number is below 1.
    """
    if not images:
        raise DataError("no images to score. Expected at least one file.")
    clocks: dict[str, list[_Clock]] = {name: [] for name in systems}
    calls = {
        name: partial(_score_next, system, images, batch, clocks[name])
        for name, system in systems.items()
    }
    found = {}
    for name, whole in rounds.seconds(calls).items():
        counted = clocks[name][-len(whole) :]  # without the warm-up
        found[name] = {"wall": _by_part([clock.wall for clock in counted])}
        found[name]["wall"]["end to end"] = whole
        if counted[0].events:
            found[name]["events"] = _by_part([clock.events for clock in counted])
    return found


@torch.inference_mode()
def _score_next(system: System, images: Sequence[Path], batch: int, clocks: list[_Clock]) -> None:
    """Score the next images, from file to answer on the host, and append the call's clock."""
    first = len(clocks) * batch
    paths = [images[(first + i) % len(images)] for i in range(batch)]
    clock = _Clock(system.task.device)
    frames = [read_image(path) for path in paths]
    clock.end("decode")
    prepared = np.stack([system.prepare(frame) for frame in frames])
    clock.end("prepare")
    on_device = torch.from_numpy(prepared).to(clock.device)
    clock.end("copy in")
    outputs = system.network(on_device)
    clock.end("network")
    answers = system.answer(outputs)
    clock.end("answer")
    for part in answers:
        part.cpu()
    clock.end("copy out")
    clocks.append(clock)


class _Clock:
    """Times the parts of one call. On a GPU the end of a part waits until its work is done.

    Attributes:
        device: Where the work is.
        wall: Part -> seconds by the host's clock.
        events: Part -> seconds between CUDA events; empty on a CPU.
    """

    def __init__(self, device: torch.device) -> None:
        """Start the first part."""
        self.device = device
        self.wall: dict[str, float] = {}
        self.events: dict[str, float] = {}
        self._event, self._start = self._mark(), time.perf_counter()

    def end(self, part: str) -> None:
        """End a part; the next one begins."""
        event = self._mark()
        if event is not None:
            event.synchronize()
            self.events[part] = self._event.elapsed_time(event) / 1e3
        self.wall[part] = time.perf_counter() - self._start
        self._event, self._start = self._mark(), time.perf_counter()

    def _mark(self) -> Any:
        if self.device.type != "cuda":
            return None
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        event.record(torch.cuda.current_stream(self.device))
        return event


def _by_part(calls: list[dict[str, float]]) -> Seconds:
    seconds = {part: [call[part] for call in calls] for part in INFERENCE_PARTS}
    seconds["model"] = [sum(call[part] for part in MODEL_PARTS) for call in calls]
    return seconds


def time_training(systems: Mapping[str, System], rounds: Rounds) -> dict[str, list[dict[str, Any]]]:
    """Time steps of every stage of every system.

    The first stages of all systems are timed together, then the second ones, and so on.

    Args:
        systems: Name -> the system; changed in place. What a stage leaves after these steps is
            not what it leaves after all of them.
        rounds: How many steps; a stage with fewer repeats its last one.

    Returns:
        Name -> for each stage ``name``, ``steps`` of its schedule, ``images`` of a step, the number
        of ``timed`` steps, the median ``seconds_per_step``, and the ``lowest`` and ``highest``.

    Raises:
        BackendError: If a number is below 1.
        DataError: If an image cannot be read.
    """
    pending = {name: system.stages() for name, system in systems.items()}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in systems}
    while pending := {name: stages for name, stages in pending.items() if stages}:
        current = {name: stages.pop(0) for name, stages in pending.items()}
        for stage in current.values():
            stage.begin()
        calls = {name: partial(_next_step, _numbers(s), s) for name, s in current.items()}
        seconds = rounds.seconds(calls)
        for name, stage in current.items():
            stage.end()
            found[name].append(
                {
                    "name": stage.name,
                    "steps": stage.steps,
                    "images": stage.images,
                    "timed": len(seconds[name]),
                    "seconds_per_step": statistics.median(seconds[name]),
                    "lowest": min(seconds[name]),
                    "highest": max(seconds[name]),
                }
            )
    return found


def _numbers(stage: Stage) -> Iterator[int]:
    """Count the steps; a stage with fewer steps than are timed repeats its last one."""
    yield from range(stage.steps)
    while True:
        yield stage.steps - 1


def _next_step(numbers: Iterator[int], stage: Stage) -> float:
    """Do a step; reading its loss waits for the device."""
    return float(stage.step(next(numbers)))
