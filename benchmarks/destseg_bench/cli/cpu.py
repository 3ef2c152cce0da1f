"""destseg-bench cpu."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from destseg_deploy.atomic import replacing
from destseg_deploy.cli.options import FILE, FOLDER, THREADS
from destseg_deploy.console import OneLineErrors, progress
from destseg_deploy.environment import describe_environment

ROW = "{:<34} {:>8} {:>7} {:>8} {:>7} {:>7} {:>7} {:>7} {:>7} {:>7} {:>7}"
HEADS = (
    "setup",
    "ms",
    "faster",
    "ms at N",
    "faster",
    "start s",
    "MiB",
    "AP",
    "AUROC",
    "PRO",
    "IAP",
)


@click.command(cls=OneLineErrors)
@click.option("--checkpoint", type=FILE, required=True, help="The trained .safetensors.")
@click.option("--plain", type=FILE, required=True, help="Its fp32 .onnx, not fused.")
@click.option("--fused", type=FILE, required=True, help="The same after destseg-export fuse.")
@click.option("--int8", type=FILE, multiple=True, help="INT8 .onnx, or NNCF .xml; repeatable.")
@click.option("--data", type=FOLDER, required=True, help="Category in the MVTec AD layout.")
@click.option("--rounds", type=click.IntRange(1), default=20, show_default=True, help="Single.")
@click.option("--batch", type=click.IntRange(2), default=8, show_default=True, help="N.")
@click.option("--batch-rounds", type=click.IntRange(1), default=4, show_default=True, help="At N.")
@THREADS
@click.option("--compiled", is_flag=True, help="Let torch.compile compete; it takes minutes.")
@click.option("--output", type=FILE, required=True, help="JSON file, written anew after each part.")
def cpu(
    checkpoint: Path,
    plain: Path,
    fused: Path,
    int8: tuple[Path, ...],
    data: Path,
    rounds: int,
    batch: int,
    batch_rounds: int,
    threads: int,
    compiled: bool,
    output: Path,
) -> None:
    """Compare every way to run a model on this CPU: speed, memory, cold start, accuracy.

    Ratios are to PyTorch eager, interleaved with it. A call takes frames in memory and ends with
    map and score in memory.
    """
    from destseg_bench.cpu_setups import list_setups
    from destseg_bench.cpu_study import judge_setups, start_setups, time_setups

    setups = list_setups(checkpoint, plain, fused, int8, compiled=compiled)
    result: dict[str, Any] = {
        "kind": "cpu",
        "environment": describe_environment(),
        "data": data.name,
        "threads": threads,
    }
    counts = {1: rounds, batch: batch_rounds}
    with progress("timing") as advance:
        result["latency"] = time_setups(
            setups, data, rounds=counts, threads=threads, report=advance
        )
    _write(output, result)
    result["start"] = start_setups(setups)
    _write(output, result)
    with progress("scoring") as advance:
        result["accuracy"] = judge_setups(setups, data, threads=threads, report=advance)
    _write(output, result)
    click.echo(ROW.format(*HEADS))
    for setup in setups:
        click.echo(_line(setup.name, result, batch))


def _line(name: str, result: dict[str, Any], batch: int) -> str:
    timed = {row["batch"]: row for row in result["latency"] if row["name"] == name}
    cells = []
    for count in (1, batch):
        row = timed[count]
        if "skipped" in row:
            cells += ["-", "-"]
        else:
            cells += [f"{row['median'] / count:.1f}", f"{row['times_faster']:.2f}x"]
    start, metrics = result["start"].get(name), result["accuracy"].get(name)
    cells += [f"{start['seconds']:.2f}", f"{start['resident_mib']:.0f}"] if start else ["-", "-"]
    wanted = ("pixel AP", "image AUROC", "PRO@0.3", "IAP")
    cells += [f"{metrics[key]:.4f}" if metrics and key in metrics else "-" for key in wanted]
    return ROW.format(name, *cells)


def _write(output: Path, result: dict[str, Any]) -> None:
    with replacing(output) as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
