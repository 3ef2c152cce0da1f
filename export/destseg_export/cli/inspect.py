"""destseg-export inspect."""

from __future__ import annotations

from pathlib import Path

import click

from destseg_deploy.cli.console import OneLineErrors, say
from destseg_deploy.cli.options import FILE, VERSION
from destseg_deploy.errors import SpecError
from destseg_deploy.spec import EngineRecord, ModelSpec
from destseg_export.cli.printing import engine_lines, parity_line
from destseg_export.engine.header import read_header


@click.command(cls=OneLineErrors)
@click.argument("file", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="Print the whole spec as JSON.")
@VERSION
def inspect(file: Path, as_json: bool) -> None:
    """Print what the spec of an artifact says, after checking that it fits the file."""
    spec, file = _read(file)
    if as_json:
        click.echo(spec.to_json(), nl=False)
        return
    lines = _lines(spec, file)
    if (record := spec.engine) is not None:
        lines |= {**engine_lines(record), "built from": _source(record)}
        if (header := read_header(file)) is not None:
            lines["header"] = str(header)
    for name, value in lines.items():
        say(f"{name:<12}{value}")


def _read(file: Path) -> tuple[ModelSpec, Path]:
    """Read and check a spec; what a raw engine says of itself is added to an error."""
    try:
        spec = ModelSpec.read(file)
        if file.suffix.lower() == ".json":
            file = spec.described_by(file)
        spec.check_artifact(file)
    except SpecError as error:
        header = read_header(file) if file.is_file() else None
        if header is None:
            raise
        raise SpecError(f"{error} The file's own header says: {header}.") from error
    return spec, file


def _lines(spec: ModelSpec, file: Path) -> dict[str, str]:
    threshold = spec.threshold
    cut = {} if spec.grid is None else {"tiles": _tiles(spec)}
    if spec.region is not None:
        cut["region"] = f"{spec.region} in pixels of the frame"
    return {
        "artifact": f"{file} ({spec.kind}, {spec.precision}, category {spec.category})",
        "input": f"{spec.input.name}: {spec.input.dtype} (N, {spec.input.height}, "
        f"{spec.input.width}, 3) {spec.input.color}, batch {spec.input.batch}",
        "network": f"{spec.network.height}x{spec.network.width}, resize {spec.network.resize}",
        **cut,
        "outputs": f"{spec.output.map_name}: float32 (N, {spec.output.height}, "
        f"{spec.output.width}); {spec.output.score_name}: float32 (N,), top {spec.output.top_k}",
        "digest": "fits" if spec.digest else "none in format 1: an edit of the spec is not noticed",
        "threshold": "none" if threshold is None else f"{threshold.score:.6f} ({threshold.rule})",
        "teacher": spec.teacher.source if spec.teacher else "unknown",
        "parity": parity_line(spec),
        "checkpoint": f"{spec.checkpoint.file}, sha256 {spec.checkpoint.sha256[:12]}",
        "made with": ", ".join(f"{name} {version}" for name, version in spec.tools.items()),
    }


def _tiles(spec: ModelSpec) -> str:
    tiling, grid = spec.tiling, spec.grid
    assert tiling is not None
    assert grid is not None
    height, width = grid.working
    at_a_time = "" if tiling.tile_batch is None else f", {tiling.tile_batch} at a time"
    return (
        f"{len(grid.rows)}x{len(grid.columns)} of a frame scaled by {tiling.scale:g} to "
        f"{height}x{width}, overlap {tiling.overlap}{at_a_time}"
    )


def _source(record: EngineRecord) -> str:
    return f"{record.onnx}, sha256 {record.onnx_sha256[:12]}"
