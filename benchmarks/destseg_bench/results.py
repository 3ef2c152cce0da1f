"""Result files: how every command writes one, and how two of them are compared.

A file is complete JSON at any moment: it is written under a temporary name and renamed, after each
part of a measurement. It always says what made it: command, time, commit, hardware and versions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from destseg_deploy.environment import describe_environment
from destseg_deploy.errors import DataError
from destseg_deploy.files import refuse_others, replacing
from destseg_deploy.spec.reading import show
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
        DataError: If the file does not exist, is no JSON, or has no ``environment``, or a time in
            it is none.
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
    with naming(str(path)):
        _check_object(found["environment"], "environment")
        _check_object(found["environment"].get("versions", {}), "versions")
        for _ in _timings(found):
            pass
    return found


@contextmanager
def naming(name: str, what: str = "damaged, or not all of it is there") -> Iterator[None]:
    """Turn what a damaged result raises into one line with its file and the entry.

    Raises:
        DataError: In place of the exceptions that missing entries and other types lead to.
    """
    try:
        yield
    except KeyError as error:
        raise DataError(f"{name}: {what} ({error} is missing). Measure again.") from error
    except (IndexError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise DataError(f"{name}: {what} ({error}). Measure again.") from error


def _check_object(value: object, where: str) -> None:
    if not isinstance(value, dict):
        raise TypeError(f"{where} is {show(value)}, expected an object")


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
        """The second median divided by the first; what took no time cannot be divided by."""
        if self.first.median == 0:
            return 1.0 if self.second.median == 0 else math.inf
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
        TypeError, ValueError: If a time is damaged; ``read_result`` refuses those.
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
    """Yield the name and the time of every entry of a result that holds a ``Timing``.

    Raises:
        TypeError, ValueError: If one is damaged.
    """
    for key in ("rows", "latency", "artifacts"):
        for i, row in enumerate(_items(result, key)):
            if _is_timing(row):
                where = f"{key}[{i}]"
                several = f", {row['streams']} streams" if row.get("streams", 1) != 1 else ""
                name = f"{_entry(row, 'name', where)}, batch {_entry(row, 'batch', where)}{several}"
                yield name, _measured(row, f"{where} ({name})")
    for name, timing in _stages(result):
        if _is_timing(timing):
            yield name, _measured(timing, name)


def _stages(result: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the name and the time of every stage of the systems in a result."""
    systems = result.get("systems", {})
    _check_object(systems, "systems")
    for system, row in systems.items():
        _check_object(row, system)
        batches = row.get("inference", {})
        _check_object(batches, f"{system}: inference")
        for batch, clocks in batches.items():
            _check_object(clocks, f"{system}, batch {batch}")
            for clock, stages in clocks.items():
                _check_object(stages, f"{system}, batch {batch}, {clock}")
                for stage, timing in stages.items():
                    yield f"{system}, batch {batch}, {clock}, {stage}", timing


def _items(result: dict[str, Any], key: str) -> list[Any]:
    """Return the entries of a list; other kinds of results may have something else there."""
    found = result.get(key)
    return found if isinstance(found, list) else []


def _is_timing(row: Any) -> bool:
    return isinstance(row, dict) and "median" in row and "q1" in row


def _entry(row: dict[str, Any], key: str, where: str) -> Any:
    if key not in row:
        raise ValueError(f"{where}: {key} is missing")
    return row[key]


def _measured(timing: dict[str, Any], where: str) -> Measured:
    median, q1, q3, count = (_number(timing, key, where) for key in ("median", "q1", "q3", "count"))
    if q3 < q1 or count < 1:
        raise ValueError(
            f"{where}: q1 {q1:g}, q3 {q3:g}, count {count:g}, expected q1 at most q3, and a count "
            "of at least 1"
        )
    return Measured(median, NOTCH * (q3 - q1) / math.sqrt(count))


def _number(timing: dict[str, Any], key: str, where: str) -> float:
    value = _entry(timing, key, where)
    # The comparison refuses NaN as well, and whole numbers that no float holds.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e300:
        raise ValueError(f"{where}: {key} is {show(value)}, expected a number of at least 0")
    return float(value)


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
            notch = math.hypot(value.notch, share * base.notch) / base.median
            shares[key] = Measured(share, notch)
    return shares
