"""destseg-bench systems."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from destseg_bench.cli.table_s4 import WEIGHTS
from destseg_bench.result_file import require_rows, result_writer
from destseg_bench.tables import align
from destseg_deploy.cli.options import DATA, FILE, FOLDER, PLACE
from destseg_deploy.console import OneLineErrors, progress
from destseg_deploy.environment import describe_environment

HEADS = ["system", "image AUROC", "pixel AUROC", "pixel AP", "PRO", "IAP", "minutes", "paper AUROC"]
METRICS = ("image AUROC", "pixel AUROC", "pixel AP", "PRO@0.3", "IAP")


@click.command(cls=OneLineErrors)
@click.option(
    "--system", "names", multiple=True, help="A system to train; repeatable.  [default: all]"
)
@click.option("--category", required=True, help="Folder below --data.")
@DATA
@click.option("--schedule", type=click.Choice(["quick", "paper"]), default="quick", help="Steps.")
@click.option("--textures", type=FOLDER, help="Texture images; built-in ones if left out.")
@WEIGHTS
@click.option("--random-weights", is_flag=True, help="Go on without pretrained weights.")
@PLACE
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed of every choice.")
@click.option("--output", type=FILE, help="JSON file, written anew after each system.")
def systems(
    names: tuple[str, ...],
    category: str,
    data: Path,
    device: str,
    random_weights: bool,
    output: Path | None,
    **options: Any,
) -> None:
    """Train DeSTSeg and the systems it is compared with on a category, and score its test set.

    The quick schedule shows that each of them works; it is not the paper's.
    """
    from destseg_bench.baselines.catalogue import OPENERS
    from destseg_bench.baselines.system import Task
    from destseg_bench.system_accuracy import measure_systems
    from destseg_deploy.data.mvtec import find_category, list_train
    from destseg_deploy.training.place import pick_device

    folder = find_category(data, category)
    images = tuple(list_train(folder))
    place = pick_device(device)
    task = Task(folder, images, device=place, pretrained=not random_weights, **options)
    write = result_writer(
        output,
        {
            "kind": "systems",
            "environment": describe_environment(),
            "device": str(place),
            "category": category,
            "normal_images": len(images),
            "schedule": task.schedule,
            "seed": task.seed,
            "textures": "procedural" if task.textures is None else task.textures.name,
        },
        planned=len(names or OPENERS),
    )
    rows = measure_systems(names or tuple(OPENERS), task, progress=progress, save=write)
    require_rows(rows)
    click.echo(f"{category}, {task.schedule} schedule, in percent")
    for line in align([HEADS, *[_cells(row) for row in rows.values() if "skipped" not in row]]):
        click.echo(line)
    for name, row in rows.items():
        if "skipped" in row:
            click.echo(f"{name} skipped: {row['skipped']}")


def _cells(row: dict[str, Any]) -> list[str]:
    random = ", random weights" if row["weights"] == "random" else ""
    values = [f"{100 * row['metrics'][name]:.1f}" for name in METRICS if name in row["metrics"]]
    values += ["-"] * (len(METRICS) - len(values))
    return [f"{row['name']}{random}", *values, f"{row['minutes']:.1f}", row["paper"] or "-"]
