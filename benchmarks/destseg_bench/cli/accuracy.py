"""destseg-bench accuracy."""

from __future__ import annotations

import click

from destseg_bench.cli.run_options import Request, run_options
from destseg_deploy.cli.console import OneLineErrors


@click.command(cls=OneLineErrors)
@run_options
def accuracy(ctx: click.Context, request: Request) -> None:
    """Measure categories and seeds, beside the paper's Tables S5 and S6.

    Takes the checkpoints in a folder, of all seeds unless some are named, or trains one for each
    category and seed.
    """
    from destseg_bench.accuracy.paper_tables import accuracy_lines, summarize

    if request.checkpoints is not None:
        runs = request.take(request.checkpoints)
    elif request.train_into is not None:
        runs = request.plan(request.train_into)
    click.echo("\n".join(accuracy_lines(request.measure(runs, summarize))))
