"""destseg-bench accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from destseg_bench.cli.run_options import (
    check_source,
    measuring,
    notify,
    run_options,
    was_given,
)
from destseg_deploy.cli.training_options import split_training_options
from destseg_deploy.console import OneLineErrors


@click.command(cls=OneLineErrors)
@run_options
@click.pass_context
def accuracy(
    ctx: click.Context,
    /,
    categories: tuple[str, ...],
    data: Path,
    checkpoints: Path | None,
    train_into: Path | None,
    seeds: tuple[int, ...],
    output: Path | None,
    **options: Any,
) -> None:
    """Measure categories and seeds, beside the paper's Tables S5 and S6.

    Takes the checkpoints in a folder, of all seeds unless some are named, or trains one for each
    category and seed.
    """
    check_source(ctx, options)
    from destseg_bench.accuracy import measure_accuracy
    from destseg_bench.runs import paper_folders, take_runs
    from destseg_bench.tables import accuracy_lines
    from destseg_bench.train_runs import make_trainer, plan_runs

    trainer = None
    if train_into is not None:
        recipe, how = split_training_options(options)
        runs = plan_runs(paper_folders(data, categories), seeds, train_into, recipe)
        trainer = make_trainer(recipe, **how)
    elif checkpoints is not None:
        chosen = seeds if was_given(ctx, "seeds") else ()
        runs = take_runs(checkpoints, data, categories=categories, seeds=chosen, notify=notify)
    measured = measure_accuracy(runs, trainer=trainer, **measuring(options["device"], output))
    for line in accuracy_lines(measured):
        click.echo(line)
