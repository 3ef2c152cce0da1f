"""destseg-train."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from destseg_deploy.cli.console import OneLineErrors, note, progress_on, say
from destseg_deploy.cli.data_options import DATASET
from destseg_deploy.cli.options import DATA, FOLDER, VERSION, bit_depth_option, echo_threshold
from destseg_deploy.cli.training_options import (
    SEEDS,
    place_of,
    place_option,
    split_training_options,
    training_options,
)

if TYPE_CHECKING:
    from destseg_deploy.data.datasets import DataSet

ESSENTIAL = (
    "output",
    "name",
    "preset",
    "holdout",
    "rotation",
    "scale",
    "textures",
    "teacher_weights",
    "device",
)
"""The options that most people need; the help names the others."""


@click.command(cls=OneLineErrors, essential=ESSENTIAL)
@click.argument("sources", metavar="[FOLDER|LIST]...", nargs=-1, type=DATASET)
@click.option("--output", type=FOLDER, default="artifacts", help="Folder for the checkpoints.")
@click.option("--name", help="Name of the product and its checkpoint.  [default: the folder's]")
@click.option(
    "--category",
    "categories",
    multiple=True,
    help="Folder below --data to train on; repeat it for several, or 'all'.",
)
@DATA
@SEEDS
@bit_depth_option
@training_options
@place_option
@VERSION
def train(
    sources: tuple[Path, ...],
    categories: tuple[str, ...],
    data: Path,
    output: Path,
    name: str | None,
    seeds: tuple[int, ...],
    **options: Any,
) -> None:
    """Train DeSTSeg on images of good parts.

    They are a folder, flat or nested; one that holds a folder good; an MVTec AD category, of which
    train/good is read; or a CSV or JSON list (path,label,mask).

    Writes OUTPUT/NAME.safetensors with its .json, and the loss of every step as NAME-losses.csv.
    With several seeds the names end in -seed0, -seed1, and so on. After an interruption, the same
    command continues where the training stopped. On a Ray cluster (--on ray) several are trained at
    a time, into the same files.

    Images and masks are PNG, JPEG, BMP or TIFF. Those with an orientation tag or several pages are
    refused.
    """
    from destseg_deploy.training.many import PlannedRun, train_all
    from destseg_deploy.training.run import checkpoint_path

    place = place_of(options)
    recipe, how, textures = split_training_options(options)
    plan = [
        PlannedRun(
            one,
            checkpoint_path(output, one.name, seed if len(seeds) > 1 else None),
            replace(recipe, seed=seed),
        )
        for one in _datasets(sources, categories, data, name)
        for seed in seeds
    ]
    finished = train_all(plan, how, textures, place, progress=progress_on(place), notify=note)
    for planned, spec in finished:
        checkpoint = planned.output
        say(f"checkpoint  {checkpoint}")
        if (record := spec.training) is not None:
            say(f"trained     {record.images} images, {record.seconds or 0:.0f} s")
        echo_threshold(spec.threshold, checkpoint)


def _datasets(
    sources: tuple[Path, ...], categories: tuple[str, ...], data: Path, name: str | None
) -> list[DataSet]:
    """Return what the command line says to train on.

    Raises:
        click.UsageError: If it says nothing, or one name for several.
        DataError: If a folder or list is not there, or cannot be read.
    """
    from destseg_deploy.data.datasets import open_dataset
    from destseg_deploy.data.mvtec import find_categories

    if not sources and not categories:
        raise click.UsageError(
            "Name a folder of good parts: destseg-train FOLDER (or --category NAME, below --data)."
        )
    below = find_categories(data, categories) if categories else []
    chosen = [open_dataset(path) for path in (*sources, *below)]
    if name is None:
        return chosen
    if len(chosen) > 1:
        raise click.UsageError(f"--name {name}: one name for {len(chosen)} data sets. Drop it.")
    return [replace(chosen[0], name=name)]
