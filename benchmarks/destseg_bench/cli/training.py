"""destseg-bench training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from destseg_bench.results import start_result, write_result
from destseg_deploy.cli.console import OneLineErrors, progress
from destseg_deploy.cli.options import DATA, FILE, FOLDER, PLACE, bit_depth_option
from destseg_deploy.cli.result_option import result_option
from destseg_deploy.training.recipe import Recipe, TrainingOptions


@click.command(cls=OneLineErrors)
@click.option("--category", required=True, help="Folder below --data to train on.")
@DATA
@click.option("--textures", type=FOLDER, help="Texture images; built-in ones if left out.")
@click.option("--teacher-weights", type=FILE, help="ImageNet ResNet18, as destseg-train's.")
@click.option(
    "--teacher",
    type=click.Choice(["imagenet", "random"]),
    default="imagenet",
    help="random needs no file; times do not depend on the weights.",
)
@click.option("--batch-size", type=int, default=32, help="Images per step.")
@click.option("--size", type=int, default=256, help="Image size of the network.")
@click.option("--steps", type=int, default=4, help="Steps of each phase in a round, 1 to 10.")
@click.option("--rounds", type=click.IntRange(1), default=3, help="Rounds, one after another.")
@click.option("--compiled", is_flag=True, help="Let torch.compile compete, too; it takes minutes.")
@PLACE
@click.option("--workers", type=click.IntRange(0), default=2, help="As destseg-train's.")
@result_option("JSON file for the result.")
@bit_depth_option
def training(
    category: str,
    data: Path,
    batch_size: int,
    size: int,
    compiled: bool,
    textures: Path | None,
    device: str,
    output: Path | None,
    steps: int,
    rounds: int,
    **options: Any,
) -> None:
    """Measure the lean training beside the reference's loop, in turns, phase by phase."""
    from destseg_bench.report.speed_tables import training as tables
    from destseg_bench.speed.training import CONTENDERS, measure_training, summarize
    from destseg_deploy.data.mvtec import find_category
    from destseg_deploy.training.setup import open_bank

    recipe = Recipe(size=size, batch_size=batch_size)
    folder = find_category(data, category)
    bank = open_bank(textures, recipe, device)
    result = start_result(
        "training",
        device=str(bank.device),
        batch_size=batch_size,
        size=size,
        textures="procedural" if textures is None else textures.name,
        steps=steps,
        rounds=rounds,
        **{**options, "teacher_weights": None},  # a path of this machine
    )
    contenders = [name for name in CONTENDERS if compiled or name != "lean-compiled"]
    with progress("training") as advance:
        measured = measure_training(
            folder,
            recipe,
            bank=bank,
            options=TrainingOptions(device=device, **options),
            contenders=contenders,
            steps=steps,
            rounds=rounds,
            report=advance,
        )
    paper = replace(recipe, student_steps=1000, segmentation_steps=4000)
    result["rows"] = summarize(measured, paper)
    write_result(output, result)
    for table in tables(result):
        click.echo(table.text())
