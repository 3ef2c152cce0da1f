"""destseg-bench rewrites: the time that each fusion saves."""

from __future__ import annotations

from pathlib import Path

import click

from destseg_bench.cli.latency import BATCHES
from destseg_bench.results import start_result, write_result
from destseg_deploy.cli.console import OneLineErrors, progress
from destseg_deploy.cli.options import FILE, FOLDER, THREADS, bit_depth_option
from destseg_deploy.cli.result_option import result_option


@click.command(cls=OneLineErrors)
@click.argument("plain", type=FILE)
@click.argument("folder", type=FOLDER)
@click.option("--images", type=FOLDER, required=True, help="Folder with images to score.")
@BATCHES
@click.option("--rounds", type=click.IntRange(1), default=30, show_default=True, help="Calls each.")
@THREADS
@result_option("JSON file, written anew after each back end.")
@bit_depth_option
def rewrites(
    plain: Path,
    folder: Path,
    images: Path,
    batches: tuple[int, ...],
    rounds: int,
    threads: int,
    output: Path | None,
) -> None:
    """Time what each fusion of destseg-export fuse is worth on this CPU.

    PLAIN is the export without fusions, FOLDER what destseg-export fuse PLAIN --each FOLDER wrote.
    A ratio is the time without one fusion divided by the time with all fusions, round by round.
    Below 1, the fusion costs time.
    """
    from destseg_bench.report.speed_tables import fusions as tables
    from destseg_bench.speed.fusions import BACK_ENDS, time_fusions
    from destseg_bench.speed.latency import find_frames, stack_frames
    from destseg_deploy.spec import ModelSpec

    size = ModelSpec.read(plain).size
    paths = find_frames(images, max(batches))
    result = start_result("rewrites", rounds=rounds, threads=threads, complete=False, rows=[])
    for batch in batches:
        frames = stack_frames(paths, size, batch)
        rows = []
        for back_end in BACK_ENDS:
            with progress(back_end) as advance:
                rows += time_fusions(
                    plain, folder, frames, back_end, rounds=rounds, threads=threads, report=advance
                )
            write_result(output, {**result, "rows": result["rows"] + rows})
        result["rows"] += rows
        for table in tables({**result, "rows": rows}):
            click.echo(table.text())
    result["complete"] = True
    write_result(output, result)
