"""destseg-report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from destseg_deploy.cli.console import OneLineErrors, progress, say
from destseg_deploy.cli.data_options import Labelled, labelled_options
from destseg_deploy.cli.options import (
    ARTIFACT,
    FILE,
    VERSION,
    bit_depth_option,
    runtime_options,
)
from destseg_deploy.loading import load


@click.command(cls=OneLineErrors)
@ARTIFACT
@labelled_options
@click.option("--output", type=FILE, default="report.html", help="The file to write.")
@click.option(
    "--pictures",
    type=click.IntRange(0),
    default=200,
    help="Images that are shown, at most, wrong verdicts first; all are counted.",
)
@click.option("--batch-size", type=int, help="Images per call.  [default: the artifact's optimum]")
@bit_depth_option
@runtime_options
@VERSION
def report(
    artifact: Path,
    labelled: Labelled,
    output: Path,
    pictures: int,
    batch_size: int | None,
    **how: Any,
) -> None:
    """Write a report of labelled images that any browser shows.

    Writes one HTML file. It shows both thresholds as sliders, with the false rejects and misses
    that follow and the false-reject rate that the good images guarantee; the images with heat,
    outline and ground truth; each defect type; curves; and where the artifact came from.

    Images and masks are PNG, JPEG, BMP or TIFF. Those with an orientation tag or several pages are
    refused.
    """
    from destseg_deploy.evaluation.report import report_category

    with load(artifact, **how) as predictor:
        data = labelled.open(predictor.spec.category)
        with progress("scoring") as advance:
            found = report_category(
                predictor,
                artifact,
                data,
                output,
                pictures=pictures,
                batch_size=batch_size,
                report=advance,
            )
    if found.remark is not None:
        say(f"note: {found.remark}", err=True)
    say(f"written to {output}")
