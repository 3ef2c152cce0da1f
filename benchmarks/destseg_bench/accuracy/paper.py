"""The paper's own numbers, from paper.json: the tables of its supplement, values as printed.

A cell is what the paper shows: ``98.6``, ``98.6 ± 0.4``, ``> 11.3`` where it gives a bound, ``-``
where it gives nothing. Rows and columns keep the paper's order and names, with "Ours" called
DeSTSeg. The file also has each table's title, section and units, and its page in the supplement
where the reference list, which names the citing pages of each work, fixes it; null where it does
not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib import resources
from statistics import fmean

from destseg_deploy.errors import DataError

OURS = "DeSTSeg"
AVERAGE = "average"
CELL = re.compile(r"(?P<bound>> )?(?P<mean>\d+\.\d)(?: ± (?P<std>\d+\.\d))?")


@dataclass(frozen=True)
class PaperValue:
    """A number of the paper, in its table's unit.

    Attributes:
        mean: The value; the paper gives one decimal.
        std: Its standard deviation; None where the paper gives none.
        bound: Whether the paper says that the true value is larger.
    """

    mean: float
    std: float | None = None
    bound: bool = False

    def __str__(self) -> str:
        """Return the value as printed."""
        spread = "" if self.std is None else f" ± {self.std:.1f}"
        return f"{'> ' if self.bound else ''}{self.mean:.1f}{spread}"


@dataclass(frozen=True)
class PaperTable:
    """A table of the supplement.

    Attributes:
        name: ``S1`` to ``S6``.
        columns: Names of the columns.
        rows: Row name -> column name -> value; None where the paper has a dash.
    """

    name: str
    columns: tuple[str, ...]
    rows: dict[str, dict[str, PaperValue | None]]

    @property
    def categories(self) -> tuple[str, ...]:
        """The rows but for the average: in S5 and S6 the 15 categories of MVTec AD."""
        return tuple(row for row in self.rows if row != AVERAGE)

    def value(self, column: str, row: str) -> PaperValue | None:
        """Return a cell; None where the paper has a dash.

        Raises:
            DataError: If there is no such column or row.
        """
        _check_name(f"Table {self.name}: column", column, self.columns)
        _check_name(f"Table {self.name}: row", row, self.rows)
        return self.rows[row][column]

    def mean_over(self, column: str, rows: Sequence[str]) -> PaperValue:
        """Return the mean of a column over some rows, without a deviation: it cannot be known.

        Raises:
            DataError: If a row is not there or has no value, or none was given.
        """
        values = [self.value(column, row) for row in rows]
        known = [value.mean for value in values if value is not None]
        if not known or len(known) < len(values):
            raise DataError(
                f"Table {self.name}, {column}: no mean over {', '.join(rows) or 'no rows'}. "
                "Expected rows that each have a value."
            )
        return PaperValue(fmean(known))


def paper_table(name: str) -> PaperTable:
    """Return a table of the paper.

    Args:
        name: ``S1`` to ``S6``.

    Raises:
        DataError: If there is no such table.
    """
    text = (resources.files("destseg_bench.accuracy") / "paper.json").read_text("utf-8")
    tables = json.loads(text)["tables"]
    _check_name("table", name, tables)
    columns = tuple(tables[name]["columns"])
    rows = {
        row: dict(zip(columns, map(_read_cell, cells), strict=True))
        for row, cells in tables[name]["rows"].items()
    }
    return PaperTable(name, columns, rows)


def _read_cell(text: str) -> PaperValue | None:
    if text == "-":
        return None
    found = CELL.fullmatch(text)
    if found is None:
        raise DataError(
            f"paper.json: {text!r}, expected a number such as 98.6 ± 0.4, or -. Install "
            "destseg-deploy again."
        )
    std = found["std"]
    return PaperValue(
        float(found["mean"]), None if std is None else float(std), bool(found["bound"])
    )


def _check_name(what: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise DataError(f"{what} {name!r}: expected one of {', '.join(known)}.")
