"""destseg tune."""

from __future__ import annotations

from pathlib import Path

import click

from destseg_deploy.cli.console import OneLineErrors, progress, say
from destseg_deploy.cli.options import FILE, FOLDER, bit_depth_option


@click.command(cls=OneLineErrors)
@click.argument("artifacts", nargs=-1, required=True, type=FILE)
@click.option("--images", type=FOLDER, required=True, help="Images of the part, at least two.")
@click.option(
    "--rounds",
    type=click.IntRange(6),
    default=15,
    show_default=True,
    help="Timed calls of each choice, in each of two stages.",
)
@click.option(
    "--batch", type=click.IntRange(1), default=1, show_default=True, help="Images in a call."
)
@click.option(
    "--cameras",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Calls at the same time, as several cameras make them.",
)
@bit_depth_option
def tune(artifacts: tuple[Path, ...], images: Path, rounds: int, batch: int, cameras: int) -> None:
    """Find how artifacts run fastest on this CPU.

    Tries ONNX Runtime and OpenVINO, the precisions that the CPU computes in, and numbers of
    threads and, for several cameras, of streams, in turns. bf16 competes only if its answers keep
    to the budget of precision. If two settings are equally fast, the one nearer to the default is
    taken.

    Writes ARTIFACT's NAME.tuning.json beside it; --tuned, load(..., options="tuned") and the C++
    library follow it on this PC. Give the plain, the fused and the INT8 file together to compare
    them: the list at the end begins with the fastest.
    """
    from destseg_bench.report.tune_table import tune_table
    from destseg_bench.speed.latency import find_frames
    from destseg_bench.speed.tune import COMPARED, compare_tuned
    from destseg_bench.speed.tune import tune as measure
    from destseg_deploy.tuning import hold_tuning

    frames = find_frames(images, COMPARED)
    found = {}
    for artifact in dict.fromkeys(artifacts):
        with hold_tuning(artifact):
            with progress(f"tuning {artifact.name}") as advance:
                tuning, trials = measure(
                    artifact, frames, rounds=rounds, batch=batch, cameras=cameras, report=advance
                )
            written = tuning.write(artifact)
        found[artifact] = tuning
        click.echo(tune_table(artifact, tuning, trials).text())
        say(f"written to {written}")
    if len(found) > 1:
        with progress("comparing") as advance:
            times = compare_tuned(found, frames, rounds=rounds, report=advance)
        for artifact, taken in sorted(times.items(), key=lambda pair: pair[1]):
            say(f"{taken:8.1f} ms  {artifact} ({found[artifact].choice})")
