"""destseg-export refit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from destseg_deploy.cli.console import OneLineErrors
from destseg_deploy.cli.options import FILE, VERSION
from destseg_export.cli.options import GPU, verification, verified
from destseg_export.cli.printing import report, tell


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
@VERSION
def refit(
    engine: Path,
    source: Path,
    output: Path,
    checkpoint: Path | None,
    device: str,
    **verified: Any,
) -> None:
    """Write a copy of an engine that has another category's weights.

    ENGINE was built with --refittable. The copy is compared with PyTorch before it gets its name.
    Needs the GPU that ENGINE was built for.
    """
    from destseg_export.engine.refit import refit_file

    spec = refit_file(
        engine,
        source,
        output,
        device=device,
        checkpoint=checkpoint,
        verification=verification(verified),
        report=report,
    )
    tell(output, spec)
