"""The table of what each rewrite is worth."""

from __future__ import annotations

from typing import Any

from destseg_bench.report.table import Table, number


def rewrites(result: dict[str, Any]) -> list[Table]:
    """Return one table for each batch size: time without each rewrite by the time with all."""
    rows = result["rows"]
    environment = result["environment"]
    where = f"{environment['cpu']}, {environment['cores']} cores"
    return [
        Table(
            f"What each rewrite is worth ({where}), batch {batch}",
            ("graph", "GMAC", *(f"{name} {what}" for name in _back_ends(rows) for what in WHAT)),
            _rows([row for row in rows if row["batch"] == batch]),
            (NOTE,),
        )
        for batch in dict.fromkeys(row["batch"] for row in rows)
    ]


WHAT = ("ms", "ratio", "95 %")
NOTE = (
    "Ratio: time without the rewrite by the time with all of them, in the same round. Below 1 the "
    "rewrite is a loss; where the interval holds 1, no difference was seen."
)


def _back_ends(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["back_end"] for row in rows))


def _rows(rows: list[dict[str, Any]]) -> list[list[str]]:
    found = []
    for name in dict.fromkeys(row["contender"] for row in rows):
        same = [row for row in rows if row["contender"] == name]
        cells = [name, number(same[0]["gmac"], 2)]
        for row in same:
            ratio = row["ratio"]
            cells += [number(row["milliseconds"]["median"], 1), number(ratio["median"], 3)]
            cells.append(f"{ratio['low']:.3f} to {ratio['high']:.3f}")
        found.append(cells)
    return found
