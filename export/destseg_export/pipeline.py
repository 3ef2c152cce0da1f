"""Checkpoint to all artifacts that this machine can make, and why it cannot make the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from destseg_deploy.errors import DestsegError, ExportError
from destseg_deploy.models.weights import category_of
from destseg_deploy.spec import ModelSpec
from destseg_export import to_onnx
from destseg_export.engine import build as to_engine
from destseg_export.engine.builder import Report
from destseg_export.engine.options import BuildOptions
from destseg_export.engine.progress import ReportShare
from destseg_export.engine.site import AUTO, NoGpuError, open_site
from destseg_export.parity import Verification
from destseg_export.to_onnx import OnnxOptions

FORMATS = ("auto", "onnx", "engine")
ENGINE_PRECISION = "fp16"
"""Of engines, unless another is asked for."""


@dataclass(frozen=True)
class Made:
    """An artifact that was written."""

    path: Path
    spec: ModelSpec


@dataclass(frozen=True)
class Skipped:
    """An artifact that was not made.

    Attributes:
        what: The artifact.
        reason: Why, in plain words.
        cause: The error behind it, for whoever wants to change that.
    """

    what: str
    reason: str
    cause: str


def export_all(
    checkpoint: Path,
    folder: Path,
    *,
    form: str = "auto",
    onnx: OnnxOptions | None = None,
    engine: BuildOptions | None = None,
    verification: Verification | None = None,
    report: Report = lambda line: None,
    progress: ReportShare = lambda stage, share: None,
) -> Iterator[Made | Skipped]:
    """Export a checkpoint as ``<category>-<precision>.onnx`` and, where it can be, ``.engine``.

    Args:
        checkpoint: ``.safetensors`` with its spec, or an official ``.pckl``.
        folder: Where the artifacts go.
        form: ``onnx``; ``engine``, with the ONNX file it is built from; or ``auto``, the ONNX model
            and the engine if it can be built here.
        onnx: Which graph is made; its category names the files, and its precision is that of all
            artifacts. Without one, the ONNX model is fp32, and the engine and the ONNX file it is
            built from are fp16.
        engine: How the engine is built; defaults unless given.
        verification: What they are compared on and how closely; defaults unless given.
        report: Called with a line for each stage.
        progress: Called with the engine builder's stage and share done.

    Yields:
        Each artifact when it is written, and what was skipped.

    Raises:
        DestsegError: As ``export_onnx`` and ``build_engine``. With ``auto``, an engine that cannot
            be built because there is no GPU or builder is skipped; one that fails raises.
    """
    choice, graph = engine or BuildOptions(), onnx or OnnxOptions()
    obstacle = _obstacle(form, choice)
    category = graph.category
    if category is not None and (not category or Path(category).name != category):
        raise ExportError(f"category {category!r}: expected the name of one folder, like 'cable'.")
    name = category or category_of(checkpoint)
    first = graph.precision or (ENGINE_PRECISION if form == "engine" else "fp32")
    last = graph.precision or ENGINE_PRECISION
    builds = form != "onnx" and obstacle is None
    for each in dict.fromkeys([first, last] if builds else [first]):
        path = folder / f"{name}-{each}.onnx"
        spec = to_onnx.export_onnx(
            checkpoint,
            path,
            options=replace(graph, precision=each),
            verification=verification,
            report=report,
        )
        yield Made(path, spec)
    if builds:
        path = folder / f"{name}-{last}.engine"
        spec = to_engine.build_engine(
            folder / f"{name}-{last}.onnx",
            path,
            checkpoint=checkpoint,
            verification=verification,
            report=report,
            progress=progress,
            options=choice,
        )
        yield Made(path, spec)
    elif obstacle is not None:
        yield obstacle


def _obstacle(form: str, choice: BuildOptions) -> Skipped | None:
    """Say why no engine can be built here, before anything long is begun; None if it can.

    Raises:
        DestsegError: If the engine was asked for by name.
        ExportError: If the form is unknown.
    """
    if form not in FORMATS:
        raise ExportError(f"format {form!r}: expected one of {', '.join(FORMATS)}.")
    if form == "onnx":
        return None
    try:
        with open_site(choice.builder, choice.targets, device=str(choice.device)):
            return None
    except DestsegError as error:
        if form == "engine" or choice.targets or choice.builder != AUTO:
            raise
        lacking = "NVIDIA GPU" if isinstance(error, NoGpuError) else "TensorRT for this GPU"
        return Skipped("engine", f"no {lacking} here, so no engine was built", str(error))
