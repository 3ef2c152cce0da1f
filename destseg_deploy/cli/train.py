"""destseg-train."""

from __future__ import annotations

from pathlib import Path

import click

from destseg_deploy.cli.options import (
    DATA,
    FILE,
    FOLDER,
    RATE,
    VERSION,
    echo_threshold,
    known_device,
)
from destseg_deploy.console import OneLineErrors, progress


@click.command(cls=OneLineErrors)
@click.option("--category", required=True, help="Folder below --data to train on.")
@DATA
@click.option("--output", type=FOLDER, default="artifacts", help="Folder for the checkpoint.")
@click.option(
    "--preset",
    type=click.Choice(["paper", "quick"]),
    default="paper",
    help="paper: 1,000 + 4,000 steps of 32 images at 256 px, for a GPU. quick: minutes on a CPU.",
)
@click.option(
    "--textures",
    type=FOLDER,
    help="Texture images for anomalies (dtd/images); built-in ones if left out.",
)
@click.option(
    "--teacher-weights",
    type=FILE,
    help="ImageNet ResNet18, .pth or .safetensors; torchvision's (cache or download) if left out.",
)
@click.option(
    "--teacher",
    type=click.Choice(["imagenet", "random"]),
    default="imagenet",
    help="random needs no weights: for demonstrations only.",
)
@click.option(
    "--steps",
    metavar="STUDENT,SEGMENTATION",
    help="Steps of the two phases.  [default: the preset's]",
)
@click.option(
    "--decay",
    type=click.Choice(["none", "cosine"]),
    help="Learning rates over each phase: constant, or down to zero.  [default: the preset's]",
)
@click.option("--batch-size", type=int, help="Images per step.  [default: the preset's]")
@click.option("--size", type=int, help="Image size of the network.  [default: the preset's]")
@click.option(
    "--rotation",
    type=click.Choice(["none", "slight", "full"]),
    help="Rotation of normal images.  [default: the category's in the paper, else slight]",
)
@click.option(
    "--holdout",
    type=float,
    help="Share of normal images kept from training to set the threshold.  [default: the preset's]",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, help="Seed of weights, order and anomalies."
)
@click.option(
    "--device",
    default="auto",
    metavar="auto|cpu|cuda[:N]",
    callback=known_device,
    help="Where to train.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16"]),
    default="auto",
    help="auto: bf16 autocast where the device has it.",
)
@click.option("--workers", type=click.IntRange(0), default=0, help="Processes that prepare images.")
@RATE
@VERSION
def train(
    category: str,
    data: Path,
    output: Path,
    preset: str,
    textures: Path | None,
    teacher_weights: Path | None,
    teacher: str,
    steps: str | None,
    decay: str | None,
    batch_size: int | None,
    size: int | None,
    rotation: str | None,
    holdout: float | None,
    seed: int,
    device: str,
    precision: str,
    workers: int,
    false_reject_rate: float,
) -> None:
    """Train DeSTSeg on the normal images of a category.

    Reads DATA/CATEGORY/train/good and writes OUTPUT/CATEGORY.safetensors with its .json.
    """
    from destseg_deploy import training
    from destseg_deploy.data.mvtec import find_category
    from destseg_deploy.recipe import make_recipe

    changes = {
        "batch_size": batch_size,
        "size": size,
        "rotation": rotation,
        "holdout": holdout,
        "decay": decay,
        "seed": seed,
        **_two_numbers(steps),
    }
    recipe = make_recipe(preset, **changes)
    with progress(f"training {category}") as advance:
        spec = training.train(
            find_category(data, category),
            output / f"{category}.safetensors",
            recipe,
            textures=textures,
            teacher_weights=teacher_weights,
            teacher=teacher,
            device=device,
            precision=precision,
            workers=workers,
            false_reject_rate=false_reject_rate,
            report=lambda p: advance(p.done, p.total, f"{p.phase} loss {p.loss:.4f}"),
        )
    click.echo(f"checkpoint  {output / spec.artifact.file}")
    click.echo(f"trained     {spec.training['images']} images, {spec.training['seconds']:.0f} s")
    echo_threshold(spec.threshold, output / spec.artifact.file)


def _two_numbers(steps: str | None) -> dict[str, int]:
    if steps is None:
        return {}
    parts = steps.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise click.BadParameter(
            f"{steps!r}: expected two numbers such as 1000,4000", param_hint="--steps"
        )
    return {"student_steps": int(parts[0]), "segmentation_steps": int(parts[1])}
