"""The options of the commands that measure many runs, and which of them go together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from destseg_deploy.cli.options import DATA, FILE, FOLDER
from destseg_deploy.cli.training_options import SEEDS, training_options
from destseg_deploy.console import progress

Command = TypeVar("Command", bound=Callable[..., Any])

_SOURCES = (
    click.option(
        "--category",
        "categories",
        multiple=True,
        help="Folder below --data; repeat it for several, or 'all'.  [default: the paper's that "
        "are there, or those of the checkpoints]",
    ),
    DATA,
    click.option("--checkpoints", type=FOLDER, help="Measure the checkpoints in this folder."),
    click.option(
        "--train-into",
        type=FOLDER,
        help="Train first, into this folder. After an interruption, the same command goes on.",
    ),
    SEEDS,
    click.option(
        "--output", type=FILE, help="JSON file for the results, written anew after every run."
    ),
)


def run_options(command: Command) -> Command:
    """Give a command the options of its runs, those of training included."""
    command = training_options(command)
    for option in reversed(_SOURCES):
        command = option(command)
    return command


def check_source(ctx: click.Context, training: dict[str, Any]) -> None:
    """Make sure that runs are either found or trained, and not half of each.

    Args:
        ctx: The command as it was called.
        training: The options of training; the device also measures.

    Raises:
        click.UsageError: If neither or both are asked for, or found runs are to be trained.
    """
    if (ctx.params["checkpoints"] is None) == (ctx.params["train_into"] is None):
        raise click.UsageError("Give either --checkpoints FOLDER or --train-into FOLDER.")
    if ctx.params["checkpoints"] is not None:
        for name in sorted(set(training) - {"device"}):
            if was_given(ctx, name):
                raise click.UsageError(
                    f"{_flag(ctx, name)} is for training, and --checkpoints trains nothing."
                )


def refuse_option(ctx: click.Context, name: str, reason: str) -> None:
    """Refuse an option that was given.

    Raises:
        click.UsageError: If it was.
    """
    if was_given(ctx, name):
        raise click.UsageError(f"{_flag(ctx, name)}: {reason}")


def was_given(ctx: click.Context, name: str) -> bool:
    """Return whether the user gave an option."""
    return ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT


def notify(text: str) -> None:
    """Print a note where progress goes."""
    click.echo(f"note: {text}", err=True)


def measuring(device: str, output: Path | None) -> dict[str, Any]:
    """Return the arguments of ``measure_accuracy`` that all commands give alike.

    Raises:
        BackendError: If the device is not there.
    """
    from destseg_deploy.training.place import pick_device

    place = str(pick_device(device))
    return {"device": place, "output": output, "progress": progress, "notify": notify}


def _flag(ctx: click.Context, name: str) -> str:
    return next(param.opts[0] for param in ctx.command.params if param.name == name)
