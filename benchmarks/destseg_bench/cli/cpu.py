"""destseg-bench cpu."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from destseg_bench.results import start_result, write_result
from destseg_deploy.cli.console import OneLineErrors, progress
from destseg_deploy.cli.options import FILE, FOLDER, THREADS, bit_depth_option


@click.command(cls=OneLineErrors)
@click.option("--checkpoint", type=FILE, required=True, help="The trained .safetensors.")
@click.option("--plain", type=FILE, required=True, help="Its fp32 .onnx, not fused.")
@click.option("--fused", type=FILE, required=True, help="The same after destseg-export fuse.")
@click.option("--int8", type=FILE, multiple=True, help="INT8 .onnx, or NNCF .xml; repeatable.")
@click.option("--data", type=FOLDER, required=True, help="Category in the MVTec AD layout.")
@click.option(
    "--rounds", type=click.IntRange(1), default=20, show_default=True, help="Calls of one image."
)
@click.option(
    "--batch", type=click.IntRange(2), default=8, show_default=True, help="Images of a larger call."
)
@click.option(
    "--batch-rounds", type=click.IntRange(1), default=4, show_default=True, help="Calls of it."
)
@THREADS
@click.option("--compiled", is_flag=True, help="Let torch.compile compete; it takes minutes.")
@click.option("--output", type=FILE, required=True, help="JSON file, written anew after each part.")
@bit_depth_option
def cpu(
    data: Path,
    rounds: int,
    batch: int,
    batch_rounds: int,
    output: Path,
    threads: int,
    **files: Any,
) -> None:
    """Compare every way to run a model on this CPU: speed, memory, cold start, accuracy.

    Ratios are to PyTorch eager, interleaved with it. A call takes frames in memory and ends with
    map and score in memory.
    """
    from destseg_bench.report.speed_tables import cpu as tables
    from destseg_bench.speed.cpu import list_cpu_contenders, measure_cpu

    contenders = list_cpu_contenders(threads=threads, **files)
    result = start_result("cpu", data=data.name, threads=threads)

    def save(found: dict[str, Any]) -> None:
        result.update(found)
        write_result(output, result)

    measure_cpu(
        contenders, data, rounds={1: rounds, batch: batch_rounds}, progress=progress, save=save
    )
    for table in tables(result):
        click.echo(table.text())
