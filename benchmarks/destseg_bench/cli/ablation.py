"""destseg-bench ablation."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from destseg_bench.cli.run_options import (
    check_source,
    measuring,
    notify,
    refuse_option,
    run_options,
    was_given,
)
from destseg_deploy.cli.training_options import split_training_options
from destseg_deploy.console import OneLineErrors


@click.command(cls=OneLineErrors)
@click.option(
    "--table",
    type=click.Choice(["s1", "s2", "s3"], case_sensitive=False),
    required=True,
    help="s1: T of the image score, of checkpoints. s2: gamma. s3: rotation of normal images.",
)
@run_options
@click.pass_context
def ablation(
    ctx: click.Context,
    /,
    table: str,
    categories: tuple[str, ...],
    data: Path,
    checkpoints: Path | None,
    train_into: Path | None,
    seeds: tuple[int, ...],
    output: Path | None,
    **options: Any,
) -> None:
    """Repeat an ablation of the paper, beside its Table S1, S2 or S3.

    Each setting of --train-into gets a folder of its own, such as gamma-1; --checkpoints finds
    such folders, and tells the settings by what the checkpoints were trained with.
    """
    check_source(ctx, options)
    from destseg_bench.ablation import (
        ABLATIONS,
        ablation_lines,
        plan_ablation,
        sort_runs,
        summarize_ablation,
    )
    from destseg_bench.accuracy import measure_accuracy
    from destseg_bench.runs import paper_folders, take_runs
    from destseg_bench.train_runs import make_trainer, plan_runs

    chosen, trainer = ABLATIONS[table], None
    if chosen.option is None:
        refuse_option(ctx, "train_into", f"{table} trains nothing; give --checkpoints.")
    else:
        refuse_option(ctx, chosen.option, f"{table} sets it; leave it out.")
    if train_into is not None:
        recipe, how = split_training_options(options)
        plan = partial(plan_runs, paper_folders(data, categories), seeds)
        runs = plan_ablation(chosen, recipe, train_into, plan)
        trainer = make_trainer(recipe, **how)
    elif checkpoints is not None:
        found = take_runs(
            checkpoints,
            data,
            categories=categories,
            seeds=seeds if was_given(ctx, "seeds") else (),
            nested=chosen.option is not None,
            notify=notify,
        )
        runs = sort_runs(chosen, found)
    measured = measure_accuracy(
        runs,
        trainer=trainer,
        summarize=partial(summarize_ablation, chosen),
        **measuring(options["device"], output),
    )
    for line in ablation_lines(chosen, measured):
        click.echo(line)
