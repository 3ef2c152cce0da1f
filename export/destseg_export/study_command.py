"""destseg-export study-half."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from destseg_deploy.atomic import replacing
from destseg_deploy.console import OneLineErrors, progress
from destseg_deploy.environment import describe_environment
from destseg_deploy.spec import ModelSpec

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command("study-half", cls=OneLineErrors)
@click.argument("checkpoint", type=FILE)
@click.option("--data", type=FOLDER, required=True, help="Category folder in the MVTec AD layout.")
@click.option("--output", type=FILE, help="JSON file for the result.")
@click.option(
    "--in-graph",
    is_flag=True,
    help="Resize the images inside of the graph; all must have the first one's size.",
)
@click.option("--threads", type=click.IntRange(0), default=0, help="CPU threads; 0: back end's.")
@click.version_option(package_name="destseg-deploy")
def study_half_command(
    checkpoint: Path, data: Path, output: Path | None, in_graph: bool, threads: int
) -> None:
    """Measure what fp16 and bf16 cost on a test set, and what each FP32 part is worth."""
    from destseg_export.half_study import study_half

    size = _image_size(data) if in_graph else None
    with progress("scoring") as advance:
        result = study_half(checkpoint, data, input_size=size, threads=threads, report=advance)
    if output is not None:
        head = {
            "environment": describe_environment(),
            "data": str(data),
            "input_size": size,
            "checkpoint": ModelSpec.read(checkpoint).checkpoint.sha256,
        }
        with replacing(output) as temporary:
            text = json.dumps({**head, **result}, indent=2)
            temporary.write_text(text + "\n", encoding="utf-8")
    click.echo(HEADING)
    for row in result["rows"]:
        click.echo(_line(row))


HEADING = (
    f"{'variant':<32} {'map max':>8} {'mean':>8} {'score':>8} {'mean':>8} {'coarse':>7} "
    f"{'AUROC':>7} {'AP':>7}  gate"
)


def _line(row: dict[str, Any]) -> str:
    differences = ("map_max_abs", "map_mean_abs", "score_max_abs", "score_mean_abs")
    numbers = " ".join(f"{row[name]:8.1e}" if name in row else " " * 8 for name in differences)
    coarse = max(row.get("coarse_map", 0.0), row.get("coarse_scores", 0.0))
    metrics = " ".join(
        " " * 7 if row[name] is None else f"{row[name]:7.4f}"
        for name in ("image_auroc", "pixel_ap")
    )
    gate = "refused" if row.get("refused") else "passed" if "refused" in row else "reference"
    return f"{row['variant']:<32} {numbers} {coarse:7.2f} {metrics}  {gate}"


def _image_size(category: Path) -> tuple[int, int]:
    """Return height and width of a category's first test image."""
    from destseg_deploy.data.images import read_image
    from destseg_deploy.data.mvtec import list_test

    height, width = read_image(list_test(category)[0].image).shape[:2]
    return height, width
