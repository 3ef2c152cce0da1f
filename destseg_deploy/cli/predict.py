"""destseg-predict."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from destseg_deploy.cli.options import (
    ARTIFACT,
    DEVICE,
    FOLDER,
    OPENVINO_PRECISION,
    THREADS,
    VERSION,
    openvino_options,
)
from destseg_deploy.console import OneLineErrors, progress
from destseg_deploy.predictor import load


@click.command(cls=OneLineErrors)
@ARTIFACT
@click.argument("images", nargs=-1, required=True)
@click.option(
    "--output", type=FOLDER, default="predictions", help="Folder for the table and overlays."
)
@click.option(
    "--format",
    "table",
    type=click.Choice(["csv", "json"]),
    default="csv",
    help="Format of the table.",
)
@click.option("--overlays/--no-overlays", default=True, help="Write a picture for each image.")
@DEVICE
@OPENVINO_PRECISION
@THREADS
@click.option("--batch-size", type=int, help="Images per call.  [default: the artifact's optimum]")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON on stdout.")
@VERSION
def predict(
    artifact: Path,
    images: tuple[str, ...],
    output: Path,
    table: str,
    overlays: bool,
    device: str | None,
    openvino_precision: str | None,
    threads: int,
    batch_size: int | None,
    as_json: bool,
) -> None:
    """Score images: files, folders or quoted globs.

    Writes OUTPUT/predictions.csv (or .json), an overlay for each image, with the heat map, the
    contour at the pixel threshold, the score and the verdict, and overview.png, the highest scores
    on one page. Nothing is written when an image cannot be read.
    """
    from destseg_deploy.data.images import expand
    from destseg_deploy.prediction import predict_files

    paths = expand(images)
    openvino = openvino_options(openvino_precision)
    with (
        load(artifact, device=device, threads=threads, openvino=openvino) as predictor,
        progress("predicting") as advance,
    ):
        rows = predict_files(
            predictor,
            paths,
            output,
            table=table,
            overlays=overlays,
            batch_size=batch_size,
            report=advance,
        )
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=2))
        return
    for row in rows:
        click.echo(f"{row.score:.4f}  {row.verdict:<10}  {row.image}")
    found = f"{sum(row.verdict == 'anomalous' for row in rows)} anomalous"
    if rows[0].verdict == "unjudged":
        found = f"no threshold yet: destseg-threshold {artifact} --normal FOLDER"
    click.echo(f"{len(rows)} {'image' if len(rows) == 1 else 'images'}, {found}", err=True)
    click.echo(f"written to {output}", err=True)
