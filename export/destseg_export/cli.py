"""destseg-export: checkpoint to a verified ONNX model, and what a spec says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from destseg_deploy.console import OneLineErrors, OneLineErrorsGroup
from destseg_deploy.errors import SpecError
from destseg_deploy.spec import BatchRange, ModelSpec

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)


def _size(text: str) -> tuple[int, int]:
    """Read ``1024x1280`` as (1024, 1280), height first."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise click.BadParameter(f"{text!r}: expected HEIGHTxWIDTH such as 1024x1280.")
    return int(parts[0]), int(parts[1])


def _batch(text: str) -> BatchRange:
    """Read ``1:4:16``, or ``4`` for always 4."""
    try:
        return BatchRange.parse(text)
    except SpecError as error:
        raise click.BadParameter(str(error)) from error


@click.group(cls=OneLineErrorsGroup, invoke_without_command=True)
@click.option("--category", help="Category to export; names the files.")
@click.option(
    "--checkpoint",
    type=FILE,
    help="A .safetensors, or an official .pckl.  [default: artifacts/CATEGORY.safetensors]",
)
@click.option("--output", type=FOLDER, default="artifacts", help="Folder for the model.")
@click.option(
    "--input-size",
    type=_size,
    metavar="HxW",
    help="Size of the camera's frames; their antialiased resize becomes part of the graph.  "
    "[default: the network's size, any frame resized on the host]",
)
@click.option(
    "--map-size",
    type=_size,
    metavar="HxW",
    help="Size of the returned map.  [default: the network's size]",
)
@click.option(
    "--batch",
    type=_batch,
    metavar="MIN:OPT:MAX",
    default="1:1:16",
    help="Images per call; one number fixes it.",
)
@click.option("--opset", type=int, default=18, help="ONNX opset, 18 to 23.")
@click.option(
    "--verify-images",
    type=FOLDER,
    help="Images to compare on.  [default: the training data's test images, or rendered ones]",
)
@click.option(
    "--max-map-difference",
    type=float,
    default=1e-4,
    help="Largest difference of a map's pixel from PyTorch's.",
)
@click.option(
    "--max-score-difference",
    type=float,
    default=1e-4,
    help="Largest difference of a score from PyTorch's.",
)
@click.version_option(package_name="destseg-deploy")
@click.pass_context
def export(
    ctx: click.Context,
    category: str | None,
    checkpoint: Path | None,
    output: Path,
    input_size: tuple[int, int] | None,
    map_size: tuple[int, int] | None,
    batch: BatchRange,
    opset: int,
    verify_images: Path | None,
    max_map_difference: float,
    max_score_difference: float,
) -> None:
    """Export a trained checkpoint to ONNX, compared with PyTorch before it gets its name.

    Writes OUTPUT/CATEGORY-fp32.onnx and its .json. The graph takes uint8 pixels and gives
    anomaly_map and score; when its answers differ from PyTorch's beyond the budget, nothing is
    written and the status is 1.
    """
    if ctx.invoked_subcommand is not None:
        return
    if category is None and checkpoint is None:
        raise click.UsageError("Missing option '--category' (or '--checkpoint').")
    from destseg_deploy.data.images import expand
    from destseg_export.to_onnx import export_onnx
    from destseg_export.verify import Budget

    checkpoint = checkpoint or Path("artifacts", f"{category}.safetensors")
    name = category or checkpoint.stem.removeprefix("DeSTSeg_MVTec_5000_")
    target = output / f"{name}-fp32.onnx"
    spec = export_onnx(
        checkpoint,
        target,
        category=category,
        input_size=input_size,
        map_size=map_size,
        batch=batch,
        opset=opset,
        verify_images=expand([str(verify_images)]) if verify_images else None,
        budget=Budget(max_map_difference, max_score_difference),
        report=lambda line: click.echo(line, err=True),
    )
    click.echo(f"model    {target}")
    click.echo(
        f"input    {spec.input.name}: uint8 (N, {spec.input.height}, {spec.input.width}, 3) RGB"
    )
    click.echo(f"batch    {spec.input.batch}")
    click.echo(f"parity   {_parity_line(spec.parity)}")


@export.command(cls=OneLineErrors)
@click.argument("file", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="Print the whole spec as JSON.")
@click.version_option(package_name="destseg-deploy")
def inspect(file: Path, as_json: bool) -> None:
    """Print what the spec of an artifact says, after checking that it fits the file."""
    spec = ModelSpec.read(file)
    if file.suffix == ".json":
        file = file.with_name(spec.artifact.file)
    spec.check_artifact(file)
    if as_json:
        click.echo(spec.to_json(), nl=False)
        return
    threshold = spec.threshold
    lines = {
        "artifact": f"{file} ({spec.kind}, {spec.precision}, category {spec.category})",
        "input": f"{spec.input.name}: {spec.input.dtype} (N, {spec.input.height}, "
        f"{spec.input.width}, 3) {spec.input.color}, batch {spec.input.batch}",
        "network": f"{spec.network.height}x{spec.network.width}, resize {spec.network.resize}",
        "outputs": f"{spec.output.map_name}: float32 (N, {spec.output.height}, "
        f"{spec.output.width}); {spec.output.score_name}: float32 (N,), top {spec.output.top_k}",
        "threshold": "none" if threshold is None else f"{threshold.score:.6f} ({threshold.rule})",
        "teacher": spec.teacher.get("source", "unknown"),
        "parity": _parity_line(spec.parity) if spec.parity else "not an export",
        "checkpoint": f"{spec.checkpoint.file}, sha256 {spec.checkpoint.sha256[:12]}",
        "made with": ", ".join(f"{name} {version}" for name, version in spec.tools.items()),
    }
    for name, value in lines.items():
        click.echo(f"{name:<12}{value}")


def _parity_line(parity: dict[str, Any]) -> str:
    largest, score, control = (
        f"{parity.get(name, math.nan):.1e}" for name in ("map_max_abs", "score_max_abs", "control")
    )
    where = f"{parity.get('count')} {parity.get('images')}"
    return f"map {largest}, score {score} on {where} (another image's map: {control})"
