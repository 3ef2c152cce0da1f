"""The options of all commands that train, made from ``Recipe`` and ``TrainingOptions``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click

from destseg_deploy.cli.options import FOLDER, PLACE, RATE, given, options_of
from destseg_deploy.cluster.place import Place
from destseg_deploy.errors import BackendError
from destseg_deploy.spec import is_number
from destseg_deploy.training.recipe import PAPER, PRESETS, Recipe, TrainingOptions, make_recipe

Command = TypeVar("Command", bound=Callable[..., Any])


def numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...]:
    """Return the numbers of ``0,1,2``, or refuse them as a usage error."""
    parts = [] if value is None else value.split(",")
    if not all(is_number(part.strip()) for part in parts):
        raise click.BadParameter(f"{value!r}: expected whole numbers such as 0,1,2.")
    found = tuple(int(part) for part in parts)
    if len(set(found)) < len(found):
        raise click.BadParameter(f"{value!r}: a number is there twice.")
    return found


def counts(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...]:
    """Return the numbers of ``1,8``, each at least 1, or refuse them as a usage error."""
    found = numbers(ctx, param, value)
    if not found or min(found) < 1:
        raise click.BadParameter(f"{value!r}: expected numbers of at least 1, such as 1,8.")
    return found


def _steps(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    parts = value.split(",")
    if len(parts) != 2 or not all(is_number(part.strip()) for part in parts):
        raise click.BadParameter(f"{value!r}: expected two numbers such as 1000,4000.")
    return int(parts[0]), int(parts[1])


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
