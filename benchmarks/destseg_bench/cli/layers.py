"""destseg-bench layers."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from destseg_bench.results import start_result, write_result
from destseg_deploy.cli.console import OneLineErrors, progress
from destseg_deploy.cli.options import ARTIFACT, FILE, FOLDER, bit_depth_option, runtime_options
from destseg_deploy.options import OpenVinoOptions, OrtOptions


@click.command(cls=OneLineErrors)
@ARTIFACT
@click.option("--images", type=FOLDER, required=True, help="Folder with images to score.")
@click.option(
    "--batch", type=click.IntRange(1), default=1, show_default=True, help="Images a call."
)
@click.option("--runs", type=click.IntRange(1), default=20, show_default=True, help="Calls.")
@click.option(
    "--rates", is_flag=True, help="Also measure the CPU's best rate, and give each share of it."
)
@click.option("--output", type=FILE, help="JSON file for the result.")
@bit_depth_option
@runtime_options
def layers(
    artifact: Path,
    images: Path,
    batch: int,
    runs: int,
    rates: bool,
    output: Path | None,
    options: Any,
    **place: Any,
) -> None:
    """Show where the time of an artifact goes on a CPU, layer by layer.

    Convolutions are grouped by shape, with their rate; all else by what it does. A profiled run
    takes longer than a plain one: the shares count.
    """
    from destseg_bench.report.speed_tables import layers as tables
    from destseg_bench.speed.cpu_rates import measure_cpu_rates
    from destseg_bench.speed.latency import find_frames, stack_frames
    from destseg_bench.speed.layers import group_layers, profile_layers
    from destseg_deploy.spec import ModelSpec

    if not isinstance(options, OrtOptions | OpenVinoOptions) or place["device"] is not None:
        raise click.UsageError("layers are told by onnxruntime and openvino on a CPU. Use latency.")
    frames = stack_frames(find_frames(images, batch), ModelSpec.read(artifact).size, batch)
    how = {"back_end": place["backend"], "options": asdict(options), "batch": batch}
    result = start_result("layers", artifact=artifact.name, **how)
    found = []
    if rates:
        with progress("measuring the CPU") as advance:
            found = measure_cpu_rates(report=advance)
    result["rates"] = [asdict(one) for one in found]
    result["rows"] = group_layers(profile_layers(artifact, frames, options, runs=runs), found)
    write_result(output, result)
    for table in tables(result):
        click.echo(table.text())
