"""destseg-bench latency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from destseg_bench.results import start_result, write_result
from destseg_deploy.cli.console import OneLineErrors, progress
from destseg_deploy.cli.options import FILE, FOLDER, THREADS, bit_depth_option, counts, known_device
from destseg_deploy.cli.result_option import result_option
from destseg_deploy.errors import BackendError

BATCHES = click.option(
    "--batch",
    "batches",
    default="1",
    metavar="N[,N...]",
    callback=counts,
    help="Images per call; one table for each.",
)


@click.command(cls=OneLineErrors)
@click.argument("artifacts", nargs=-1, required=True, type=FILE)
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
@click.option("--rounds", type=click.IntRange(1), default=30, help="Timed calls of each.")
@click.option("--warmup", type=click.IntRange(1), default=3, help="Calls before, not timed.")
@THREADS
@click.option("--compiled", is_flag=True, help="Let torch.compile compete; it takes minutes.")
@click.option(
    "--rates",
    is_flag=True,
    help="Also give each time's share of the matrix rate and memory floor; on a GPU always.",
)
@result_option("JSON file, written anew after every table.")
@bit_depth_option
def latency(
    artifacts: tuple[Path, ...],
    images: Path,
    device: str,
    batches: tuple[int, ...],
    streams: tuple[int, ...],
    threads: int,
    compiled: bool,
    rates: bool,
    output: Path | None,
    **protocol: Any,
) -> None:
    """Time artifacts side by side, call by call, from frames in memory to answers.

    ARTIFACTS are .safetensors (PyTorch, in several ways), .onnx and .engine. Ratios are to the
    first contender. What cannot run here is named with the reason.
    """
    from destseg_bench.report.speed_tables import latency as tables
    from destseg_bench.speed.contenders import list_contenders
    from destseg_bench.speed.latency import find_frames, measure_latency
    from destseg_bench.timing import SETTLE

    on_gpu = device.startswith("cuda")
    protocol["settle"] = 0.0 if on_gpu else SETTLE  # a GPU's clock falls in a rest
    order = {"order": "interleaved, shifted by one each round"}
    result = start_result("latency", device=device, protocol={**protocol, **order}, complete=False)
    result["rows"] = []
    contenders = list_contenders(artifacts, device=device, threads=threads, compiled=compiled)
    frames = find_frames(images, max(batches))
    if rates or on_gpu:
        result["rates"] = _rates(device)
    with progress("timing") as advance:
        for rows in measure_latency(
            contenders, frames, batches=batches, streams=streams, report=advance, **protocol
        ):
            if found := result.get("rates"):
                from destseg_bench.speed.matrix_rate import add_shares

                for row in rows:
                    add_shares(row, found)
            result["rows"] += rows
            write_result(output, result)
            for table in tables({**result, "rows": rows}):
                click.echo(table.text())
    result["complete"] = True
    write_result(output, result)


def _rates(device: str) -> dict[str, Any] | None:
    """Return what the device can do at best; None where it is not there, as the rows then say."""
    from destseg_bench.speed.matrix_rate import measure_rates

    try:
        return measure_rates(device)
    except BackendError:
        return None
