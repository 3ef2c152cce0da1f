"""Tables for a screen: ours beside the paper's, in per cent with one decimal as it prints them."""

from __future__ import annotations

from collections.abc import Sequence

from destseg_bench.paper import AVERAGE, OURS, PaperTable, PaperValue, paper_table
from destseg_bench.runs import METRICS, Measured
from destseg_bench.schedules import schedule_lines
from destseg_bench.statistic import Average, of, over_categories, over_seeds

MISSING = "missing"
NO_MASKS = "no masks"
NOTHING = "–"  # noqa: RUF001 - a dash, as in printed tables


def accuracy_lines(measured: Sequence[Measured]) -> list[str]:
    """Return our image AUROC beside Table S5, our PRO beside Table S6, and the pixel metrics.

    Args:
        measured: Runs, at most one of each category and seed.
    """
    return [
        *schedule_lines(measured),
        "",
        *_beside(paper_table("S5"), measured, "image_auroc"),
        "",
        *_beside(paper_table("S6"), measured, "pro"),
        "",
        *_pixel_lines(measured),
    ]


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines with columns of equal width, the first to the left."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def cell(value: object) -> str:
    """Return what stands in a table: the value, or a dash where there is none."""
    return NOTHING if value is None else str(value)


def _beside(paper: PaperTable, measured: Sequence[Measured], metric: str) -> list[str]:
    """Return one metric beside a table of the paper that has a row for each category."""
    systems = [OURS, *(name for name in paper.columns if name != OURS)]
    rows = [["category", "seeds", "ours", f"{OURS} (paper)", *systems[1:]]]
    for category in _all_categories(measured):
        known = category in paper.categories
        values = [paper.value(name, category) if known else None for name in systems]
        rows.append([category, *_ours(measured, category, metric), *map(cell, values)])
    average = over_categories(measured, paper.categories, of(metric))
    if average is not None:
        values = [_paper_average(paper, name, average.categories) for name in systems]
        rows.append([*_average_cells(average), *map(cell, values)])
    title = f"Table {paper.name}: {METRICS[metric]} (%), ours beside the paper's"
    return [title, *align(rows), *_average_notes(measured, average, metric)]


def _pixel_lines(measured: Sequence[Measured]) -> list[str]:
    metrics = ("pixel_auroc", "pixel_ap", "iap", "iap_at_90")
    rows = [["category", *(METRICS[metric] for metric in metrics)]]
    for category in _all_categories(measured):
        if any(one.category == category for one in measured):
            cells = [_ours(measured, category, metric)[1] for metric in metrics]
            rows.append([category, *cells])
    known = paper_table("S5").categories
    averages = [over_categories(measured, known, of(metric)) for metric in metrics]
    if first := next((found for found in averages if found is not None), None):
        cells = [cell(None if found is None else found.value) for found in averages]
        rows.append([_average_cells(first)[0], *cells])
    adopted = paper_table("S2")
    printed = [
        adopted.value("4", METRICS[m]) if METRICS[m] in adopted.rows else None for m in metrics
    ]
    rows.append(["the paper's average of 15", *map(cell, printed)])
    return [
        "Pixel and instance metrics (%) of ours; the paper's average from Table S2",
        *align(rows),
    ]


def _all_categories(measured: Sequence[Measured]) -> list[str]:
    """Return the paper's categories, then others that were measured."""
    return list(dict.fromkeys([*paper_table("S5").categories, *(m.category for m in measured)]))


def _ours(measured: Sequence[Measured], category: str, metric: str) -> tuple[str, str]:
    """Return the number of seeds of a category, and our value."""
    seeds = [one for one in measured if one.category == category]
    if not seeds:
        return NOTHING, MISSING
    found = over_seeds(seeds, category, of(metric))
    return str(len(seeds)), NO_MASKS if found is None else str(found)


def _average_cells(average: Average) -> list[str]:
    name = f"{AVERAGE} of {len(average.categories)}"
    return [name, str(len(average.seeds)), str(average.value)]


def _paper_average(paper: PaperTable, system: str, categories: Sequence[str]) -> PaperValue | None:
    """Return the printed average if we have all categories, else the mean over those we have."""
    if set(categories) == set(paper.categories):
        return paper.value(system, AVERAGE)
    return paper.mean_over(system, categories)


def _average_notes(measured: Sequence[Measured], average: Average | None, metric: str) -> list[str]:
    """Say what the average is of, and what it leaves out."""
    known = paper_table("S5").categories
    there = {m.category for m in measured if m.value(metric) is not None and m.category in known}
    used = () if average is None else average.categories
    notes = []
    if average is not None and len(used) < len(known):
        notes.append(
            f"the average, ours and the paper's, is over {', '.join(used)}: not the paper's of "
            f"all {len(known)}"
        )
    if there and (left := [name for name in known if name in there and name not in used]):
        notes.append(f"not in the average, since a seed of it is missing: {', '.join(left)}")
    return notes
