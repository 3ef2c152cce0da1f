"""Contenders, timed in turns, so that whatever slows the machine down slows all of them.

Every contender is warmed up first. Then, round after round, each makes one call, in an order that
shifts by one from round to round. A clock that slows down, or another program that wakes up, then
favours no contender. A call ends when its answer is on the host, or when the device has finished.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from destseg_deploy.errors import BackendError
from destseg_deploy.options import Options

Call = Callable[[], object]

Advance = Callable[[int, int, str], None]
"""Is told the calls or images that are done, their total, and a name to show."""

SETTLE = 0.1
"""Seconds of rest before each call, not timed. The threads of the last contender spin for some
milliseconds after their work and take a core from the next one: two ONNX Runtime sessions taking
turns on two cores answered in 180 ms without a rest, and in 144 ms with one of 50 ms or more."""


def ignore(done: int, total: int, name: str) -> None:
    """Show no progress."""


@dataclass(frozen=True)
class Contender:
    """One way to run one artifact.

    Attributes:
        name: What tables call it; unique among those timed together.
        artifact: The file.
        precision: What it computes in.
        size: Height and width of its frames.
        back_end: Key of ``speed.contenders.CPU_BACK_ENDS``; empty for the one that the artifact's
            suffix names.
        device: ``cpu``, ``cuda`` or ``cuda:<index>``.
        threads: Threads within an operator, of the back ends that take it; 0 for their choice.
        torch_way: How PyTorch runs the checkpoint outside its runtime: ``reference``, ``eager``
            or ``compiled``, see ``speed.torch_contenders``. Empty for the runtime.
        origin: ``host`` or ``device``, see ``speed.contenders``.
        options: How its back end runs it; None for what ``back_end`` or the suffix says.
    """

    name: str
    artifact: Path
    precision: str
    size: tuple[int, int]
    back_end: str = ""
    device: str = "cpu"
    threads: int = 0
    torch_way: str = ""
    origin: str = "host"
    options: Options | None = None

    @property
    def concurrent(self) -> bool:
        """Whether calls may run at the same time; not where they share one buffer on the GPU."""
        return self.origin == "host"


@dataclass(frozen=True)
class Timing:
    """How long a call took, in milliseconds.

    Attributes:
        count: Calls that were timed.
        median: Half of the calls took at most this long.
        q1: A quarter did.
        q3: Three quarters did.
        p90: Nine of ten did.
        p99: 99 of 100 did; the longest call when there are fewer than 100.
        lowest: The fastest call.
    """

    count: int
    median: float
    q1: float
    q3: float
    p90: float
    p99: float
    lowest: float


def interleave(
    calls: Mapping[str, Call],
    *,
    rounds: int,
    warmup: int,
    settle: float = SETTLE,
    report: Advance = ignore,
) -> dict[str, list[float]]:
    """Time contenders in turn.

    Args:
        calls: Name -> the call; it returns when its answer is there.
        rounds: Timed calls of each contender.
        warmup: Calls of each contender before, not timed.
        settle: Seconds of rest before each call.
        report: Called after each call, those of the warm-up included.

    Returns:
        Name -> seconds of each call, in order.

    Raises:
        BackendError: If ``rounds`` or ``warmup`` is below 1; a first call without warm-up would be
            timed.
    """
    for name, number in (("rounds", rounds), ("warmup", warmup)):
        if number < 1:
            raise BackendError(f"{name}: {number}, expected at least 1.")
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    done, total = 0, (rounds + warmup) * len(names)
    for number in range(-warmup, rounds):
        first = number % len(names) if names else 0
        for name in (*names[first:], *names[:first]):
            time.sleep(settle)
            start = time.perf_counter()
            calls[name]()
            took = time.perf_counter() - start
            if number >= 0:
                seconds[name].append(took)
            done += 1
            report(done, total, name)
    return seconds


def at_once(call: Call, count: int, pool: Executor) -> Call:
    """Return a call that makes ``count`` calls at the same time and waits for all of them."""
    if count == 1:
        return call  # on the calling thread: a pool would add its own time

    def calls() -> object:
        return [pending.result() for pending in [pool.submit(call) for _ in range(count)]]

    return calls


def summarize_timing(seconds: Sequence[float]) -> Timing:
    """Return median, quartiles and tail of calls given in seconds, in milliseconds."""
    milliseconds = np.asarray(seconds, np.float64) * 1e3
    q1, median, q3 = np.percentile(milliseconds, [25, 50, 75])
    # A tail is not interpolated: p99 of few calls is the slowest one, not a value below it.
    p90, p99 = np.percentile(milliseconds, [90, 99], method="higher")
    return Timing(
        count=len(milliseconds),
        median=float(median),
        q1=float(q1),
        q3=float(q3),
        p90=float(p90),
        p99=float(p99),
        lowest=float(milliseconds.min()),
    )
