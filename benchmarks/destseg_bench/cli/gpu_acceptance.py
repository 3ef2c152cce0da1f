"""destseg-bench gpu-acceptance."""

from __future__ import annotations

from pathlib import Path

import click

from destseg_deploy.cli.options import FILE, FOLDER
from destseg_deploy.console import OneLineErrors


@click.command("gpu-acceptance", cls=OneLineErrors)
@click.option("--checkpoint", type=FILE, required=True, help="A trained .safetensors.")
@click.option("--data", type=FOLDER, required=True, help="Category folder in the MVTec AD layout.")
@click.option(
    "--work", type=FOLDER, default="gpu-acceptance", help="Folder for artifacts and results."
)
@click.option("--tests", type=FOLDER, help="The project's tests folder, in a checkout.")
@click.option(
    "--limit", type=click.FloatRange(1), default=600.0, help="Seconds that one step may take."
)
@click.option("--output", type=FILE, required=True, help="JSON file for all results.")
def gpu_acceptance(
    checkpoint: Path, data: Path, work: Path, tests: Path | None, limit: float, output: Path
) -> None:
    """Run all that a GPU host must show, and write one JSON.

    The GPU's tests, exports and engines, agreement with PyTorch, latency and throughput. The status
    is 1 when a step failed; what could not run here is named with the reason.
    """
    from destseg_bench.acceptance import acceptance_steps, run_steps
    from destseg_deploy.spec import ModelSpec
    from destseg_deploy.training.place import pick_device

    pick_device("cuda")
    ModelSpec.read(checkpoint).check_artifact(checkpoint)
    outcomes = run_steps(
        acceptance_steps(checkpoint, data, work, tests),
        output,
        limit=limit,
        report=lambda one: click.echo(f"{one.status:<8} {one.name:<18} {one.reason}".rstrip()),
    )
    failed = [one.name for one in outcomes if one.status == "failed"]
    if failed:
        raise click.ClickException(f"failed: {', '.join(failed)}. {output} has their output.")
