"""destseg-export itself: the whole way from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from destseg_deploy.console import OneLineErrorsGroup
from destseg_deploy.spec import BatchRange
from destseg_export.cli.engine_options import (
    engine_choice,
    engine_options,
    refuse_engine_options,
)
from destseg_export.cli.options import FILE, FOLDER, batch, size, verified
from destseg_export.cli.telling import BuildBar, report, tell


@click.group(cls=OneLineErrorsGroup, invoke_without_command=True)
@click.option("--category", help="Category to export; names the files.")
@click.option(
    "--checkpoint",
    type=FILE,
    help="A .safetensors, or an official .pckl.  [default: artifacts/CATEGORY.safetensors]",
)
@click.option("--output", type=FOLDER, default="artifacts", help="Folder for the artifacts.")
@click.option(
    "--precision",
    type=click.Choice(("fp32", "fp16", "bf16")),
    help="Of all artifacts.  [default: fp32 for the model, fp16 for the engine]",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(("auto", "onnx", "engine")),
    default="auto",
    help="auto: the ONNX model, and the engine where a GPU and TensorRT are.",
)
@click.option(
    "--input-size",
    type=size,
    metavar="HxW",
    help="Size of the camera's frames; their antialiased resize becomes part of the graph.  "
    "[default: the network's size, any frame resized on the host]",
)
@click.option(
    "--map-size",
    type=size,
    metavar="HxW",
    help="Size of the returned map.  [default: the network's size]",
)
@click.option(
    "--batch",
    type=batch,
    metavar="MIN:OPT:MAX",
    default="1:1:16",
    help="Images per call; one number fixes it.",
)
@click.option("--opset", type=int, help="ONNX opset, 18 to 23.  [default: 18; 22 for bf16]")
@click.option(
    "--with-cpp",
    type=FOLDER,
    metavar="DIR",
    help="Also write a CMake project around the last artifact there: a C and C++ library that "
    "loads it, with examples.",
)
@engine_options
@verified
@click.version_option(package_name="destseg-deploy")
@click.pass_context
def export(
    ctx: click.Context,
    /,
    category: str | None,
    checkpoint: Path | None,
    output: Path,
    precision: str | None,
    form: str,
    input_size: tuple[int, int] | None,
    map_size: tuple[int, int] | None,
    batch: BatchRange,
    opset: int | None,
    with_cpp: Path | None,
    verify_images: Path | None,
    max_map_difference: float | None,
    max_score_difference: float | None,
    **engine: Any,
) -> None:
    """Export a trained checkpoint, compared with PyTorch before anything gets its name.

    Writes OUTPUT/CATEGORY-fp32.onnx and, where TensorRT and a GPU are, CATEGORY-fp16.onnx and
    CATEGORY-fp16.engine, each with its .json; what is skipped is said. The graph takes uint8 pixels
    and gives anomaly_map and score; when its answers differ from PyTorch's beyond the budget,
    nothing is written and the status is 1.
    """
    if ctx.invoked_subcommand is not None:
        return
    if category is None and checkpoint is None:
        raise click.UsageError("Missing option '--category' (or '--checkpoint').")
    if form == "onnx":
        refuse_engine_options(ctx)
    from destseg_deploy.data.images import expand
    from destseg_export.cpp_project import write_cpp_project
    from destseg_export.engine_parity import Limits
    from destseg_export.whole_way import Skipped, export_all

    bar = BuildBar()
    last: Path | None = None
    ctx.call_on_close(bar.close)
    for made in export_all(
        checkpoint or Path("artifacts", f"{category}.safetensors"),
        output,
        category=category,
        precision=precision,
        form=form,
        engine=engine_choice(engine),
        input_size=input_size,
        map_size=map_size,
        batch=batch,
        opset=opset,
        verify_images=expand([str(verify_images)]) if verify_images else None,
        limits=Limits(max_map_difference, max_score_difference),
        report=report,
        progress=bar,
    ):
        if isinstance(made, Skipped):
            click.echo(f"skipped  {made.what}: {made.reason}")
            if last is not None and last.stem.endswith("-fp32"):
                click.echo(f"cpu      destseg-export fuse {last} saves a sixth of its work")
        else:
            tell(made.path, made.spec)
            last = made.path
    if with_cpp is not None and last is not None:
        write_cpp_project(last, with_cpp)
        click.echo(f"c++      {with_cpp}")
