"""Inference of several systems, stage by stage, interleaved, on the same images.

``decode``: file to pixels. ``prepare``: resize and normalise, on the host. ``copy in``: to the
device. ``network``: the networks. ``answer``: from their outputs to map and score. ``copy out``:
back to the host. Each stage is waited for, so that the times add up to the end-to-end time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from destseg_bench.baselines.fitting import Progress
from destseg_bench.baselines.system import System
from destseg_bench.stage_clock import StageClock
from destseg_bench.timing import interleave
from destseg_deploy.data.images import read_image
from destseg_deploy.errors import DataError

STAGES = ("decode", "prepare", "copy in", "network", "answer", "copy out")
MODEL_STAGES = ("network", "answer")
"""What is put beside the paper's inference time: from the prepared image to map and score."""

Seconds = dict[str, list[float]]


def time_inference(
    systems: Mapping[str, System],
    images: Sequence[Path],
    *,
    device: torch.device,
    batch: int = 1,
    rounds: int = 20,
    warmup: int = 2,
    report: Progress = lambda done, total, name: None,
) -> dict[str, dict[str, Seconds]]:
    """Time systems image by image (or batch by batch), in turn.

    Args:
        systems: Name -> the system, on the device and ready to answer.
        images: Files; call ``i`` of every system takes the same ones.
        device: Where the systems run.
        batch: Images per call.
        rounds: Calls of each that count.
        warmup: Calls before.
        report: Called with the calls done, all calls, and the system.

    Returns:
        Name -> ``wall`` and, on a GPU, ``events`` -> stage -> seconds of each call; ``end to end``
        is the whole call by the host's clock and ``model`` the sum of ``MODEL_STAGES``.

    Raises:
        DataError: If there is no image or one cannot be read.
        BackendError: If a number is below 1.
    """
    if not images:
        raise DataError("no images to score. Expected at least one file.")
    runners = {name: _Runner(system, images, batch, device) for name, system in systems.items()}
    calls = {name: runner.call for name, runner in runners.items()}
    # All of them are PyTorch's, which has one pool of threads: nobody's are left spinning.
    whole = interleave(calls, rounds=rounds, warmup=warmup, settle=0, report=report)
    return {name: runners[name].seconds(whole[name]) for name in systems}


class _Runner:
    """Runs one system and keeps the clocks of its calls."""

    def __init__(
        self, system: System, images: Sequence[Path], batch: int, device: torch.device
    ) -> None:
        self._system = system
        self._images = images
        self._batch = batch
        self._device = device
        self._clocks: list[StageClock] = []

    @torch.inference_mode()
    def call(self) -> None:
        """Score the next images, from file to answer on the host."""
        first = len(self._clocks) * self._batch
        paths = [self._images[(first + i) % len(self._images)] for i in range(self._batch)]
        clock = StageClock(self._device)
        frames = [read_image(path) for path in paths]
        clock.lap("decode")
        prepared = np.stack([self._system.prepare(frame) for frame in frames])
        clock.lap("prepare")
        there = torch.from_numpy(prepared).to(self._device)
        clock.lap("copy in")
        outputs = self._system.network(there)
        clock.lap("network")
        answers = self._system.answer(outputs)
        clock.lap("answer")
        for part in answers:
            part.cpu()
        clock.lap("copy out")
        self._clocks.append(clock)

    def seconds(self, whole: list[float]) -> dict[str, Seconds]:
        """Return the seconds of the calls that counted, which are the last ones."""
        clocks = self._clocks[-len(whole) :]
        wall = {stage: [clock.wall[stage] for clock in clocks] for stage in STAGES}
        wall["model"] = _added(wall)
        wall["end to end"] = whole
        if not clocks[0].events:
            return {"wall": wall}
        events = {stage: [clock.events[stage] for clock in clocks] for stage in STAGES}
        return {"wall": wall, "events": {**events, "model": _added(events)}}


def _added(seconds: Seconds) -> list[float]:
    return [sum(parts) for parts in zip(*(seconds[stage] for stage in MODEL_STAGES), strict=True)]
