"""The figure of the report: time per image against image AUROC, where both are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from destseg_bench.report.speed_tables import milliseconds
from destseg_bench.report.tables import kind_of
from destseg_bench.results import naming
from destseg_deploy.errors import BackendError
from destseg_deploy.text import printable

COLOURS = 10
"""Colours in matplotlib's cycle; when they are used up, the next points get another marker."""

MARKERS = ("o", "s", "^")

LONGEST = 100
"""Characters of a name in the figure; a longer one leaves no room for the axes."""


@dataclass(frozen=True)
class Point:
    """A contender of which both time and accuracy are known.

    Attributes:
        name: Its name in the tables.
        milliseconds: Per image at batch 1, median.
        auroc: Image AUROC in [0, 1].
        group: The data set and how the models were trained; each group has axes of its own.
    """

    name: str
    milliseconds: float
    auroc: float
    group: str


def find_points(results: Mapping[str, dict[str, Any]]) -> list[Point]:
    """Return the contenders of which results hold both time and accuracy.

    Systems have their time in ``table-s4`` results and their accuracy in ``systems`` results; a CPU
    study holds both.

    Args:
        results: What to call each in an error -> the result.

    Raises:
        DataError: If one is damaged.
    """
    points: list[Point] = []
    times: dict[str, float] = {}
    for name, result in results.items():
        with naming(name):
            times |= _times(result)
    for name, result in results.items():
        with naming(name):
            if kind_of(result) == "systems":
                points += _trained(result, times)
            elif kind_of(result) == "cpu":
                points += _on_cpu(result)
    return points


def _times(result: dict[str, Any]) -> dict[str, float]:
    """Return the milliseconds of each system in a ``table-s4`` result."""
    if kind_of(result) != "table-s4":
        return {}
    found = {name: milliseconds(row, "model") for name, row in result["systems"].items()}
    return {name: value for name, value in found.items() if value is not None}


def _trained(result: dict[str, Any], times: dict[str, float]) -> list[Point]:
    group = f"systems, {result['category']}, {result['schedule']} schedule"
    return [
        Point(row["name"], times[name], float(row["metrics"]["image AUROC"]), group)
        for name, row in result["systems"].items()
        if name in times and "metrics" in row
    ]


def _on_cpu(result: dict[str, Any]) -> list[Point]:
    group = f"DeSTSeg on a CPU, {result['data']}"
    return [
        Point(
            row["name"],
            float(row["median"]),
            float(result["accuracy"][row["name"]]["image AUROC"]),
            group,
        )
        for row in result["latency"]
        if row["batch"] == 1 and "median" in row and row["name"] in result.get("accuracy", {})
    ]


def draw_speed_and_accuracy(points: Sequence[Point], path: Path) -> None:
    """Write a PNG with the points of each group, time against image AUROC.

    Raises:
        BackendError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise BackendError(
            "matplotlib is not installed. pip install 'destseg-deploy[plots]' for the figure."
        ) from None
    groups = list(dict.fromkeys(point.group for point in points))
    figure = Figure(figsize=(9, 3.8 * len(groups)), layout="constrained")
    for i, group in enumerate(groups):
        axes = figure.add_subplot(len(groups), 1, i + 1)
        _draw_group(axes, group, [point for point in points if point.group == group])
    figure.savefig(path, format="png", dpi=130)


def _draw_group(axes: Any, group: str, points: Sequence[Point]) -> None:
    """Draw points and their legend beside the axes: names next to the points would overlap."""
    for i, point in enumerate(sorted(points, key=lambda point: point.milliseconds)):
        label = f"{point.milliseconds:.0f} ms, {100 * point.auroc:.1f} %: {_text(point.name)}"
        marker = MARKERS[i // COLOURS % len(MARKERS)]
        axes.scatter(point.milliseconds, 100 * point.auroc, s=55, label=label, marker=marker)
    axes.set_xlim(left=0)
    axes.margins(x=0.08, y=0.15)
    axes.set_title(_text(group), fontsize=10)
    axes.set_xlabel("milliseconds per image, batch 1, median")
    axes.set_ylabel("image AUROC, %")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False)


def _text(name: str) -> str:
    """Return a name that matplotlib can draw: half a pair of surrogates has no letter."""
    return printable(str(name))[:LONGEST].replace("$", r"\$")
