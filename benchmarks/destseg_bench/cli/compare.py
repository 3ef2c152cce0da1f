"""destseg-bench compare."""

from __future__ import annotations

from pathlib import Path

import click

from destseg_bench.compare import (
    Difference,
    Measured,
    compare_results,
    differing_conditions,
)
from destseg_bench.compare import relative_to as shares
from destseg_bench.result_file import read_result
from destseg_bench.tables import align
from destseg_deploy.cli.options import FILE
from destseg_deploy.console import OneLineErrors
from destseg_deploy.errors import DataError

HEADS = ["milliseconds", "first", "second", "second / first", "verdict"]


@click.command(cls=OneLineErrors)
@click.argument("first", type=FILE)
@click.argument("second", type=FILE)
@click.option("--stages", is_flag=True, help="Every stage of table-s4, not only the model's time.")
@click.option(
    "--relative-to",
    metavar="NAME",
    help="Compare shares of this contender's time, so that a slower machine drops out.",
)
def compare(first: Path, second: Path, stages: bool, relative_to: str | None) -> None:
    """Compare the times in two result files, with their spread.

    FIRST and SECOND come from latency, cpu or table-s4.
    """
    a, b = read_result(first), read_result(second)
    if relative_to is not None:
        a, b = shares(a, relative_to), shares(b, relative_to)
    shared, alone = compare_results(a, b)
    if not shared:
        raise DataError(
            f"{first} and {second} share no time. Expected results of the same contenders, from "
            "destseg-bench latency, cpu or table-s4."
        )
    for path, result in ((first, a), (second, b)):
        if not result.get("complete", True):
            click.echo(f"{path}: not complete, its run was interrupted")
    for line in differing_conditions(a, b):
        click.echo(f"not the same: {line}")
    shown = [one for one in shared if stages or _is_whole(one.name)]
    heads = HEADS if relative_to is None else [f"share of {relative_to}", *HEADS[1:]]
    for line in align([heads, *[_cells(one) for one in shown]]):
        click.echo(line)
    seen = sum(one.seen for one in shown)
    click.echo(f"{len(shown)} times, {seen} differ; median ± notch (95 %)")
    for name in alone:
        if stages or _is_whole(name):
            click.echo(f"in one file alone: {name}")


def _is_whole(name: str) -> bool:
    parts = name.split(", ")
    return len(parts) < 4 or parts[-1] in ("model", "end to end")


def _cells(one: Difference) -> list[str]:
    return [
        one.name,
        _measured(one.first),
        _measured(one.second),
        f"{one.ratio:.3f}",
        one.verdict,
    ]


def _measured(value: Measured) -> str:
    return f"{value.median:.4g} ± {value.notch:.2g}"
