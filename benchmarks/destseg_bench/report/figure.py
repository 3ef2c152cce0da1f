"""The figure of the report: time per image against image AUROC, where both are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from destseg_bench.report.tables import kind_of
from destseg_bench.s4_text import milliseconds
from destseg_deploy.errors import BackendError


@dataclass(frozen=True)
class Point:
    """A way to judge an image.

    Attributes:
        name: What it is.
        milliseconds: Per image at batch 1, median.
        auroc: Image AUROC in [0, 1].
        group: Points of a group share a colour: what was judged, and how it was trained.
    """

    name: str
    milliseconds: float
    auroc: float
    group: str


def find_points(results: Sequence[dict[str, Any]]) -> list[Point]:
    """Return what results tell of both time and accuracy.

    Systems take their time from Table S4 results and their accuracy from ``systems`` results; a CPU
    study has both.
    """
    points: list[Point] = []
    times: dict[str, float] = {}
    for result in results:
        if kind_of(result) == "table-s4":
            for name, row in result["systems"].items():
                if (found := milliseconds(row, "model")) is not None:
                    times[name] = found
    for result in results:
        if kind_of(result) == "systems":
            points += _trained(result, times)
        elif kind_of(result) == "cpu":
            points += _setups(result)
    return points


def _trained(result: dict[str, Any], times: dict[str, float]) -> list[Point]:
    group = f"systems, {result['category']}, {result['schedule']} schedule"
    return [
        Point(row["name"], times[name], row["metrics"]["image AUROC"], group)
        for name, row in result["systems"].items()
        if name in times and "metrics" in row
    ]


def _setups(result: dict[str, Any]) -> list[Point]:
    group = f"DeSTSeg on a CPU, {result['data']}"
    return [
        Point(row["name"], row["median"], result["accuracy"][row["name"]]["image AUROC"], group)
        for row in result["latency"]
        if row["batch"] == 1 and "median" in row and row["name"] in result.get("accuracy", {})
    ]


def draw_speed_and_accuracy(points: Sequence[Point], path: Path) -> None:
    """Write a PNG of the points, names beside them.

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
    figure = Figure(figsize=(9, 4.2 * len(groups)), layout="constrained")
    for i, group in enumerate(groups):
        axes = figure.add_subplot(len(groups), 1, i + 1)
        shown = sorted((p for p in points if p.group == group), key=lambda p: p.milliseconds)
        axes.scatter([p.milliseconds for p in shown], [100 * p.auroc for p in shown], zorder=3)
        for number, point in enumerate(shown):
            below = number % 2
            axes.annotate(
                point.name,
                (point.milliseconds, 100 * point.auroc),
                xytext=(5, -11 if below else 6),
                textcoords="offset points",
                fontsize=8,
            )
        axes.set_xscale("log")
        axes.margins(x=0.25, y=0.2)
        axes.set_title(group, fontsize=10)
        axes.set_xlabel("milliseconds per image, batch 1, median (log scale)")
        axes.set_ylabel("image AUROC, %")
        axes.grid(alpha=0.3)
    figure.savefig(path, format="png", dpi=130)
