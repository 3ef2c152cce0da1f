"""destseg-export refit."""

from __future__ import annotations

from pathlib import Path

import click

from destseg_deploy.console import OneLineErrors
from destseg_export.cli.options import FILE, GPU, verified
from destseg_export.cli.telling import report, tell


@click.command(cls=OneLineErrors)
@click.argument("engine", type=FILE)
@click.option(
    "--from",
    "source",
    type=FILE,
    required=True,
    help="Where the weights are: the .onnx of another category, or its checkpoint.",
)
@click.option("--output", type=FILE, required=True, help="The .engine file to write.")
@click.option(
    "--checkpoint",
    type=FILE,
    help="Checkpoint that a .onnx was exported from.  [default: beside it]",
)
@GPU
@verified
@click.version_option(package_name="destseg-deploy")
def refit(
    engine: Path,
    source: Path,
    output: Path,
    checkpoint: Path | None,
    device: str,
    verify_images: Path | None,
    max_map_difference: float | None,
    max_score_difference: float | None,
) -> None:
    """Write a copy of an engine that has another category's weights.

    ENGINE was built with --refittable. The copy is compared with PyTorch before it gets its name.
    Needs the GPU that ENGINE was built for.
    """
    from destseg_deploy.data.images import expand
    from destseg_export.engine_parity import Limits
    from destseg_export.refit import refit_file

    spec = refit_file(
        engine,
        source,
        output,
        device=device,
        checkpoint=checkpoint,
        verify_images=expand([str(verify_images)]) if verify_images else None,
        limits=Limits(max_map_difference, max_score_difference),
        report=report,
    )
    tell(output, spec)
