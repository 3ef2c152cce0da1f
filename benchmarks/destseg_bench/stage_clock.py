"""A clock for the stages of one call: wall time, and on a GPU its own events as well."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class StageClock:
    """Takes the time from lap to lap. On a GPU each lap waits until its work is done.

    Attributes:
        device: Where the work is.
        wall: Stage -> seconds by the host's clock.
        events: Stage -> seconds between CUDA events; empty on a CPU.
    """

    device: torch.device
    wall: dict[str, float] = field(default_factory=dict)
    events: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Start the first stage."""
        self._event = self._mark()
        self._start = time.perf_counter()

    def lap(self, stage: str) -> None:
        """End a stage; the next one begins."""
        event = self._mark()
        if event is not None:
            event.synchronize()
            self.events[stage] = self._event.elapsed_time(event) / 1e3
        now = time.perf_counter()
        self.wall[stage] = now - self._start
        self._event, self._start = self._mark(), time.perf_counter()

    def _mark(self) -> Any:
        if self.device.type != "cuda":
            return None
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        event.record(torch.cuda.current_stream(self.device))
        return event
