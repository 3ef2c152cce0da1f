"""Options that several subcommands share, and how they read them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from destseg_deploy.errors import DestsegError, SpecError
from destseg_deploy.spec import BatchRange

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)
Command = TypeVar("Command", bound=Callable[..., Any])


def size(text: str) -> tuple[int, int]:
    """Read ``1024x1280`` as (1024, 1280), height first."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise click.BadParameter(f"{text!r}: expected HEIGHTxWIDTH such as 1024x1280.")
    return int(parts[0]), int(parts[1])


def batch(text: str) -> BatchRange:
    """Read ``1:4:16``, or ``4`` for always 4."""
    try:
        return BatchRange.parse(text)
    except SpecError as error:
        raise click.BadParameter(str(error)) from error


def targets(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Read ``sm86,sm89`` as compute capabilities."""
    from destseg_export.engine_site import read_targets

    try:
        return read_targets(value.split(",")) if value is not None else ()
    except DestsegError as error:
        raise click.BadParameter(str(error)) from error


def cuda(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Return the name of a GPU, or refuse it as a usage error."""
    name, _, index = value.partition(":")
    if name != "cuda" or (":" in value and not (index.isdecimal() and index.isascii())):
        raise click.BadParameter(f"{value!r}: expected cuda or cuda:<index>.")
    return value


VERIFY_IMAGES = click.option(
    "--verify-images",
    type=FOLDER,
    help="Images to compare on.  [default: the training data's test images, or rendered ones]",
)
GPU = click.option(
    "--device", default="cuda", metavar="cuda[:N]", callback=cuda, help="GPU that runs the engine."
)
MAP_LIMIT = click.option(
    "--max-map-difference",
    type=float,
    help="Largest difference of a map's pixel from PyTorch's.  [default: 1e-4 for fp32, 0.02 for "
    "fp16, 0.1 for bf16]",
)
SCORE_LIMIT = click.option(
    "--max-score-difference",
    type=float,
    help="Largest difference of a score from PyTorch's.  [default: 1e-4 for fp32, 0.005 for fp16, "
    "0.02 for bf16]",
)


def verified(command: Command) -> Command:
    """Add the options of a comparison with PyTorch."""
    for option in (SCORE_LIMIT, MAP_LIMIT, VERIFY_IMAGES):
        command = option(command)
    return command
