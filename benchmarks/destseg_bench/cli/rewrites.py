"""destseg-bench rewrites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from destseg_bench.cli.timing_options import BATCHES
from destseg_deploy.cli.options import FILE, FOLDER, THREADS
from destseg_deploy.console import OneLineErrors, progress
from destseg_deploy.environment import describe_environment

ROW = "{:<24} {:<12} {:>5} {:>7} {:>8} {:>6} {:>13}"
HEADS = ("graph", "back end", "batch", "GMAC", "ms", "ratio", "95 %")


@click.command(cls=OneLineErrors)
@click.argument("plain", type=FILE)
@click.argument("folder", type=FOLDER)
@click.option("--images", type=FOLDER, required=True, help="Folder with images to score.")
@BATCHES
@click.option("--rounds", type=click.IntRange(1), default=30, show_default=True, help="Calls each.")
@THREADS
@click.option("--output", type=FILE, help="JSON file, written anew after each back end.")
def rewrites(
    plain: Path,
    folder: Path,
    images: Path,
    batches: tuple[int, ...],
    rounds: int,
    threads: int,
    output: Path | None,
) -> None:
    """Time what each rewrite of destseg-export fuse is worth on this CPU.

    PLAIN is the export without fusions, FOLDER what destseg-export fuse PLAIN --each FOLDER wrote.
    A ratio is the time without a rewrite by the time with all of them, round by round: below 1 the
    rewrite is a loss.
    """
    from destseg_bench.latency import find_frames, stack_frames
    from destseg_bench.result_file import write_result
    from destseg_bench.rewrites import BACK_ENDS, time_rewrites
    from destseg_deploy.spec import ModelSpec

    size = ModelSpec.read(plain).size
    paths = find_frames(images, max(batches))
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {
        "kind": "rewrites",
        "environment": describe_environment(),
        "rounds": rounds,
        "threads": threads,
        "complete": False,
        "rows": rows,
    }
    for batch in batches:
        frames = stack_frames(paths, size, batch)
        for back_end in BACK_ENDS:
            with progress(back_end) as advance:
                found = time_rewrites(
                    plain, folder, frames, back_end, rounds=rounds, threads=threads, report=advance
                )
            if not rows:
                click.echo(ROW.format(*HEADS))
            rows += found
            for row in found:
                click.echo(_line(row))
            result["complete"] = len(rows) == len(found) * len(BACK_ENDS) * len(batches)
            if output is not None:
                write_result(output, result)


def _line(row: dict[str, Any]) -> str:
    ratio = row["ratio"]
    return ROW.format(
        row["contender"],
        row["back_end"],
        row["batch"],
        f"{row['gmac']:.2f}",
        f"{row['milliseconds']['median']:.1f}",
        f"{ratio['median']:.3f}",
        f"{ratio['low']:.3f}-{ratio['high']:.3f}",
    )
