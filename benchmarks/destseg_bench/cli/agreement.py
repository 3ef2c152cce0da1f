"""destseg-bench agreement."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from destseg_bench.results import start_result, write_result
from destseg_deploy.cli.console import OneLineErrors, progress
from destseg_deploy.cli.named_path import NamedPath
from destseg_deploy.cli.options import FOLDER, THREADS, bit_depth_option
from destseg_deploy.cli.result_option import result_option


@click.command(cls=OneLineErrors)
@click.argument("artifacts", nargs=-1, required=True, type=NamedPath(path_type=Path))
@click.option("--data", type=FOLDER, required=True, help="Category folder in the MVTec AD layout.")
@click.option("--device", default="cpu", metavar="cpu|cuda[:N]", help="Where to run.")
@THREADS
@click.option(
    "--half",
    type=click.Choice(("fp16", "bf16")),
    help="Run each checkpoint in PyTorch's half precision as well.",
)
@result_option("JSON file, written anew after every row.")
@bit_depth_option
def agreement(
    artifacts: tuple[Path, ...],
    data: Path,
    device: str,
    threads: int,
    half: Literal["fp16", "bf16"] | None,
    output: Path | None,
) -> None:
    """Compare artifacts on a test set: metrics, and differences from the first that runs.

    What cannot run here is named with the reason.
    """
    from destseg_bench.report.accuracy_tables import agreement as tables
    from destseg_bench.speed.agreement import describe_training, measure_agreement
    from destseg_bench.speed.contenders import list_runtimes

    contenders = list_runtimes(artifacts, device=device, threads=threads, half=half or "")
    trained = describe_training(artifacts[0])
    result = start_result("agreement", data=str(data), device=device, trained=trained)

    def save(rows: list[dict[str, Any]]) -> None:
        result["rows"], result["complete"] = rows, len(rows) == len(contenders)
        write_result(output, result)

    with progress("scoring") as advance:
        measure_agreement(contenders, data, report=advance, save=save)
    for table in tables(result):
        click.echo(table.text())
