"""destseg-export itself: the whole way from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from destseg_deploy.cli.console import OneLineErrorsGroup, say
from destseg_deploy.cli.options import FILE, FOLDER, VERSION
from destseg_deploy.spec import BatchRange, RegionSpec
from destseg_export.cli.options import (
    batch,
    build_options,
    checked,
    cut_options,
    engine_options,
    size,
    verification,
    verified,
)
from destseg_export.cli.printing import Bar, report, tell


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
    help="Size of the returned map.  [default: the network's size; with tiles the scaled frame's]",
)
@click.option(
    "--top-k",
    type=int,
    metavar="T",
    help="Highest pixels of the map whose mean is the score; fewer for small defects, see "
    "destseg-evaluate --sweep-t.  [default: that of the training]",
)
@click.option(
    "--batch",
    type=batch,
    metavar="MIN:OPT:MAX",
    help="Images per call; one number fixes it.  [default: 1:1:16; with tiles 1]",
)
@click.option("--opset", type=int, help="ONNX opset, 18 to 23.  [default: 18; 22 for bf16]")
@click.option(
    "--with-cpp",
    type=FOLDER,
    metavar="DIR",
    help="Also write a CMake project around the last artifact there: a C and C++ library that "
    "loads it, with examples.",
)
@click.option("-v", "--verbose", is_flag=True, help="Also say why an artifact cannot be made here.")
@cut_options
@engine_options
@verified
@VERSION
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
    top_k: int | None,
    batch: BatchRange | None,
    opset: int | None,
    scale: float | None,
    overlap: int | None,
    tile_batch: int | None,
    roi: RegionSpec | Path | None,
    with_cpp: Path | None,
    verbose: bool,
    **values: Any,
) -> None:
    """Export a trained checkpoint, compared with PyTorch before anything gets its name.

    Writes OUTPUT/CATEGORY-fp32.onnx and, where TensorRT and a GPU are, CATEGORY-fp16.onnx and
    CATEGORY-fp16.engine, each with its .json. The graph takes uint8 pixels
    and gives anomaly_map and score; when its answers differ from PyTorch's beyond the budget,
    nothing is written and the status is 1.
    """
    if ctx.invoked_subcommand is not None:
        return
    if category is None and checkpoint is None:
        raise click.UsageError("Missing option '--category' (or '--checkpoint').")
    built, compared = build_options(form, values), verification(values)
    from destseg_export.cpp_project import write_cpp_project
    from destseg_export.cutting import Cut
    from destseg_export.pipeline import Skipped, export_all
    from destseg_export.to_onnx import OnnxOptions

    cut = Cut(scale, overlap, tile_batch, roi)
    graph = checked(OnnxOptions)(
        category, input_size, map_size, batch, opset, precision, cut, top_k
    )

    bar = Bar("building")
    last: Path | None = None
    ctx.call_on_close(bar.close)
    for made in export_all(
        checkpoint or Path("artifacts", f"{category}.safetensors"),
        output,
        form=form,
        onnx=graph,
        engine=built,
        verification=compared,
        report=report,
        progress=bar.share,
    ):
        if isinstance(made, Skipped):
            say(f"skipped  {made.what}: {made.reason}")
            if verbose:
                say(f"cause    {made.cause}")
            if last is not None and last.stem.endswith("-fp32"):
                say(f"cpu      destseg-export fuse {last} saves a sixth of its work")
        else:
            tell(made.path, made.spec)
            last = made.path
    if with_cpp is not None and last is not None:
        write_cpp_project(last, with_cpp)
        say(f"c++      {with_cpp}")
