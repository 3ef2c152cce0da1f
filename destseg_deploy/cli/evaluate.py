"""destseg-evaluate."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from destseg_deploy.cli.options import ARTIFACT, DATA, DEVICE, THREADS, VERSION
from destseg_deploy.console import OneLineErrors, progress
from destseg_deploy.predictor import load


@click.command(cls=OneLineErrors)
@ARTIFACT
@click.option("--category", help="Folder below --data.  [default: the artifact's category]")
@DATA
@DEVICE
@THREADS
@click.option("--batch-size", type=int, help="Images per call.  [default: the artifact's optimum]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@VERSION
def evaluate(
    artifact: Path,
    category: str | None,
    data: Path,
    device: str,
    threads: int,
    batch_size: int | None,
    as_json: bool,
) -> None:
    """Measure a checkpoint or exported model on a category's labelled test images.

    Image AUROC and F1, and with ground-truth masks pixel AUROC, pixel AP, PRO and IAP.
    """
    from destseg_deploy.data.mvtec import find_category
    from destseg_deploy.evaluation import compute_metrics, score_test_set

    with load(artifact, device=device, threads=threads) as predictor:
        spec = predictor.spec
        folder = find_category(data, category or spec.category)
        with progress("scoring") as advance:
            test = score_test_set(predictor, folder, batch_size=batch_size, report=advance)
    result = compute_metrics(test)
    judged = None if spec.threshold is None else test.judged(spec.threshold.score)
    if as_json:
        answer = {"artifact": str(artifact), "data": str(folder), **result.to_dict()}
        answer["judged"] = None if judged is None else asdict(judged)
        click.echo(json.dumps(answer, indent=2))
        return
    click.echo(f"{artifact} on {folder}: {result.images} images, {result.anomalous} anomalous")
    for name, value in result.rows():
        click.echo(f"  {name:<12} {value:.4f}")
    if judged is not None and spec.threshold is not None:
        click.echo(
            f"  at score > {spec.threshold.score:.4f}: {judged.false_rejects} of "
            f"{result.images - result.anomalous} good parts rejected, {judged.missed} of "
            f"{result.anomalous} defects missed"
        )
    click.echo(f"  {'defect':<20} {'images':>6} {'AUROC':>7} {'lowest score':>13}")
    for row in result.defects:
        click.echo(
            f"  {row.defect:<20} {row.images:>6} {row.image_auroc:>7.4f} {row.lowest_score:>13.4f}"
        )
    for path in result.vanished:
        click.echo(f"note: the mask of {path} has no pixel left at the map's size", err=True)
