"""destseg-bench systems."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from destseg_bench.cli.table_s4 import WEIGHTS
from destseg_bench.results import require_rows, start_result, write_result
from destseg_deploy.cli.console import OneLineErrors, progress
from destseg_deploy.cli.options import DATA, FOLDER, PLACE, bit_depth_option
from destseg_deploy.cli.result_option import result_option


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
@result_option("JSON file, written anew after each system.")
@bit_depth_option
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
    from destseg_bench.report.accuracy_tables import systems as tables
    from destseg_bench.systems.accuracy import measure_systems
    from destseg_bench.systems.catalogue import SYSTEMS, check_systems
    from destseg_bench.systems.system import Task
    from destseg_deploy.data.mvtec import find_category
    from destseg_deploy.training.precision import pick_device

    chosen = names or tuple(SYSTEMS)
    check_systems(chosen)
    folder, place = find_category(data, category), pick_device(device)
    task = Task.of_category(folder, device=place, pretrained=not random_weights, **options)
    result = start_result("systems", **task.to_dict())

    def save(rows: dict[str, Any]) -> None:
        result.update(complete=len(rows) == len(chosen), systems=rows)
        write_result(output, result)

    require_rows(measure_systems(chosen, task, progress=progress, save=save))
    for table in tables(result):
        click.echo(table.text())
