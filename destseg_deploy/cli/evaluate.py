"""destseg-evaluate."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from destseg_deploy.cli.options import (
    ARTIFACT,
    DATA,
    DEVICE,
    FOLDER,
    OPENVINO_PRECISION,
    THREADS,
    VERSION,
    openvino_options,
)
from destseg_deploy.console import OneLineErrors, progress
from destseg_deploy.errors import MetricError
from destseg_deploy.predictor import load

if TYPE_CHECKING:
    from destseg_deploy.evaluation_report import Report


def _known_ts(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...]:
    """Return the values of T, or refuse them as a usage error."""
    from destseg_deploy.evaluation import check_ts

    if value is None:
        return ()
    try:
        ts = tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(
            f"{value!r}: expected whole numbers with commas, such as 20,50,100,200."
        ) from None
    try:
        check_ts(ts)
    except MetricError as error:
        raise click.BadParameter(str(error)) from None
    return ts


@click.command(cls=OneLineErrors)
@ARTIFACT
@click.option("--category", help="Folder below --data.  [default: the artifact's category]")
@DATA
@click.option(
    "--output", type=FOLDER, help="Also write curves.png, worst.png and metrics.json there."
)
@click.option(
    "--sweep-t",
    "ts",
    metavar="T,T,...",
    callback=_known_ts,
    help="Also give the image AUROC when the T highest pixels make the score, counted at 256x256; "
    "20,50,100,200 for the paper's Table S1.",
)
@DEVICE
@OPENVINO_PRECISION
@THREADS
@click.option("--batch-size", type=int, help="Images per call.  [default: the artifact's optimum]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@VERSION
def evaluate(
    artifact: Path,
    category: str | None,
    data: Path,
    output: Path | None,
    ts: tuple[int, ...],
    device: str | None,
    openvino_precision: str | None,
    threads: int,
    batch_size: int | None,
    as_json: bool,
) -> None:
    """Measure a checkpoint or exported model on a category's labelled test images.

    Image AUROC and F1, and with ground-truth masks pixel AUROC, pixel AP, PRO and IAP. With
    --output also their curves, the worst errors as pictures, and all numbers and scores as JSON.
    """
    from destseg_deploy.data.mvtec import find_category
    from destseg_deploy.evaluation_report import evaluate_category

    openvino = openvino_options(openvino_precision)
    with load(artifact, device=device, threads=threads, openvino=openvino) as predictor:
        folder = find_category(data, category or predictor.spec.category)
        with progress("scoring") as advance:
            report = evaluate_category(
                predictor,
                artifact,
                folder,
                ts=ts,
                output=output,
                batch_size=batch_size,
                report=advance,
            )
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2))
    else:
        for line in _table(report):
            click.echo(line)
        for path in report.result.vanished:
            click.echo(f"note: the mask of {path} has no pixel left at the map's size", err=True)
    if output is not None:
        click.echo(f"written to {output}", err=True)


def _table(report: Report) -> Iterator[str]:
    """Yield the lines of the table."""
    result, judged = report.result, report.judged
    good, bad = result.images - result.anomalous, result.anomalous
    yield f"{report.artifact} on {report.folder}: {result.images} images, {bad} anomalous"
    for name, value in result.rows():
        yield f"  {name:<12} {value:.4f}"
    if judged is not None and report.threshold is not None:
        yield (
            f"  at score > {report.threshold.score:.4f}: {judged.false_rejects} of {good} good "
            f"parts rejected, {judged.missed} of {bad} defects missed"
        )
    yield f"  {'defect':<20} {'images':>6} {'AUROC':>7} {'lowest score':>13}"
    for row in result.defects:
        yield (
            f"  {row.defect:<20} {row.images:>6} {row.image_auroc:>7.4f} {row.lowest_score:>13.4f}"
        )
    if report.sweep:
        height, width = report.test.maps.shape[1:]
        yield f"  {'T at 256x256':<20} {'pixels':>6} {'AUROC':>7}  of {height}x{width} maps"
        for t in report.sweep:
            yield f"  {t.t:<20} {t.k:>6} {t.image_auroc:>7.4f}"
