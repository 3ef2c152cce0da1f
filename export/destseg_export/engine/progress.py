"""How far a build is: TensorRT's nested phases as one stage and one share of the whole.

A phase has steps, and each of them may be a phase with steps of its own. The share of a phase that
is done is (steps done + share of the step at hand) / steps.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

ReportShare = Callable[[str, float], None]
"""Called with the name of the innermost stage and the share of the whole that is done, 0 to 1."""


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class BuildProgress:
    """The open phases, each within its parent. TensorRT reports them from several threads."""

    def __init__(self, tell: ReportShare) -> None:
        """Report to ``tell``, never a smaller fraction than before."""
        self._tell = tell
        self._lock = threading.Lock()
        self._phases: dict[str, _Phase] = {}
        self._furthest = 0.0
        self.failure: BaseException | None = None

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Open a phase; a number of steps below 1 counts as 1."""
        with self._lock:
            self._phases[name] = _Phase(parent, max(steps, 1))
            self._report(name)

    def step(self, name: str, step: int) -> bool:
        """Note that a step, counted from 0, is done; return whether to go on."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done = step + 1
                self._report(name)
            return self.failure is None

    def finish(self, name: str) -> None:
        """Close a phase."""
        with self._lock:
            self._phases.pop(name, None)

    def _report(self, name: str) -> None:
        """Tell; an error or an interrupt there must not travel through TensorRT's C++."""
        if self.failure is not None:
            return
        self._furthest = max(self._furthest, self._fraction(name))
        try:
            self._tell(name, self._furthest)
        except BaseException as error:  # ``serialize`` raises it after the build
            self.failure = error

    def _fraction(self, name: str) -> float:
        """Return the share of the whole that is done when a phase is where it is."""
        share, at, seen = 0.0, name, set[str]()
        # Names come from outside: a parent that is unknown or its own child must not loop here.
        while at in self._phases and at not in seen:
            seen.add(at)
            phase = self._phases[at]
            share = min((phase.done + share) / phase.steps, 1.0)
            at = phase.parent or ""
        return share


def make_monitor(library: ModuleType, progress: BuildProgress) -> Any:
    """Return an ``IProgressMonitor`` of a library that passes on what it is told."""

    class Monitor(library.IProgressMonitor):  # type: ignore[misc, name-defined]  # known only at run time
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)  # else its C++ half is missing

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return progress.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            progress.finish(phase_name)

    return Monitor()
