"""destseg-export inspect."""

from __future__ import annotations

from pathlib import Path

import click

from destseg_deploy.console import OneLineErrors
from destseg_deploy.errors import SpecError
from destseg_deploy.runtime.engine_record import EngineRecord
from destseg_deploy.spec import ModelSpec
from destseg_export.cli.options import FILE
from destseg_export.cli.telling import engine_lines, parity_line
from destseg_export.engine_header import read_header


@click.command(cls=OneLineErrors)
@click.argument("file", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="Print the whole spec as JSON.")
@click.version_option(package_name="destseg-deploy")
def inspect(file: Path, as_json: bool) -> None:
    """Print what the spec of an artifact says, after checking that it fits the file."""
    spec, file = _read(file)
    if as_json:
        click.echo(spec.to_json(), nl=False)
        return
    lines = _lines(spec, file)
    if spec.kind == "engine":
        record = EngineRecord.of(spec)
        lines |= {**engine_lines(record), "built from": _source(record)}
        if (header := read_header(file)) is not None:
            lines["header"] = str(header)
    for name, value in lines.items():
        click.echo(f"{name:<12}{value}")


def _read(file: Path) -> tuple[ModelSpec, Path]:
    """Read and check a spec; what a raw engine says of itself is added to an error."""
    try:
        spec = ModelSpec.read(file)
        if file.suffix == ".json":
            file = file.with_name(spec.artifact.file)
        spec.check_artifact(file)
    except SpecError as error:
        header = read_header(file) if file.is_file() else None
        if header is None:
            raise
        raise SpecError(f"{error} The file's own header says: {header}.") from error
    return spec, file


def _lines(spec: ModelSpec, file: Path) -> dict[str, str]:
    threshold = spec.threshold
    return {
        "artifact": f"{file} ({spec.kind}, {spec.precision}, category {spec.category})",
        "input": f"{spec.input.name}: {spec.input.dtype} (N, {spec.input.height}, "
        f"{spec.input.width}, 3) {spec.input.color}, batch {spec.input.batch}",
        "network": f"{spec.network.height}x{spec.network.width}, resize {spec.network.resize}",
        "outputs": f"{spec.output.map_name}: float32 (N, {spec.output.height}, "
        f"{spec.output.width}); {spec.output.score_name}: float32 (N,), top {spec.output.top_k}",
        "threshold": "none" if threshold is None else f"{threshold.score:.6f} ({threshold.rule})",
        "teacher": spec.teacher.get("source", "unknown"),
        "parity": parity_line(spec.parity) if spec.parity else "not an export",
        "checkpoint": f"{spec.checkpoint.file}, sha256 {spec.checkpoint.sha256[:12]}",
        "made with": ", ".join(f"{name} {version}" for name, version in spec.tools.items()),
    }


def _source(record: EngineRecord) -> str:
    return f"{record.onnx}, sha256 {record.onnx_sha256[:12]}"
