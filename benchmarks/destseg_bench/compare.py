"""Two result files side by side: which times differ by more than their spread.

Each median has a notch of 1.57 times the interquartile range over the root of the number of calls
(McGill, Tukey and Larsen, 1978): notches that do not overlap differ at about 95 %. They know the
spread within a run, not that between two; differences below ``FLOOR`` are never called any.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from destseg_deploy.errors import DataError

FLOOR = 0.02
"""Relative difference of medians below which two runs agree whatever their spread."""


@dataclass(frozen=True)
class Measured:
    """A median and its notch, in one unit.

    Attributes:
        median: The middle of the calls.
        notch: Half of its interval.
        count: Calls.
    """

    median: float
    notch: float
    count: int


@dataclass(frozen=True)
class Difference:
    """A time in both files.

    Attributes:
        name: What was timed.
        first: In the first file.
        second: In the second.
    """

    name: str
    first: Measured
    second: Measured

    @property
    def ratio(self) -> float:
        """The second median over the first."""
        return self.second.median / self.first.median

    @property
    def seen(self) -> bool:
        """Whether the notches are apart and the medians differ by more than ``FLOOR``."""
        apart = abs(self.first.median - self.second.median)
        wide = self.first.notch + self.second.notch
        return apart > wide and abs(self.ratio - 1) > FLOOR

    @property
    def verdict(self) -> str:
        """In words."""
        if not self.seen:
            return "no difference seen"
        return "faster" if self.ratio < 1 else "slower"


def compare_results(
    first: dict[str, Any], second: dict[str, Any]
) -> tuple[list[Difference], list[str]]:
    """Compare the times that two results share.

    Args:
        first: A result of ``latency``, ``cpu`` or ``table-s4``.
        second: Another.

    Returns:
        The times in both, in the first's order, and the names of those in one alone.
    """
    a, b = dict(_timings(first)), dict(_timings(second))
    shared = [Difference(name, a[name], b[name]) for name in a if name in b]
    return shared, [name for name in (*a, *b) if (name in a) != (name in b)]


def relative_to(result: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a result whose times are shares of one contender's, at the same batch and stage.

    What the machine did to a whole run drops out of them.

    Args:
        result: As for ``compare_results``.
        name: A contender or system of it.

    Raises:
        DataError: If it is not there.
    """
    timings = dict(_timings(result))
    bases = {key[len(name) :]: value for key, value in timings.items() if _is_of(key, name)}
    if not bases:
        names = dict.fromkeys(key.split(", batch")[0] for key in timings)
        raise DataError(f"{name!r}: not among {', '.join(names) or 'any times'}.")
    shares = {}
    for key, value in timings.items():
        base = bases.get(key[key.index(", batch") :])
        if base is not None and base.median > 0 and not _is_of(key, name):
            shares[key] = _share(value, base)
    return {**result, "shares": shares}


def _is_of(key: str, name: str) -> bool:
    return key.startswith(f"{name}, batch ")


def _share(value: Measured, base: Measured) -> Measured:
    share = value.median / base.median
    relative = math.hypot(value.notch / value.median, base.notch / base.median)
    return Measured(share, share * relative, min(value.count, base.count))


def differing_conditions(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Return what was not the same in both runs, a line each."""
    pairs = [(key, first.get(key), second.get(key)) for key in ("device", "threads", "tf32")]
    one, other = first["environment"], second["environment"]
    pairs += [(key, one.get(key), other.get(key)) for key in ("cpu", "gpu", "cores", "commit")]
    versions, others = one.get("versions", {}), other.get("versions", {})
    names = sorted({*versions, *others})
    pairs += [(name, versions.get(name), others.get(name)) for name in names]
    return [f"{key}: {a} and {b}" for key, a, b in pairs if a != b]


def _timings(result: dict[str, Any]) -> Iterator[tuple[str, Measured]]:
    """Yield every dictionary that holds a ``Timing``, by the path to it."""
    if "shares" in result:
        yield from result["shares"].items()
        return
    for key in ("rows", "latency", "artifacts"):
        for row in result.get(key, []):
            if "median" in row and "q1" in row:
                streams = row.get("streams", 1)
                several = f", {streams} streams" if streams > 1 else ""
                yield f"{row['name']}, batch {row['batch']}{several}", _measured(row)
    for system, row in result.get("systems", {}).items():
        for batch, clocks in row.get("inference", {}).items():
            for clock, stages in clocks.items():
                for stage, timing in stages.items():
                    yield f"{system}, batch {batch}, {clock}, {stage}", _measured(timing)


def _measured(timing: dict[str, Any]) -> Measured:
    count = int(timing["count"])
    spread = timing["q3"] - timing["q1"]
    return Measured(timing["median"], 1.57 * spread / math.sqrt(count), count)
