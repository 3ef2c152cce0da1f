"""The paper's own numbers, from paper.json: the tables of its supplement, values as printed.

A cell is what the paper shows: ``98.6``, ``98.6 ± 0.4``, ``> 11.3`` where it gives a bound, ``-``
where it gives nothing. Rows and columns keep the paper's order and names, with "Ours" called
DeSTSeg. Pages are those of the supplement where its reference list gives them away, by the pages
on which each work is cited: CutPaste and DSR stand in no table but S5 and on no page after 2, and
page 3 cites only the three that S6 has. The other tables' pages are null: unknown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from statistics import fmean
from typing import Any

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
        title: Its caption.
        section: Letter of the section that it belongs to.
        page: Page of the supplement; None where it is unknown.
        columns: Names of the columns.
        units: The unit of each column.
        rows: Row name -> a value for each column, None where the paper has a dash.
    """

    name: str
    title: str
    section: str
    page: int | None
    columns: tuple[str, ...]
    units: tuple[str, ...]
    rows: dict[str, tuple[PaperValue | None, ...]]

    def value(self, column: str, row: str) -> PaperValue | None:
        """Return a cell; None where the paper has a dash.

        Raises:
            DataError: If there is no such column or row.
        """
        _check_name(f"Table {self.name}: column", column, self.columns)
        _check_name(f"Table {self.name}: row", row, self.rows)
        return self.rows[row][self.columns.index(column)]

    @property
    def categories(self) -> tuple[str, ...]:
        """The rows but for the average."""
        return tuple(row for row in self.rows if row != AVERAGE)

    def mean_over(self, column: str, rows: Sequence[str]) -> PaperValue:
        """Return the mean of a column over some rows; no deviation can be told for it.

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
        name: ``S1`` to ``S6``, in capitals or not.

    Raises:
        DataError: If there is no such table.
    """
    text = resources.files("destseg_bench").joinpath("paper.json").read_text(encoding="utf-8")
    tables = json.loads(text)["tables"]
    _check_name("table", name.upper(), tables)
    return _read_table(name.upper(), tables[name.upper()])


def paper_value(table: str, column: str, row: str) -> PaperValue | None:
    """Return a number of the paper, such as that of ``"S5", "DeSTSeg", "screw"``.

    Raises:
        DataError: If there is no such table, column or row.
    """
    return paper_table(table).value(column, row)


def paper_categories() -> tuple[str, ...]:
    """Return the 15 categories of MVTec AD in the paper's order."""
    return paper_table("S5").categories


def _read_table(name: str, entry: dict[str, Any]) -> PaperTable:
    columns, units = tuple(entry["columns"]), tuple(entry["units"])
    rows = {
        row: tuple(_read_cell(name, cell) for cell in entry["rows"][row]) for row in entry["rows"]
    }
    for row, cells in {"units": units, **rows}.items():
        if len(cells) != len(columns):
            raise DataError(
                f"paper.json: Table {name}, {row}: {len(cells)} cells, expected {len(columns)}, "
                "one for each column. Install destseg-deploy again."
            )
    return PaperTable(name, entry["title"], entry["section"], entry["page"], columns, units, rows)


def _read_cell(table: str, text: str) -> PaperValue | None:
    if text == "-":
        return None
    found = CELL.fullmatch(text)
    if found is None:
        raise DataError(
            f"paper.json: Table {table}: {text!r}, expected a number such as 98.6 ± 0.4, or -. "
            "Install destseg-deploy again."
        )
    std = found["std"]
    return PaperValue(
        float(found["mean"]), None if std is None else float(std), bool(found["bound"])
    )


def _check_name(what: str, name: str, known: Sequence[str] | dict[str, Any]) -> None:
    if name not in known:
        raise DataError(f"{what} {name!r}: expected one of {', '.join(known)}.")
