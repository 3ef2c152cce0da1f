"""Which tables a result file has, by what it holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from destseg_bench.report import accuracy, speed
from destseg_bench.report.builds import builds
from destseg_bench.report.rewrites import rewrites
from destseg_bench.report.table import Table
from destseg_deploy.errors import DataError

Result = dict[str, Any]
Render = Callable[[Result], list[Table]]

BY_KIND: dict[str, Render] = {
    "table-s4": speed.table_s4,
    "systems": accuracy.systems,
    "accuracy": accuracy.runs,
    "cpu": speed.cpu,
    "latency": speed.latency,
    "training": speed.training,
    "cpp-overhead": speed.cpp_overhead,
    "half": accuracy.half,
    "agreement": accuracy.agreement,
    "builds": builds,
    "rewrites": rewrites,
}


def tables_of(result: Result, name: str) -> list[Table]:
    """Return the tables of a result.

    Args:
        result: What ``result_file.read_result`` returns.
        name: What to call it in an error.

    Raises:
        DataError: If it is of no known kind, or lacks what its kind has.
    """
    kind = kind_of(result)
    if kind not in BY_KIND:
        raise DataError(
            f"{name}: no table for it. Expected a result of {', '.join(BY_KIND)}; measure again."
        )
    try:
        return BY_KIND[kind](result)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise DataError(
            f"{name}: not all of a {kind} result is there ({error!r}). Measure again."
        ) from error


def kind_of(result: Result) -> str | None:
    """Return the kind of a result: what it says, or what its keys tell; None if nothing does."""
    if "kind" in result:
        return str(result["kind"])
    rows = result.get("rows") or [{}]
    first = rows[0] if isinstance(rows, list) and isinstance(rows[0], dict) else {}
    signs = {
        "builds": "builder" in result,
        "accuracy": "runs_planned" in result,
        "cpu": "latency" in result,
        "agreement": "trained" in result,
        "training": "contender" in first,
        "half": "variant" in first,
        "cpp-overhead": "overhead_ms" in first,
        "latency": "origin" in first,
    }
    return next((kind for kind, there in signs.items() if there), None)
