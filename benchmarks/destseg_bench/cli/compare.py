"""destseg-bench compare."""

from __future__ import annotations

from pathlib import Path

import click

from destseg_bench.results import Measured, compare_results, differing_conditions, read_result
from destseg_bench.table import Table
from destseg_deploy.cli.console import OneLineErrors, say
from destseg_deploy.cli.options import FILE
from destseg_deploy.errors import DataError


@click.command(cls=OneLineErrors)
@click.argument("first", type=FILE)
@click.argument("second", type=FILE)
@click.option("--stages", is_flag=True, help="Every stage of table-s4, not only the model's time.")
@click.option(
    "--relative-to",
    metavar="NAME",
    help="Compare shares of this contender's time, so that a slower machine makes no difference.",
)
def compare(first: Path, second: Path, stages: bool, relative_to: str | None) -> None:
    """Compare the times in two result files, with their spread.

    FIRST and SECOND come from latency, cpu or table-s4.
    """
    a, b = read_result(first), read_result(second)
    shared, alone = compare_results(a, b, relative_to=relative_to)
    if not shared:
        raise DataError(
            f"{first} and {second} share no time. Expected results of the same contenders, from "
            "destseg-bench latency, cpu or table-s4."
        )
    for path, result in ((first, a), (second, b)):
        if not result.get("complete", True):
            say(f"{path}: not complete, its run was interrupted")
    for line in differing_conditions(a, b):
        say(f"not the same: {line}")
    shown = [one for one in shared if stages or _is_total(one.name)]
    what = "milliseconds" if relative_to is None else f"share of {relative_to}"
    columns = (
        (what, lambda one: one.name),
        ("first", lambda one: _median(one.first)),
        ("second", lambda one: _median(one.second)),
        ("second / first", lambda one: f"{one.ratio:.3f}"),
        ("verdict", lambda one: one.verdict),
    )
    seen = sum(one.seen for one in shown)
    title = f"{len(shown)} times, {seen} differ; median ± notch (95 %)"
    click.echo(Table.of(title, columns, shown).text())
    for name in alone:
        if stages or _is_total(name):
            say(f"in one file only: {name}")


def _is_total(name: str) -> bool:
    """Return whether a time is a whole call's; of table-s4 also the model's, without copies."""
    parts = name.split(", ")
    return len(parts) < 4 or parts[-1] in ("model", "end to end")


def _median(value: Measured) -> str:
    return f"{value.median:.4g} ± {value.notch:.2g}"
