"""Our accuracy beside the paper's Tables S5 and S6: lines for a screen, and a summary for JSON.

Lines are in per cent with one decimal, as the paper prints them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from destseg_bench.accuracy.measure import METRICS, MeasuredRun
from destseg_bench.accuracy.paper import (
    AVERAGE,
    OURS,
    PaperTable,
    PaperValue,
    paper_table,
)
from destseg_bench.accuracy.schedules import schedule_lines
from destseg_bench.accuracy.spread import Average, of, over_categories, over_seeds
from destseg_bench.table import NOTHING, align, cell

MISSING = "missing"
NO_MASKS = "no masks"


def accuracy_lines(measured: Sequence[MeasuredRun]) -> list[str]:
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


def _beside(paper: PaperTable, measured: Sequence[MeasuredRun], metric: str) -> list[str]:
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


def _pixel_lines(measured: Sequence[MeasuredRun]) -> list[str]:
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


def _all_categories(measured: Sequence[MeasuredRun]) -> list[str]:
    """Return the paper's categories, then others that were measured."""
    return list(dict.fromkeys([*paper_table("S5").categories, *(m.category for m in measured)]))


def _ours(measured: Sequence[MeasuredRun], category: str, metric: str) -> tuple[str, str]:
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


def _average_notes(
    measured: Sequence[MeasuredRun], average: Average | None, metric: str
) -> list[str]:
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


def summarize(measured: Sequence[MeasuredRun]) -> dict[str, Any]:
    """Return mean and spread of each metric, by category and on average, ready for JSON.

    Args:
        measured: Runs, at most one of each category and seed.

    Returns:
        ``schedules``; ``categories``: category -> metric -> mean, std and count over seeds;
        ``average``: metric -> mean, std and count over seeds of the mean over those of the paper's
        categories that every seed has, with their names. Values in [0, 1], None where unknown.
    """
    names = dict.fromkeys(one.category for one in measured)
    return {
        "schedules": schedule_lines(measured),
        "categories": {name: _category(measured, name) for name in names},
        "average": {metric: _average(measured, metric) for metric in METRICS},
    }


def _category(measured: Sequence[MeasuredRun], name: str) -> dict[str, Any]:
    values: dict[str, Any] = {"seeds": [one.seed for one in measured if one.category == name]}
    for metric in METRICS:
        found = over_seeds(measured, name, of(metric))
        values[metric] = None if found is None else asdict(found)
    return values


def _average(measured: Sequence[MeasuredRun], metric: str) -> dict[str, Any] | None:
    found = over_categories(measured, paper_table("S5").categories, of(metric))
    if found is None:
        return None
    return {**asdict(found.value), "categories": found.categories, "seeds": found.seeds}
