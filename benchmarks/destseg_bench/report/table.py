"""A table of a report, and its Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from destseg_bench.tables import NOTHING


@dataclass(frozen=True)
class Table:
    """What stands in one table.

    Attributes:
        title: A line above it.
        heads: Names of the columns.
        rows: As many cells each; the first column holds names.
        notes: Lines below it.
    """

    title: str
    heads: tuple[str, ...]
    rows: list[list[str]]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """Return it in Markdown, ending with a line feed."""
        lines = [f"**{self.title}**", "", *_grid(self.heads, self.rows)]
        for note in self.notes:
            lines += ["", note]
        return "\n".join(lines) + "\n"


def number(value: float | None, digits: int, unit: str = "") -> str:
    """Return a number with so many digits behind the point, or a dash for None."""
    return NOTHING if value is None else f"{value:.{digits}f}{unit}"


def _grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield _line(heads)
    yield _line(["---", *["--:"] * (len(heads) - 1)])
    for row in rows:
        yield _line(row)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
