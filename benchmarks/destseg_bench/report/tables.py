"""Which tables a result has, by its kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from destseg_bench.report import accuracy_tables, speed_tables
from destseg_bench.results import naming
from destseg_bench.table import Table
from destseg_deploy.errors import DataError

Result = dict[str, Any]

TABLES: dict[str, Callable[[Result], list[Table]]] = {
    "table-s4": speed_tables.table_s4,
    "systems": accuracy_tables.systems,
    "accuracy": accuracy_tables.runs,
    "cpu": speed_tables.cpu,
    "latency": speed_tables.latency,
    "layers": speed_tables.layers,
    "rates": speed_tables.rates,
    "training": speed_tables.training,
    "cpp-overhead": speed_tables.cpp_overhead,
    "half": accuracy_tables.half,
    "int8": accuracy_tables.int8,
    "agreement": accuracy_tables.agreement,
    "builds": speed_tables.builds,
    "rewrites": speed_tables.fusions,
}
"""Kind of a result -> the function that makes its tables."""


def tables_of(result: Result, name: str) -> list[Table]:
    """Return the tables of a result.

    Args:
        result: What ``results.read_result`` returns.
        name: What to call the result in an error.

    Raises:
        DataError: If the kind is unknown, or something that its tables need is missing.
    """
    kind = kind_of(result)
    if kind not in TABLES:
        raise DataError(
            f"{name}: no table for it. Expected a result of {', '.join(TABLES)}; measure again."
        )
    with naming(name, f"not all of a {kind} result is there, or it is damaged"):
        return TABLES[kind](result)


def kind_of(result: Result) -> str | None:
    """Return the kind of a result; None if it is unknown.

    Older files, and those of the exporter's studies and of the C++ test, do not name their kind;
    it follows from their keys.
    """
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
