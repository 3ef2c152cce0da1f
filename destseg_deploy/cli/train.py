"""destseg-train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from destseg_deploy.cli.options import DATA, FOLDER, VERSION, echo_threshold
from destseg_deploy.cli.training_options import (
    SEEDS,
    split_training_options,
    training_options,
)
from destseg_deploy.console import OneLineErrors, progress


@click.command(cls=OneLineErrors)
@click.option(
    "--category",
    "categories",
    multiple=True,
    required=True,
    help="Folder below --data to train on; repeat it for several, or 'all'.",
)
@DATA
@click.option("--output", type=FOLDER, default="artifacts", help="Folder for the checkpoints.")
@SEEDS
@training_options
@VERSION
def train(
    categories: tuple[str, ...], data: Path, output: Path, seeds: tuple[int, ...], **options: Any
) -> None:
    """Train DeSTSeg on the normal images of a category.

    Reads DATA/CATEGORY/train/good and writes OUTPUT/CATEGORY.safetensors with its .json, and the
    loss of every step as CATEGORY-losses.csv. With several seeds the names end in -seed0, -seed1,
    and so on. The same command after an interruption goes on where it stopped.
    """
    from destseg_deploy.data.mvtec import find_categories
    from destseg_deploy.training.jobs import list_jobs, open_bank, train_job

    recipe, how = split_training_options(options)
    jobs = list_jobs(find_categories(data, categories), seeds, output)
    bank = open_bank(how.pop("textures"), recipe, how["device"])
    for job in jobs:
        with progress(f"training {job.name}") as advance:
            spec = train_job(
                job,
                recipe,
                bank,
                report=lambda p: advance(p.done, p.total, f"{p.phase} loss {p.loss:.4f}"),
                notify=lambda text: click.echo(f"note: {text}", err=True),
                **how,
            )
        click.echo(f"checkpoint  {job.output}")
        record = spec.training
        click.echo(f"trained     {record['images']} images, {record['seconds']:.0f} s")
        echo_threshold(spec.threshold, job.output)
