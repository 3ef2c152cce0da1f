"""The options of everything that trains: destseg-train and parts of destseg-bench."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from destseg_deploy.cli.options import FILE, FOLDER, RATE, known_device
from destseg_deploy.recipe import Recipe, make_recipe

Command = TypeVar("Command", bound=Callable[..., Any])

RECIPE = ("batch_size", "size", "rotation", "holdout", "decay", "gamma")
"""Options that are values of the recipe under the same name."""


def numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...]:
    """Return the numbers of ``0,1,2``, or refuse them as a usage error."""
    parts = [] if value is None else value.split(",")
    if not all(part.strip().isdecimal() for part in parts):
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
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
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

_OPTIONS = (
    click.option(
        "--preset",
        type=click.Choice(["paper", "quick"]),
        default="paper",
        help="paper: 1,000 + 4,000 steps of 32 images at 256 px, for a GPU. quick: minutes on a "
        "CPU.",
    ),
    click.option(
        "--textures",
        type=FOLDER,
        help="Texture images for anomalies (dtd/images); built-in ones if left out.",
    ),
    click.option(
        "--teacher-weights",
        type=FILE,
        help="ImageNet ResNet18, .pth or .safetensors; torchvision's (cache or download) if left "
        "out.",
    ),
    click.option(
        "--teacher",
        type=click.Choice(["imagenet", "random"]),
        default="imagenet",
        help="random needs no weights: for demonstrations only.",
    ),
    click.option(
        "--steps",
        metavar="STUDENT,SEGMENTATION",
        callback=_steps,
        help="Steps of the two phases.  [default: the preset's]",
    ),
    click.option(
        "--decay",
        type=click.Choice(["none", "cosine"]),
        help="Learning rates over each phase: constant, or down to zero.  [default: the preset's]",
    ),
    click.option("--batch-size", type=int, help="Images per step.  [default: the preset's]"),
    click.option("--size", type=int, help="Image size of the network.  [default: the preset's]"),
    click.option(
        "--rotation",
        type=click.Choice(["none", "slight", "full"]),
        help="Rotation of normal images.  [default: the category's in the paper, else slight]",
    ),
    click.option(
        "--gamma", type=float, help="Exponent of the focal loss.  [default: the preset's]"
    ),
    click.option(
        "--holdout",
        type=float,
        help="Share of normal images kept from training to set the threshold.  [default: the "
        "preset's]",
    ),
    click.option(
        "--device",
        default="auto",
        metavar="auto|cpu|cuda[:N]",
        callback=known_device,
        help="Where to train.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
        default="auto",
        help="auto: autocast to the half precision that the device computes, if any.",
    ),
    click.option(
        "--workers",
        type=click.IntRange(0),
        default=2,
        help="Threads that read textures ahead.",
    ),
    click.option(
        "--compile", "compiled", is_flag=True, help="Compile the networks with torch.compile."
    ),
    click.option(
        "--literal",
        is_flag=True,
        help="Train with the reference's loop, dead work included, to compare with.",
    ),
    click.option(
        "--tensorboard", type=FOLDER, help="Folder for TensorBoard: losses, rates, pictures."
    ),
    click.option(
        "--save-every",
        type=click.FloatRange(0),
        default=60.0,
        help="Seconds between saved states; an interrupted run goes on from the last one.",
    ),
    click.option(
        "--restart", is_flag=True, help="Begin anew where a run was interrupted or finished."
    ),
    RATE,
)


def training_options(command: Command) -> Command:
    """Give a command all options of ``training.run.train``."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def split_training_options(options: dict[str, Any]) -> tuple[Recipe, dict[str, Any]]:
    """Return the recipe that the options name, and the rest: keyword arguments of ``train``.

    Raises:
        TrainingError: If a value cannot be trained with.
    """
    rest = dict(options)
    changes = {name: rest.pop(name) for name in RECIPE}
    steps = rest.pop("steps")
    if steps is not None:
        changes["student_steps"], changes["segmentation_steps"] = steps
    return make_recipe(rest.pop("preset"), **changes), rest
