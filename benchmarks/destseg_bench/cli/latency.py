"""destseg-bench latency."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from destseg_bench.cli.timing_options import BATCHES
from destseg_deploy.atomic import replacing
from destseg_deploy.cli.options import FILE, FOLDER, THREADS, known_device
from destseg_deploy.cli.training_options import counts
from destseg_deploy.console import OneLineErrors, progress
from destseg_deploy.environment import describe_environment

ROW = "{:<44} {:>5} {:>7} {:>6} {:>8} {:>8} {:>8} {:>9} {:>7}"
HEADS = ("contender", "batch", "streams", "frames", "median", "p90", "p99", "images/s", "faster")


@click.command(cls=OneLineErrors)
@click.argument(
    "artifacts", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False)
)
@click.option("--images", type=FOLDER, required=True, help="Folder with images to score.")
@click.option(
    "--device", default="cpu", metavar="cpu|cuda[:N]", callback=known_device, help="Where to run."
)
@BATCHES
@click.option(
    "--streams",
    default="1",
    metavar="N[,N...]",
    callback=counts,
    help="Calls at the same time; one table for each.",
)
@click.option("--rounds", type=click.IntRange(1), default=30, help="Calls that count.")
@click.option("--warmup", type=click.IntRange(1), default=3, help="Calls before, which do not.")
@THREADS
@click.option("--compiled", is_flag=True, help="Let torch.compile compete; it takes minutes.")
@click.option("--output", type=FILE, help="JSON file, written anew after every batch size.")
def latency(
    artifacts: tuple[Path, ...],
    images: Path,
    device: str,
    batches: tuple[int, ...],
    streams: tuple[int, ...],
    threads: int,
    compiled: bool,
    output: Path | None,
    **protocol: Any,
) -> None:
    """Time artifacts side by side, call by call, from frames in memory to answers.

    ARTIFACTS are .safetensors (PyTorch, in several ways), .onnx and .engine. Ratios are to the
    first contender. What cannot run here is named with the reason.
    """
    from destseg_bench.contenders import list_contenders
    from destseg_bench.latency import find_frames, measure_latency
    from destseg_bench.timing import SETTLE

    contenders = list_contenders(artifacts, device=device, threads=threads, compiled=compiled)
    frames = find_frames(images, max(batches))
    protocol["settle"] = 0.0 if device.startswith("cuda") else SETTLE
    environment, rows = describe_environment(), list[dict[str, Any]]()
    click.echo(f"{device}; milliseconds per call, interleaved")
    click.echo(ROW.format(*HEADS))
    with progress("timing") as advance:
        measured = measure_latency(
            contenders, frames, batches=batches, streams=streams, report=advance, **protocol
        )
        for found in measured:
            rows += found
            for row in found:
                click.echo(_line(row))
            if output is not None:
                planned = len(contenders) * len(batches) * len(streams)
                _write(output, environment, device, protocol, rows, len(rows) == planned)


def _line(row: dict[str, Any]) -> str:
    head = (row["name"], row["batch"], row["streams"], row["origin"])
    if "skipped" in row:
        return f"{ROW.format(*head, '', '', '', '', '').rstrip()} skipped: {row['skipped']}"
    times = (f"{row[name]:.2f}" for name in ("median", "p90", "p99"))
    return ROW.format(
        *head, *times, f"{row['images_per_second']:.1f}", f"{row['times_faster']:.2f}x"
    )


def _write(
    output: Path,
    environment: dict[str, Any],
    device: str,
    protocol: dict[str, Any],
    rows: list[dict[str, Any]],
    complete: bool,
) -> None:
    result: dict[str, Any] = {
        "kind": "latency",
        "environment": environment,
        "device": device,
        "protocol": {**protocol, "order": "interleaved, shifted by one each round"},
        "complete": complete,
        "rows": rows,
    }
    if complete and device.startswith("cuda"):
        from destseg_bench.matrix_rate import measure_matrix_rate

        result["matrix_rate"] = measure_matrix_rate(device)
    with replacing(output) as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
