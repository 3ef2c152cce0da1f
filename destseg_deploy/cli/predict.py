"""destseg-predict."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from destseg_deploy.archive.options import ArchiveOptions
from destseg_deploy.cli.console import OneLineErrors, progress, say
from destseg_deploy.cli.options import (
    ARTIFACT,
    FOLDER,
    VERSION,
    bit_depth_option,
    given,
    given_flag,
    options_of,
    runtime_options,
)
from destseg_deploy.cluster.place import HERE
from destseg_deploy.errors import BackendError, DataError
from destseg_deploy.loading import load

if TYPE_CHECKING:
    from destseg_deploy.predict_files import Row


PARQUET = "parquet"


@click.command(cls=OneLineErrors)
@ARTIFACT
@click.argument("images", nargs=-1, required=True)
@click.option(
    "--output", type=FOLDER, default="predictions", help="Folder for the table and overlays."
)
@click.option(
    "--format",
    "table",
    type=click.Choice(["csv", "json", PARQUET]),
    help="Format of the table. parquet is for archives: it has no pictures, and the same command "
    "goes on where a run stopped.  [default: csv; with --on ray, parquet]",
)
@click.option("--overlays/--no-overlays", default=True, help="Write a picture for each image.")
@click.option("--batch-size", type=int, help="Images per call.  [default: the artifact's optimum]")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON on stdout.")
@bit_depth_option
@options_of(ArchiveOptions, heading="Options of archives (--format parquet)")
@runtime_options
@VERSION
def predict(
    artifact: Path,
    images: tuple[str, ...],
    output: Path,
    table: str | None,
    overlays: bool,
    batch_size: int | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Score images: files, folders, quoted globs, or CSV and JSON lists.

    Writes OUTPUT/predictions.csv (or .json), an overlay for each image (the heat map, an outline
    around the pixels above the pixel threshold, the score, and the verdict OK or NG), and
    overview.png, the highest scores on one page. What an earlier run wrote to OUTPUT is replaced.
    An image that cannot be read gets a row with its error; all others are scored, and the status
    is 1.

    With --format parquet, OUTPUT is an archive of any size: a folder of Parquet files that the same
    command goes on with, here or on a Ray cluster (--on ray). Images may also be named by Parquet
    files (column path), text files (a path on each line) and URIs such as s3://bucket/folder.

    Images and masks are PNG, JPEG, BMP or TIFF. Those with an orientation tag or several pages are
    refused.
    """
    from destseg_deploy.data.datasets import find_images
    from destseg_deploy.predict_files import predict_files

    archive = given(ArchiveOptions, values)
    how = {name: values.pop(name) for name in ("backend", "device", "options")}
    if (table or (PARQUET if archive.get("on", HERE) != HERE else "csv")) == PARQUET:
        _refuse_pictures(as_json)
        work = {"artifact": artifact, "batch_size": batch_size, **how}
        _predict_archive(work, images, output, archive)
        return
    if archive:
        flag = given_flag(ArchiveOptions, values)
        raise click.UsageError(f"{flag} is for archives. Pass --format parquet, or drop it.")
    table = table or "csv"
    paths = find_images(images)
    with (
        load(artifact, **how) as predictor,
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
    else:
        _tell(rows, artifact, output)
    failed = [row for row in rows if row.error is not None]
    if failed:
        raise DataError(
            f"{len(failed)} of {len(rows)} images could not be scored; the others were, see "
            f"{output / f'predictions.{table}'}. The first: {failed[0].error}"
        )


def _refuse_pictures(as_json: bool) -> None:
    """Refuse what an archive has not, where it was asked for."""
    source = click.get_current_context().get_parameter_source("overlays")
    asked = source is not click.core.ParameterSource.DEFAULT
    if as_json or (asked and click.get_current_context().params["overlays"]):
        flag = "--json" if as_json else "--overlays"
        raise click.UsageError(
            f"{flag} is for the tables csv and json, which hold one run. Drop it, or pass --format "
            "csv."
        )


def _predict_archive(
    work: dict[str, Any], images: tuple[str, ...], output: Path, archive: dict[str, Any]
) -> None:
    from destseg_deploy.archive.answers import Work
    from destseg_deploy.archive.run import predict_archive
    from destseg_deploy.data.images import assumed_bit_depth

    try:
        options = ArchiveOptions(**archive)
    except BackendError as error:
        raise click.UsageError(str(error)) from error
    with progress("predicting") as advance:
        asked = Work(bit_depth=assumed_bit_depth(), **work)
        found = predict_archive(asked, images, output, options=options, report=advance)
    counts = found.counts
    before = counts.images - found.new
    rate = f", {found.new / found.seconds:.1f} images/s" if found.new else ""
    earlier = f", {before} of them by earlier runs" if before else ""
    say(f"{counts.images} images answered{earlier}{rate}", err=True)
    say(f"{counts.ng} NG, {counts.errors} errors; written to {output}", err=True)
    if counts.errors:
        raise DataError(
            f"{counts.errors} of {counts.images} images could not be scored; see the column error "
            f"of {output}. The first: {counts.first}"
        )


def _tell(rows: list[Row], artifact: Path, output: Path) -> None:
    """Print a line for each image, and below them, on stderr, what they are in sum."""
    for row in rows:
        score = "-" if row.score is None else f"{row.score:.4f}"
        say(f"{score:<6}  {row.verdict or '-':<2}  {row.image}")
    found = f"{sum(row.verdict == 'NG' for row in rows)} NG"
    if all(row.verdict is None for row in rows):
        found = f"no threshold yet: destseg-threshold {artifact} --good FOLDER"
    say(f"{len(rows)} {'image' if len(rows) == 1 else 'images'}, {found}", err=True)
    say(f"written to {output}", err=True)
