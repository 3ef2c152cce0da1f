"""The timing protocol: contenders take turns, so that what the machine does meets all of them.

Each is warmed up first. Then, round after round, each does one call, in an order that shifts by one
from round to round; a clock that slows down, or a neighbour that wakes up, is nobody's advantage. A
call counts from before to after, with its answer on the host or the device's work waited for.

Before each call the machine settles: threads of the contender before spin on for some milliseconds
after their last work, and take a core from the next one. Two ONNX Runtime sessions in turns on two
cores answered in 180 ms without a pause, and in 144 ms with one of 50 ms or more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from destseg_deploy.errors import BackendError

Call = Callable[[], object]

SETTLE = 0.1
"""Seconds between calls, which are not timed."""


@dataclass(frozen=True)
class Timing:
    """How long a call took, in milliseconds.

    Attributes:
        count: Calls that were timed.
        median: Half of them took at most this long.
        q1: A quarter did.
        q3: Three quarters did.
        p90: Nine of ten did.
        p99: 99 of 100 did; the longest when there are fewer than 100.
        lowest: The fastest.
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
    report: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> dict[str, list[float]]:
    """Time contenders in turn.

    Args:
        calls: Name -> the call; it returns when its answer is there.
        rounds: Calls of each that count.
        warmup: Calls of each before, which do not.
        settle: Seconds of rest before each call.
        report: Called with the calls done, all calls, and the contender.

    Returns:
        Name -> seconds of each call, in order.

    Raises:
        BackendError: If a number is below 1; an unwarmed first call would count.
    """
    for name, number in (("rounds", rounds), ("warmup", warmup)):
        if number < 1:
            raise BackendError(f"{name}: {number}, expected at least 1.")
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    done, total = 0, (rounds + warmup) * len(names)
    for number in range(-warmup, rounds):
        for name in _turn(names, number):
            time.sleep(settle)
            start = time.perf_counter()
            calls[name]()
            took = time.perf_counter() - start
            if number >= 0:
                seconds[name].append(took)
            done += 1
            report(done, total, name)
    return seconds


def _turn(names: Sequence[str], number: int) -> list[str]:
    """Return the order of a round: the next one begins, the first goes last."""
    first = number % len(names) if names else 0
    return [*names[first:], *names[:first]]


def summarize_timing(seconds: Sequence[float]) -> Timing:
    """Return median and spread, in milliseconds."""
    milliseconds = np.asarray(seconds, np.float64) * 1e3
    q1, median, q3 = np.percentile(milliseconds, [25, 50, 75])
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
