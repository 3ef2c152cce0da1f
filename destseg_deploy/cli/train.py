"""destseg-train, and the options of all commands that train, made from the dataclasses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from destseg_deploy.cli.console import OneLineErrors, is_typed, note, progress_on, say
from destseg_deploy.cli.data_options import DATASET
from destseg_deploy.cli.options import (
    DATA,
    FOLDER,
    PLACE,
    RATE,
    VERSION,
    bit_depth_option,
    echo_threshold,
    given,
    numbers,
    options_of,
    whole_numbers,
)
from destseg_deploy.cluster.place import Place
from destseg_deploy.errors import BackendError
from destseg_deploy.training.recipe import PAPER, PRESETS, Recipe, TrainingOptions, make_recipe

if TYPE_CHECKING:
    from destseg_deploy.data.datasets import DataSet

Command = TypeVar("Command", bound=Callable[..., Any])


def _steps(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    expected = "two numbers such as 1000,4000"
    found = whole_numbers(value, expected)
    if len(found) != 2:
        raise click.BadParameter(f"{value!r}: expected {expected}.")
    return found[0], found[1]


SEEDS = click.option(
    "--seeds",
    "--seed",
    "seeds",
    default="0",
    metavar="SEED[,SEED...]",
    callback=numbers,
    help="Seeds of weights, order and anomalies; one run for each.",
)

_OWN = (
    click.option(
        "--steps",
        metavar="STUDENT,SEGMENTATION",
        callback=_steps,
        help="Steps of the two phases.  [default: the preset's]",
    ),
    click.option(
        "--textures",
        type=FOLDER,
        help="Texture images for anomalies (dtd/images); built-in ones if left out.",
    ),
    PLACE,
    RATE,
)
"""Options that are not made from a field: those of several fields, and those of other commands."""

place_option = options_of(Place, heading="How to train")

_GRID = click.option(
    "--grid",
    is_flag=True,
    help="With --scale: train on exactly the tiles of the exported graph, for parts that always "
    "lie the same way; else on crops at any place.",
)
_OF_TILES = ("scale", "overlap", "region")
"""Fields of which the paper's runs have no option: the paper trains on whole frames."""


def training_options(command: Command) -> Command:
    """Give a command the options of ``training.run.train``."""
    return _GRID(_options(command, "the paper's schedule, without its rotations", None, ()))


def paper_options(command: Command) -> Command:
    """Give a command the same options, where the paper's recipe is what counts unless given."""
    return _options(command, PAPER, PAPER, _OF_TILES)


def _options(command: Command, usual: str, preset: str | None, skip: Sequence[str]) -> Command:
    unnamed = [one.name for one in fields(TrainingOptions) if not one.metadata]
    command = options_of(TrainingOptions, heading="How to train", skip=(*unnamed, *skip))(command)
    unnamed = [one.name for one in fields(Recipe) if not one.metadata]
    command = options_of(Recipe, heading="The recipe", skip=(*unnamed, *skip))(command)
    for option in reversed(_OWN):
        command = option(command)
    return click.option(
        "--preset",
        type=click.Choice(list(PRESETS)),
        default=preset,
        show_default=False,
        help="paper: 1,000 + 4,000 steps of 32 images at 256 px and the rotation of the paper's "
        f"category, for a GPU. quick: minutes on a CPU.  [default: {usual}]",
    )(command)


def place_of(options: dict[str, Any]) -> Place:
    """Return what ``--on`` of a command with ``place_option`` stands for, and take it out.

    Raises:
        click.UsageError: If it names no place.
    """
    chosen = given(Place, options)
    del options["on"]
    try:
        return Place(**chosen)
    except BackendError as error:
        raise click.UsageError(str(error)) from error


def split_training_options(
    options: dict[str, Any],
) -> tuple[Recipe, TrainingOptions, Path | None]:
    """Return what the options stand for: the recipe, how to train it, the folder of textures.

    Args:
        options: The parameters of a command with ``training_options``.

    Raises:
        TrainingError: If a value cannot be trained with.
    """
    changes = given(Recipe, options)
    if options["steps"] is not None:
        changes["student_steps"], changes["segmentation_steps"] = options["steps"]
    if options.get("grid"):
        changes["crops"] = "grid"
    if options["preset"] is None:
        # Somebody's own part may be called tile, too, and must not be turned for it.
        changes.setdefault("rotation", "none")
    preset = options["preset"] or PAPER
    recipe = make_recipe(preset, **changes)
    how = given(TrainingOptions, options)
    # A preset whose schedule is changed is named custom; its precision stays the preset's.
    if preset == PAPER and how.get("precision", "auto") == "auto":
        how["precision"] = "fp32"
    return recipe, TrainingOptions(**how), options["textures"]


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

    The images are a folder, flat or nested; one that holds a folder good; an MVTec AD category, of
    which train/good is read; or a CSV or JSON list (path,label,mask).

    Writes OUTPUT/NAME.safetensors with its .json, and the loss of every step as NAME-losses.csv.
    With several seeds the names end in -seed0, -seed1, and so on. After an interruption, the same
    command continues where the training stopped. On a Ray cluster (--on ray) several are trained at
    a time, into the same files.

    Images and masks are PNG, JPEG, BMP or TIFF. Those with an orientation tag or several pages are
    refused.
    """
    from destseg_deploy.training.run import PlannedRun, checkpoint_path, train_all

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
    if is_typed("data") and not categories:
        raise click.UsageError(
            f"--data {data}: it goes with --category, the name of a folder in it. Drop one of "
            f"--data and {sources[0]}."
        )
    below = find_categories(data, categories) if categories else []
    chosen = [open_dataset(path) for path in (*sources, *below)]
    if name is None:
        return chosen
    if not name.strip():
        raise click.UsageError("--name: an empty name. Name the product, such as --name cable.")
    if len(chosen) > 1:
        raise click.UsageError(f"--name {name}: one name for {len(chosen)} data sets. Drop it.")
    return [replace(chosen[0], name=name)]
