"""Result files: how every command writes one, and how two of them are compared.

A file is complete JSON at any moment: it is written under a temporary name and renamed, after each
part of a measurement. It always says what made it: command, time, commit, hardware and versions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from destseg_deploy.environment import describe_environment
from destseg_deploy.errors import DataError
from destseg_deploy.files import refuse_others, replacing
from destseg_deploy.text import load_json

FLOOR = 0.02
"""Relative difference of two medians below which no difference is claimed, whatever the spread."""

NOTCH = 1.57
"""Half a notch is this times the interquartile range, divided by the root of the number of calls.
Two medians whose notches do not overlap differ at about the 95 % level (McGill, Tukey and Larsen,
"Variations of Box Plots", 1978). The notch knows the spread within a run, not between runs."""


def start_result(kind: str, **settings: Any) -> dict[str, Any]:
    """Return a result that holds no measurement yet.

    Args:
        kind: The command that measures; ``report.tables`` finds the tables by it.
        settings: What was asked for, ready for JSON.

    Returns:
        ``kind``, ``environment`` and the settings. Call this before measuring: the environment
        holds the time.
    """
    return {"kind": kind, "environment": describe_environment(), **settings}


def write_result(output: Path | None, result: dict[str, Any]) -> None:
    """Write a result under a temporary name and rename it, so that no file is ever half written.

    Args:
        output: JSON file; None writes nothing.
        result: What ``start_result`` returned, with measurements.

    Raises:
        OutputError: If the file exists and is no result.
        OSError: If the file cannot be written.
    """
    if output is not None:
        refuse_others([output], _is_result)
        with replacing(output) as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _is_result(path: Path) -> bool:
    try:
        return bool(read_result(path))
    except (DataError, OSError):
        return False


def require_rows(systems: dict[str, Any]) -> None:
    """Refuse a result in which every system was skipped.

    Raises:
        DataError: With each system's reason.
    """
    if all("skipped" in row for row in systems.values()):
        reasons = "; ".join(f"{name}: {row['skipped']}" for name, row in systems.items())
        raise DataError(f"nothing was measured. {reasons}")


def read_result(path: Path) -> dict[str, Any]:
    """Read a result file.

    Raises:
        DataError: If the file does not exist, is no JSON, or has no ``environment``.
    """
    try:
        found = load_json(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. Expected JSON that destseg-bench wrote.") from None
    except (ValueError, RecursionError) as error:  # RecursionError: JSON nested too deeply
        raise DataError(f"{path}: no JSON ({error}). Measure again with destseg-bench.") from error
    if not isinstance(found, dict) or "environment" not in found:
        raise DataError(
            f"{path}: no result of destseg-bench, because it has no 'environment'. Measure again."
        )
    return found


@dataclass(frozen=True)
class Measured:
    """A median and its notch, in milliseconds or as a share.

    Attributes:
        median: Of all calls.
        notch: Half the width of the notch, see ``NOTCH``.
    """

    median: float
    notch: float


@dataclass(frozen=True)
class Difference:
    """A time that is in both results.

    Attributes:
        name: Contender, batch, and where there are several, streams, clock and stage.
        first: The time in the first result.
        second: The time in the second result.
    """

    name: str
    first: Measured
    second: Measured

    @property
    def ratio(self) -> float:
        """The second median divided by the first."""
        return self.second.median / self.first.median

    @property
    def seen(self) -> bool:
        """Whether the notches do not overlap and the medians differ by more than ``FLOOR``."""
        apart = abs(self.first.median - self.second.median)
        return apart > self.first.notch + self.second.notch and abs(self.ratio - 1) > FLOOR

    @property
    def verdict(self) -> str:
        """``faster``, ``slower`` or ``no difference seen``: the second result beside the first."""
        if not self.seen:
            return "no difference seen"
        return "faster" if self.ratio < 1 else "slower"


def compare_results(
    first: dict[str, Any], second: dict[str, Any], *, relative_to: str | None = None
) -> tuple[list[Difference], list[str]]:
    """Compare the times that two results share.

    Args:
        first: A result of ``latency``, ``cpu`` or ``table-s4``.
        second: Another one.
        relative_to: A contender or system of both results. Given, the shares of its time at the
            same batch and stage are compared, so that a machine that was slower in one run does
            not count as a difference.

    Returns:
        The times in both results, in the first one's order; and the names of those that only one
        result has.

    Raises:
        DataError: If ``relative_to`` is not in both results.
    """
    a, b = dict(_timings(first)), dict(_timings(second))
    if relative_to is not None:
        a, b = _shares(a, relative_to), _shares(b, relative_to)
    shared = [Difference(name, a[name], b[name]) for name in a if name in b]
    return shared, [name for name in (*a, *b) if (name in a) != (name in b)]


def differing_conditions(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Return settings, hardware and versions that were not the same in both runs, a line each."""
    pairs = [(key, first.get(key), second.get(key)) for key in ("device", "threads", "tf32")]
    one, other = first["environment"], second["environment"]
    pairs += [(key, one.get(key), other.get(key)) for key in ("cpu", "gpu", "cores", "commit")]
    versions, others = one.get("versions", {}), other.get("versions", {})
    names = sorted({*versions, *others})
    pairs += [(name, versions.get(name), others.get(name)) for name in names]
    return [f"{key}: {a} and {b}" for key, a, b in pairs if a != b]


def _timings(result: dict[str, Any]) -> Iterator[tuple[str, Measured]]:
    """Yield the name and the time of every entry of a result that holds a ``Timing``."""
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
    spread = timing["q3"] - timing["q1"]
    return Measured(timing["median"], NOTCH * spread / math.sqrt(timing["count"]))


def _shares(timings: dict[str, Measured], name: str) -> dict[str, Measured]:
    """Return every time divided by one contender's time at the same batch, streams and stage."""
    start = f"{name}, batch "
    bases = {key[len(name) :]: value for key, value in timings.items() if key.startswith(start)}
    if not bases:
        names = dict.fromkeys(key.split(", batch")[0] for key in timings)
        raise DataError(f"{name!r}: not among {', '.join(names) or 'any times'}.")
    shares = {}
    for key, value in timings.items():
        base = bases.get(key[key.index(", batch") :])
        if base is not None and base.median > 0 and not key.startswith(start):
            share = value.median / base.median
            # Relative errors of independent factors add in squares.
            spread = math.hypot(value.notch / value.median, base.notch / base.median)
            shares[key] = Measured(share, share * spread)
    return shares
