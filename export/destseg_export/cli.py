"""destseg-export: checkpoint to a verified ONNX model, and what a spec says."""

from __future__ import annotations

import json
from pathlib import Path

import click

from destseg_deploy.console import OneLineErrors, OneLineErrorsGroup
from destseg_deploy.errors import DestsegError
from destseg_deploy.spec import BatchRange, ModelSpec

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)


class Size(click.ParamType[tuple[int, int]]):
    """HEIGHTxWIDTH in pixels."""

    name = "HxW"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Read ``1024x1280`` as (1024, 1280)."""
        if isinstance(value, tuple):
            return value
        parts = str(value).lower().split("x")
        if len(parts) != 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
            self.fail(f"{value!r}: expected HEIGHTxWIDTH such as 1024x1280", param, ctx)
        return int(parts[0]), int(parts[1])


class Batch(click.ParamType[BatchRange]):
    """MIN:OPT:MAX, or one number."""

    name = "MIN:OPT:MAX"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> BatchRange:
        """Read ``1:4:16``, or ``4`` for always 4."""
        try:
            return value if isinstance(value, BatchRange) else BatchRange.parse(str(value))
        except DestsegError as error:
            self.fail(str(error), param, ctx)


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
    type=Size(),
    help="Size of the camera's frames; their antialiased resize becomes part of the graph. "
    "[default: the network's size, any frame resized on the host]",
)
@click.option(
    "--map-size", type=Size(), help="Size of the returned map.  [default: the network's size]"
)
@click.option(
    "--batch", type=Batch(), default="1:1:16", help="Images per call; one number fixes it."
)
@click.option("--opset", type=int, default=18, help="ONNX opset, 18 to 23.")
@click.option(
    "--verify-images",
    type=FOLDER,
    help="Images to compare on.  [default: the training data's test images, or rendered ones]",
)
@click.option("--max-map-difference", type=float, default=1e-4, help="Budget of the parity gate.")
@click.option("--max-score-difference", type=float, default=1e-4, help="Budget of the parity gate.")
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
    parity = spec.parity
    click.echo(f"model    {target}")
    click.echo(
        f"input    {spec.input.name}: uint8 (N, {spec.input.height}, {spec.input.width}, 3) RGB"
    )
    click.echo(f"batch    {spec.input.batch}")
    click.echo(
        f"parity   map {parity['map_max_abs']:.1e}, score {parity['score_max_abs']:.1e} on "
        f"{parity['count']} {parity['images']}; a wrong image's answer: {parity['control']:.1e}"
    )


@export.command(cls=OneLineErrors)
@click.argument("file", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="Print the whole spec as JSON.")
def inspect(file: Path, as_json: bool) -> None:
    """Print what the spec of an artifact says, after checking that it fits the file."""
    spec = ModelSpec.read(file)
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
        "teacher": json.dumps(spec.teacher),
        "parity": json.dumps(spec.parity),
        "checkpoint": f"{spec.checkpoint.file} {spec.checkpoint.sha256[:12]}",
        "tools": json.dumps(spec.tools),
    }
    for name, value in lines.items():
        click.echo(f"{name:<11}{value}")
