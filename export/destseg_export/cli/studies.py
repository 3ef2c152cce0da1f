"""destseg-export study-half, study-int8 and study-builds: what the exporter's choices are worth."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import click

from destseg_deploy.cli.console import OneLineErrors, progress, say
from destseg_deploy.cli.data_options import DATASET
from destseg_deploy.cli.options import FILE, FOLDER, VERSION, bit_depth_option
from destseg_deploy.spec import ModelSpec
from destseg_export.cli.options import (
    CALIBRATION_IMAGES,
    GOOD,
    INT8_SCHEMES,
    OUTPUT,
    PARTS,
    SCHEME,
    TEXTURES,
    targets,
)
from destseg_export.cli.printing import Bar, report, write_result

BUILD_ROW = "{:<10} {:<9} {:<28} {:>8} {:>8} {:>9} {:>9} {:>7}"
BUILD_HEADS = (
    "input", "precision", "targets", "parse s", "build s", "onnx MB", "engine MB", "half",
)  # fmt: skip
INT8_ROW = "{:>10} {:>6} {:<12} {:>7} {:>7} {:>9} {:>8}"
INT8_HEADS = ("in float32", "share", "biases", "AUROC", "AP", "score rms", "map max")
HALF_HEADING = (
    f"{'variant':<32} {'map max':>8} {'mean':>8} {'score':>8} {'mean':>8} {'coarse':>7} "
    f"{'AUROC':>7} {'AP':>7}  gate"
)


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
@OUTPUT
@VERSION
def study_builds_command(checkpoint: Path, wanted: tuple[str, ...], output: Path | None) -> None:
    """Build a model's graphs ahead of time with TensorRT-RTX and measure that; needs no GPU."""
    from destseg_export.studies.builds import study_builds

    with progress("building") as advance:
        result = study_builds(checkpoint, wanted, report=advance)
    write_result(output, result)
    say(f"{result['builder']}, batch {result['batch']}")
    say(BUILD_ROW.format(*BUILD_HEADS))
    for row in result["rows"]:
        say(_build_line(row))


def _build_line(row: dict[str, Any]) -> str:
    head = ("{}x{}".format(*row["input"]), row["precision"], ",".join(row["targets"]))
    if "refused" in row:
        return f"{BUILD_ROW.format(*head, *[''] * 5).rstrip()} NG: {row['refused']}"
    megabytes = (f"{row[name] / 1e6:.1f}" for name in ("onnx_bytes", "engine_bytes"))
    seconds = (f"{row[name]:.2f}" for name in ("parse_seconds", "build_seconds"))
    half = f"{row['half_convolutions']}/{row['convolutions']}"
    return BUILD_ROW.format(*head, *seconds, *megabytes, half)


@click.command("study-half", cls=OneLineErrors)
@click.argument("checkpoint", type=FILE)
@click.option("--data", type=FOLDER, required=True, help="Category folder in the MVTec AD layout.")
@OUTPUT
@click.option(
    "--in-graph",
    is_flag=True,
    help="Resize the images inside of the graph; all must have the first one's size.",
)
@click.option("--threads", type=click.IntRange(0), default=0, help="CPU threads; 0: back end's.")
@VERSION
@bit_depth_option
def study_half_command(
    checkpoint: Path, data: Path, output: Path | None, in_graph: bool, threads: int
) -> None:
    """Measure what fp16 and bf16 cost on a test set, and what each FP32 part is worth."""
    from destseg_export.studies.half import study_half

    size = _image_size(data) if in_graph else None
    with progress("scoring") as advance:
        result = study_half(checkpoint, data, input_size=size, threads=threads, report=advance)
    sha256 = ModelSpec.read(checkpoint).checkpoint.sha256
    head = {"data": str(data), "input_size": size, "checkpoint": sha256}
    write_result(output, {**head, **result})
    say(HALF_HEADING)
    for row in result["rows"]:
        say(_half_line(row))


def _half_line(row: dict[str, Any]) -> str:
    differences = ("map_max_abs", "map_mean_abs", "score_max_abs", "score_mean_abs")
    numbers = " ".join(f"{row[name]:8.1e}" if name in row else " " * 8 for name in differences)
    coarse = max(row.get("coarse_map", 0.0), row.get("coarse_scores", 0.0))
    metrics = " ".join(
        " " * 7 if row[name] is None else f"{row[name]:7.4f}"
        for name in ("image_auroc", "pixel_ap")
    )
    gate = "NG" if row.get("refused") else "OK" if "refused" in row else "reference"
    return f"{row['variant']:<32} {numbers} {coarse:7.2f} {metrics}  {gate}"


@click.command("study-int8", cls=OneLineErrors)
@click.argument("source", type=FILE)
@GOOD
@click.option(
    "--labelled",
    type=DATASET,
    required=True,
    help="Labelled images with masks to compare answers on: a folder or list.",
)
@OUTPUT
@SCHEME
@PARTS
@CALIBRATION_IMAGES
@TEXTURES
@bit_depth_option
@VERSION
def study_int8_command(
    source: Path,
    normal: Path,
    labelled: Path,
    output: Path | None,
    scheme: str,
    parts: tuple[str, ...],
    images: int,
    textures: Path | None,
) -> None:
    """Measure what INT8 costs a plain fp32 SOURCE, by layers in float32 and corrected biases."""
    from destseg_export.int8.quantize import Int8Options
    from destseg_export.studies.int8 import study_int8

    options = Int8Options(INT8_SCHEMES[scheme], parts, images=images, textures=textures)
    with closing(Bar("ranking layers")) as bar:
        result = study_int8(
            source, normal, labelled, options=options, report=report, advance=bar.steps
        )
    head = {"data": str(labelled), "artifact": ModelSpec.read(source).artifact.sha256}
    write_result(output, {**head, **result})
    say(INT8_ROW.format(*INT8_HEADS))
    for row in result["rows"]:
        say(_int8_line(row))


def _int8_line(row: dict[str, Any]) -> str:
    numbers = [f"{row['image_auroc']:.4f}", f"{row['pixel_ap']:.4f}"]
    numbers += [f"{row[name]:.4f}" if name in row else "" for name in ("score_rms", "map_max_abs")]
    share = f"{row['float32_share']:.1%}"
    return INT8_ROW.format(
        row["in_float32"], share, row.get("biases", "float32"), *numbers
    ).rstrip()


def _image_size(category: Path) -> tuple[int, int]:
    """Return height and width of a category's first test image."""
    from destseg_deploy.data.images import read_image
    from destseg_deploy.data.mvtec import list_test

    height, width = read_image(list_test(category)[0].image).shape[:2]
    return height, width
