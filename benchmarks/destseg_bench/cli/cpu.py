"""destseg-bench cpu, and what goes with it: layers and nncf."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from destseg_bench.results import start_result, write_result
from destseg_deploy.cli.console import OneLineErrors, progress, say
from destseg_deploy.cli.options import (
    ARTIFACT,
    FILE,
    FOLDER,
    THREADS,
    bit_depth_option,
    runtime_options,
)
from destseg_deploy.cli.result_option import result_option
from destseg_deploy.options import OpenVinoOptions, OrtOptions


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
@result_option("JSON file, written anew after each part.", required=True)
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
@result_option("JSON file for the result.")
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
        raise click.UsageError(
            f"{artifact.name}: only onnxruntime and openvino tell the times of layers, on a CPU. "
            "Pass an .onnx and no device."
        )
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


@click.command(cls=OneLineErrors)
@click.argument("fused", type=FILE)
@click.argument("int8", type=FILE)
@click.option(
    "--good",
    "--normal",
    "normal",
    type=FOLDER,
    required=True,
    help="Images of good parts to calibrate on.",
)
@click.option("--images", type=click.IntRange(1), default=32, show_default=True, help="At most.")
@click.option("--textures", type=FOLDER, help="Textures of the synthetic anomalies.")
@click.option("--output", type=FILE, required=True, help=".xml to write; .bin comes beside it.")
@bit_depth_option
def nncf(
    fused: Path, int8: Path, normal: Path, images: int, textures: Path | None, output: Path
) -> None:
    """Quantise with NNCF the layers that INT8 holds in INT8, calibrated on the same images.

    FUSED is what destseg-export fuse PLAIN --for-int8 wrote, INT8 what destseg-export quantize
    PLAIN wrote. Give --good, --images and --textures as to quantize. Pass the result to
    destseg-bench cpu --int8, beside INT8.
    """
    from destseg_bench.speed.nncf_int8 import quantize_with_nncf
    from destseg_deploy.data.calibration import add_anomalies, read_normal
    from destseg_deploy.spec import ModelSpec

    # The images that quantize calibrates on: it reads twice as many, and judges on the rest.
    good = read_normal(normal, ModelSpec.read(fused), 2 * images)[:images]
    seen = add_anomalies(good, textures=textures)
    spec = quantize_with_nncf(fused, int8, seen.frames, output)
    say(f"model    {output}")
    if (made := spec.quantization) is not None:
        say(f"int8     {len(made.layers)} layers by {made.quantiser}")
