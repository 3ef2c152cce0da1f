"""The paper's numbers: as printed, all of them, and what its averages are averages of."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from destseg_bench.accuracy import paper
from destseg_bench.accuracy.paper import PaperValue, paper_table
from destseg_deploy.data.synthesis import PAPER_ROTATIONS
from destseg_deploy.errors import DataError

NAMES = ("S1", "S2", "S3", "S4", "S5", "S6")
OTHER_NAMES = {
    "img (AUC)": "image AUROC",
    "pix (AP)": "pixel AP",
    "ins (IAP)": "IAP",
    "Ours": "DeSTSeg",
    "training time (min)": "training time",
    "inference time (ms)": "inference time",
}


def plain(text: str) -> str:
    """Strip a cell of the supplement of marks, references and spaces."""
    for mark in ("<b>", "</b>", "$", " ", "(adopted)", "*"):
        text = text.replace(mark, "")
    return re.sub(r"\[\d\]", "", text).replace(r"\pm", "±")


def tables_of(text: str) -> list[list[list[str]]]:
    """Return the tables of the supplement: lines with tabs that follow one another."""
    found: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if "\t" in line:
            found[-1].append([plain(cell) for cell in line.split("\t")])
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


def as_printed(name: str) -> list[list[str]]:
    """Return a table of paper.json in the form of ``tables_of``, without names' spaces."""
    table = paper_table(name)
    rows = [
        [row, *("-" if value is None else str(value) for value in cells.values())]
        for row, cells in table.rows.items()
    ]
    return [[cell.replace(" ", "") for cell in row] for row in [["", *table.columns], *rows]]


def test_every_number_is_the_supplement_s(shared: Path) -> None:
    text = (shared / "reference/destseg_supplement.md").read_text(encoding="utf-8")
    names = {key.replace(" ", ""): value.replace(" ", "") for key, value in OTHER_NAMES.items()}
    printed = tables_of(text)
    assert len(printed) == len(NAMES)
    for name, table in zip(NAMES, printed, strict=True):
        known = [[names.get(cell, cell) for cell in row] for row in table]
        known[0][0] = ""
        assert as_printed(name) == known, name


def test_cells_are_read() -> None:
    assert paper_table("S5").value("DeSTSeg", "screw") == PaperValue(93.6, 2.6)
    assert paper_table("S6").value("STPM", "cable") == PaperValue(84.3)
    assert paper_table("S4").value("training time", "PatchCore") is None
    assert paper_table("S4").value("inference time", "PatchCore") == PaperValue(11.3, bound=True)
    assert str(paper_table("S4").value("inference time", "PatchCore")) == "> 11.3"
    assert str(paper_table("S5").value("DeSTSeg", "tile")) == "100.0 ± 0.0"


def test_the_categories_are_those_with_a_rotation() -> None:
    categories = paper_table("S5").categories
    assert len(categories) == 15
    assert set(categories) == set(PAPER_ROTATIONS)


@pytest.mark.parametrize("name", ["S5", "S6"])
def test_printed_averages_are_those_of_the_categories(name: str) -> None:
    table = paper_table(name)
    for system in table.columns:
        printed = table.value(system, "average")
        assert printed is not None
        difference = abs(table.mean_over(system, table.categories).mean - printed.mean)
        if (name, system) == ("S5", "DSR"):
            # 97.6 is what its column averages to; the table prints 98.2
            assert difference == pytest.approx(0.61, abs=0.01)
        else:
            assert difference <= 0.05 + 1e-9, system


def test_a_mean_over_some_categories() -> None:
    mean = paper_table("S6").mean_over("DeSTSeg", ["bottle", "cable"])
    assert mean == PaperValue(pytest.approx((96.6 + 86.4) / 2))
    for rows in (["STPM", "PatchCore"], []):
        with pytest.raises(DataError, match="no mean over"):
            paper_table("S4").mean_over("training time", rows)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("S7", "DeSTSeg", "screw"), r"table 'S7': expected one of S1, S2"),
        (("S5", "Ours", "screw"), r"Table S5: column 'Ours': expected one of US, STPM"),
        (("S5", "DeSTSeg", "nut"), r"Table S5: row 'nut': expected one of bottle"),
    ],
)
def test_unknown_names_are_refused(names: tuple[str, str, str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        paper_table(names[0]).value(*names[1:])


@pytest.mark.parametrize("cell", ["98", "98.6 +- 0.4", "about 98.6", "98.6 ± 0.4 "])
def test_a_damaged_cell_is_refused(cell: str) -> None:
    with pytest.raises(DataError, match=r"paper\.json: .*, expected a number such as"):
        paper._read_cell(cell)
