"""destseg-export study-builds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from destseg_deploy.atomic import replacing
from destseg_deploy.console import OneLineErrors, progress
from destseg_export.cli.options import FILE, targets

ROW = "{:<10} {:<9} {:<28} {:>8} {:>8} {:>9} {:>9} {:>7}"
HEADS = ("input", "precision", "targets", "parse s", "build s", "onnx MB", "engine MB", "half")


@click.command("study-builds", cls=OneLineErrors)
@click.argument("checkpoint", type=FILE)
@click.option(
    "--target",
    "wanted",
    metavar="SM[,SM...]",
    default="sm86,sm89,sm120",
    callback=targets,
    help="Compute capabilities to build for.",
)
@click.option("--output", type=FILE, help="JSON file for the result.")
@click.version_option(package_name="destseg-deploy")
def study_builds(checkpoint: Path, wanted: tuple[str, ...], output: Path | None) -> None:
    """Build a model's graphs ahead of time with TensorRT-RTX and measure that; needs no GPU."""
    from destseg_deploy.environment import describe_environment
    from destseg_export import build_study

    with progress("building") as advance:
        result = build_study.study_builds(checkpoint, wanted, report=advance)
    if output is not None:
        text = json.dumps({"environment": describe_environment(), **result}, indent=2)
        with replacing(output) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    click.echo(f"{result['builder']}, batch {result['batch']}")
    click.echo(ROW.format(*HEADS))
    for row in result["rows"]:
        click.echo(_line(row))


def _line(row: dict[str, Any]) -> str:
    head = ("{}x{}".format(*row["input"]), row["precision"], ",".join(row["targets"]))
    if "refused" in row:
        return f"{ROW.format(*head, *[''] * 5).rstrip()} refused: {row['refused']}"
    megabytes = (f"{row[name] / 1e6:.1f}" for name in ("onnx_bytes", "engine_bytes"))
    seconds = (f"{row[name]:.2f}" for name in ("parse_seconds", "build_seconds"))
    half = f"{row['half_convolutions']}/{row['convolutions']}"
    return ROW.format(*head, *seconds, *megabytes, half)
