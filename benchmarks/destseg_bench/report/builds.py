"""The table of engines that were built ahead of time."""

from __future__ import annotations

from typing import Any

from destseg_bench.report.table import Table, number
from destseg_bench.tables import NOTHING


def builds(result: dict[str, Any]) -> list[Table]:
    """Return size, time and half convolutions of each build, or why it was refused."""
    heads = (
        "input",
        "precision",
        "targets",
        "engine MB",
        "parse s",
        "build s",
        "half convolutions",
    )
    rows = []
    for row in result["rows"]:
        what = ["x".join(map(str, row["input"])), row["precision"], ", ".join(row["targets"])]
        if "refused" in row:
            rows.append([*what, *[NOTHING] * 3, f"refused: {row['refused']}"])
            continue
        counted = f"{row['half_convolutions']} of {row['convolutions']}"
        sizes = [number(row["engine_bytes"] / 1e6, 1)]
        sizes += [number(row[key], 2) for key in ("parse_seconds", "build_seconds")]
        rows.append([*what, *sizes, counted])
    title = f"Engines by {result['builder']}, batch {result['batch']}"
    return [Table(title, heads, rows, ("Built without a GPU, and run on none.",))]
