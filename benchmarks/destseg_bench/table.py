"""A table of measurements: as Markdown for a page, as aligned text for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from destseg_deploy.text import printable

NOTHING = "–"  # noqa: RUF001 - an en dash, as printed tables have it

Column = tuple[str, Callable[[Any], str]]
"""A head, and the function that makes a row's cell from what was measured."""


@dataclass(frozen=True)
class Table:
    """A table, ready to be printed.

    Attributes:
        title: One line above it.
        heads: Names of the columns.
        rows: Cells of each row, as many as there are heads. The first column holds names.
        notes: Paragraphs below it.
    """

    title: str
    heads: tuple[str, ...]
    rows: list[list[str]]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        title: str,
        columns: Sequence[Column],
        measured: Iterable[Any],
        notes: tuple[str, ...] = (),
    ) -> Table:
        """Return a table with a row for each thing measured and a cell for each column.

        Raises:
            ValueError: If a cell cannot be made of what was measured; it names row and column.
        """
        rows = [
            [_made(make, one, f"row {i}, {head}") for head, make in columns]
            for i, one in enumerate(measured, 1)
        ]
        heads, said = tuple(head for head, _ in columns), tuple(map(printable, notes))
        return cls(printable(title), heads, rows, said)

    def markdown(self) -> str:
        """Return the table in Markdown, ending with a line feed."""
        grid = [self.heads, ["---", *["--:"] * (len(self.heads) - 1)], *self.rows]
        # A bar inside a cell would end it.
        lines = [f"| {' | '.join(c.replace('|', chr(92) + '|') for c in row)} |" for row in grid]
        parts = [f"**{self.title}**", "\n".join(lines), *self.notes]
        return "\n\n".join(parts) + "\n"

    def text(self) -> str:
        """Return the table for a terminal: title, aligned columns and notes."""
        return "\n".join([self.title, *align([self.heads, *self.rows]), *self.notes])


def _made(make: Callable[[Any], str], measured: Any, where: str) -> str:
    try:
        return printable(make(measured))
    except KeyError as error:
        raise ValueError(f"{where}: {error} is missing") from error
    except (IndexError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"{where}: {error}") from error


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines with columns of equal width; the first one is flush left."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def column(
    head: str, key: str, digits: int | None = None, unit: str = "", *, optional: bool = False
) -> Column:
    """Return a column with the values of one key; None is shown as a dash.

    Args:
        head: Name of the column.
        key: Key of each measured dictionary.
        digits: Decimals of a number; None to show the value as it is.
        unit: Follows each number.
        optional: Show a dash where the key is missing, too, instead of failing.
    """

    def make(row: dict[str, Any]) -> str:
        value = row.get(key) if optional else row[key]
        return cell(value) if digits is None else number(value, digits, unit)

    return head, make


def number(value: float | None, digits: int, unit: str = "") -> str:
    """Return a number with ``digits`` decimals and its unit; a dash for None.

    Raises:
        TypeError: If it is no number, such as in a damaged result.
    """
    try:
        return NOTHING if value is None else f"{value:.{digits}f}{unit}"
    except (ValueError, TypeError):
        raise TypeError(f"{value!r:.40} is no number") from None


def cell(value: object) -> str:
    """Return a value as text; a dash for None."""
    return NOTHING if value is None else str(value)
