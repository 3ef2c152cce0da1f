"""destseg-bench agreement."""

from __future__ import annotations

import json
from pathlib import Path

import click

from destseg_bench.agreement import describe_training, measure_agreement
from destseg_deploy.atomic import replacing
from destseg_deploy.console import OneLineErrors, progress
from destseg_deploy.environment import describe_environment


@click.command(cls=OneLineErrors)
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Category folder in the MVTec AD layout.",
)
@click.option("--device", default="cpu", metavar="cpu|cuda[:N]", help="Where to run.")
@click.option("--threads", type=click.IntRange(0), default=0, help="CPU threads; 0: back end's.")
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), help="JSON file for the result."
)
def agreement(
    artifacts: tuple[Path, ...], data: Path, device: str, threads: int, output: Path | None
) -> None:
    """Compare artifacts on a test set: metrics, and differences to the first."""
    with progress("scoring") as advance:
        rows = measure_agreement(artifacts, data, device=device, threads=threads, report=advance)
    if output is not None:
        result = {
            "environment": describe_environment(),
            "data": str(data),
            "trained": describe_training(artifacts[0]),
            "rows": rows,
        }
        with replacing(output) as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    click.echo(
        f"{'artifact':<40} {'AUROC':>7} {'AP':>7} {'PRO':>7} {'IAP':>7} {'score':>8} {'map':>8}"
    )
    for row in rows:
        pixel = row["pixel"] or dict.fromkeys(("ap", "pro", "iap"), float("nan"))
        click.echo(
            f"{row['artifact']:<40} {row['image_auroc']:7.4f} {pixel['ap']:7.4f} "
            f"{pixel['pro']:7.4f} {pixel['iap']:7.4f} {row['score_max_abs']:8.1e} "
            f"{row['map_max_abs']:8.1e}"
        )
