"""destseg-bench ablation."""

from __future__ import annotations

from functools import partial

import click

from destseg_bench.cli.run_options import Request, refuse_option, run_options
from destseg_deploy.cli.console import OneLineErrors


@click.command(cls=OneLineErrors)
@click.option(
    "--table",
    type=click.Choice(["s1", "s2", "s3"], case_sensitive=False),
    required=True,
    help="s1: T of the image score, of checkpoints. s2: gamma. s3: rotation of normal images.",
)
@run_options
def ablation(ctx: click.Context, request: Request) -> None:
    """Repeat an ablation of the paper, beside its Table S1, S2 or S3.

    Each setting of --train-into gets a folder of its own, such as gamma-1. --checkpoints finds such
    folders, and reads from the checkpoints which setting each was trained with.
    """
    from destseg_bench.accuracy.ablation import (
        ABLATIONS,
        ablation_lines,
        plan_ablation,
        sort_runs,
        summarize_ablation,
    )

    table = ctx.params["table"]
    chosen = ABLATIONS[table]
    if chosen.option is None:
        refuse_option(ctx, "train_into", f"{table} trains nothing; give --checkpoints.")
    else:
        refuse_option(ctx, chosen.option, f"{table} sets it; leave it out.")
    if request.checkpoints is not None:
        found = request.take(request.checkpoints, nested=chosen.option is not None)
        runs = sort_runs(chosen, found)
    elif request.train_into is not None:
        runs = plan_ablation(chosen, request.recipe, request.train_into, request.plan)
    measured = request.measure(runs, partial(summarize_ablation, chosen))
    click.echo("\n".join(ablation_lines(chosen, measured)))
