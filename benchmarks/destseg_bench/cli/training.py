"""destseg-bench training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from destseg_deploy.atomic import replacing
from destseg_deploy.cli.options import DATA, FILE, FOLDER, PLACE
from destseg_deploy.console import OneLineErrors, progress
from destseg_deploy.environment import describe_environment
from destseg_deploy.recipe import Recipe

ROW = "{:<14} {:>5} {:>26} {:>26} {:>27}"


@click.command(cls=OneLineErrors)
@click.option("--category", required=True, help="Folder below --data to train on.")
@DATA
@click.option("--textures", type=FOLDER, help="Texture images; built-in ones if left out.")
@click.option("--teacher-weights", type=FILE, help="ImageNet ResNet18, as destseg-train's.")
@click.option(
    "--teacher",
    type=click.Choice(["imagenet", "random"]),
    default="imagenet",
    help="Time does not depend on the weights.",
)
@click.option("--batch-size", type=int, default=32, help="Images per step.")
@click.option("--size", type=int, default=256, help="Image size of the network.")
@click.option("--steps", type=int, default=4, help="Steps of each phase in a round, 1 to 10.")
@click.option("--rounds", type=click.IntRange(1), default=3, help="Rounds, one after another.")
@click.option("--compiled", is_flag=True, help="Let torch.compile compete, too.")
@PLACE
@click.option("--workers", type=click.IntRange(0), default=2, help="As destseg-train's.")
@click.option("--output", type=FILE, help="JSON file for the result.")
def training(
    category: str,
    data: Path,
    batch_size: int,
    size: int,
    compiled: bool,
    textures: Path | None,
    device: str,
    output: Path | None,
    **options: Any,
) -> None:
    """Measure the lean training beside the reference's loop, interleaved, phase by phase."""
    from destseg_bench.training_speed import CONTENDERS, measure_training, summarize
    from destseg_deploy.data.mvtec import find_category
    from destseg_deploy.training.jobs import open_bank

    recipe = Recipe(size=size, batch_size=batch_size)
    folder = find_category(data, category)
    bank = open_bank(textures, recipe, device)
    contenders = CONTENDERS if compiled else CONTENDERS[:3]
    with progress("training") as advance:
        measured = measure_training(
            folder,
            recipe,
            contenders=contenders,
            bank=bank,
            device=device,
            report=advance,
            **options,
        )
    rows = summarize(measured, replace(recipe, student_steps=1000, segmentation_steps=4000))
    if output is not None:
        result = {
            "kind": "training",
            "environment": describe_environment(),
            "device": str(bank.device),
            "batch_size": batch_size,
            "size": size,
            "textures": "procedural" if textures is None else textures.name,
            **options,
            "teacher_weights": None,
            "rows": rows,
        }
        with replacing(output) as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    click.echo(f"{bank.device}, batch {batch_size}, {size} px; seconds per step (lowest-highest)")
    heads = ("student", "segmentation", "1000+4000 steps, projected")
    click.echo(ROW.format("", "", *heads))
    for row in rows:
        cells = [_cell(row[phase]) for phase in ("student", "segmentation")]
        whole = f"{row['projected_minutes']:.0f} min {row['times_faster']:.2f}x"
        click.echo(ROW.format(row["contender"], row["precision"], *cells, whole))


def _cell(row: dict[str, Any]) -> str:
    spread = f"({row['lowest']:.2f}-{row['highest']:.2f})"
    return f"{row['seconds_per_step']:.3f} {spread} {row['times_faster']:.2f}x"
