"""destseg-evaluate."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from destseg_deploy.cli.console import OneLineErrors, progress, say
from destseg_deploy.cli.data_options import Labelled, labelled_options
from destseg_deploy.cli.options import (
    ARTIFACT,
    FOLDER,
    VERSION,
    bit_depth_option,
    runtime_options,
    whole_numbers,
)
from destseg_deploy.errors import MetricError
from destseg_deploy.loading import load

if TYPE_CHECKING:
    from destseg_deploy.evaluation.measured import Report


def _known_ts(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...]:
    """Return the values of T, or refuse them as a usage error."""
    from destseg_deploy.evaluation.test_set import check_ts

    if value is None:
        return ()
    ts = whole_numbers(value, "whole numbers with commas, such as 20,50,100,200")
    try:
        check_ts(ts)
    except MetricError as error:
        raise click.BadParameter(str(error)) from None
    return ts


@click.command(cls=OneLineErrors)
@ARTIFACT
@labelled_options
@click.option(
    "--output",
    type=FOLDER,
    help="Also write report.html, curves.png, worst.png and metrics.json there.",
)
@click.option(
    "--sweep-t",
    "ts",
    metavar="T,T,...",
    callback=_known_ts,
    help="Also give the image AUROC when the T highest pixels make the score, counted at 256x256; "
    "20,50,100,200 for the paper's Table S1.",
)
@click.option("--batch-size", type=int, help="Images per call.  [default: the artifact's optimum]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@bit_depth_option
@runtime_options
@VERSION
def evaluate(
    artifact: Path,
    labelled: Labelled,
    output: Path | None,
    ts: tuple[int, ...],
    batch_size: int | None,
    as_json: bool,
    **how: Any,
) -> None:
    """Measure a checkpoint or exported model on labelled images.

    The images are an MVTec AD category, a folder that holds a folder good and one for each kind of
    defect, a CSV or JSON list (path,label,mask), or what --good and --ng name.

    Prints image AUROC and F1, and with ground-truth masks pixel AUROC, pixel AP, PRO and IAP; for a
    checkpoint also those of its student-teacher map. With --output, it also writes their curves,
    the worst errors as pictures, all numbers and scores as JSON, and the report of destseg-report.

    Images and masks are PNG, JPEG, BMP or TIFF. Those with an orientation tag or several pages are
    refused.
    """
    from destseg_deploy.evaluation.report import evaluate_category

    with load(artifact, **how) as predictor:
        data = labelled.open(predictor.spec.category)
        with progress("scoring") as advance:
            report = evaluate_category(
                predictor,
                artifact,
                data,
                ts=ts,
                output=output,
                batch_size=batch_size,
                report=advance,
            )
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2))
    else:
        for line in _table(report):
            say(line)
        for path in report.result.vanished:
            say(f"note: the mask of {path} has no pixel left at the map's size", err=True)
    for remark in _remarks(report):
        say(f"note: {remark}", err=True)
    if output is not None:
        say(f"written to {output}", err=True)


def _remarks(report: Report) -> Iterator[str]:
    """Yield why the numbers may not be what they seem."""
    result = report.result
    if result.image_auroc < result.chance:
        yield (
            f"image AUROC {result.image_auroc:.2f} is near chance: guessing gives 0.5, and up to "
            f"{result.chance:.2f} on {result.images} images. Train longer, with the ImageNet "
            "teacher and photographs as --textures, and check the labels."
        )
    if report.remark is not None:
        yield report.remark


def _table(report: Report) -> Iterator[str]:
    """Yield the lines of the table."""
    result, judged = report.result, report.judged
    good, bad = result.images - result.anomalous, result.anomalous
    yield f"{report.artifact} on {report.folder}: {result.images} images, {bad} anomalous"
    for name, value in result.rows():
        yield f"  {name:<12} {value:.4f}"
    if report.student_teacher is not None:
        yield "  student-teacher map alone (DeST in the paper):"
        for name, value in report.student_teacher.rows():
            yield f"    {name:<12} {value:.4f}"
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
