"""Checkpoint to everything that can be made of it here, and in plain words what cannot and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from destseg_deploy.errors import DestsegError, ExportError
from destseg_deploy.spec import ModelSpec
from destseg_export import to_engine, to_onnx
from destseg_export.build_progress import Progress
from destseg_export.engine_build import Report
from destseg_export.engine_parity import Limits
from destseg_export.engine_site import AUTO, open_site

FORMATS = ("auto", "onnx", "engine")
ENGINE_PRECISION = "fp16"
"""Of engines, unless another is asked for."""


@dataclass(frozen=True)
class EngineChoice:
    """For which GPUs to build an engine, and with what; see ``build_engine``."""

    builder: str = AUTO
    targets: tuple[str, ...] = ()
    device: str = "cuda"
    workspace_mib: int | None = None
    refit: bool = False
    tf32: bool = False
    timing_cache: Path | None = None
    rebuild: bool = False


@dataclass(frozen=True)
class Made:
    """An artifact that was written."""

    path: Path
    spec: ModelSpec


@dataclass(frozen=True)
class Skipped:
    """What was not made, and why."""

    what: str
    reason: str


def export_all(
    checkpoint: Path,
    folder: Path,
    *,
    category: str | None = None,
    precision: str | None = None,
    form: str = "auto",
    engine: EngineChoice | None = None,
    verify_images: Sequence[Path] | None = None,
    limits: Limits | None = None,
    report: Report = lambda line: None,
    progress: Progress = lambda stage, share: None,
    **onnx: Any,
) -> Iterator[Made | Skipped]:
    """Export a checkpoint as ``<category>-<precision>.onnx`` and, where it can be, ``.engine``.

    Args:
        checkpoint: ``.safetensors`` with its spec, or an official ``.pckl``.
        folder: Where the artifacts go.
        category: Name of the files; the checkpoint's unless given.
        precision: Of all artifacts. Unless given, fp32 for the ONNX model and fp16 for the engine
            and the ONNX file it is built from.
        form: ``onnx``; ``engine``, with the ONNX file it is built from; or ``auto``, the ONNX model
            and the engine if it can be built here.
        engine: How the engine is built.
        verify_images: Images to compare on; see ``export_onnx``.
        limits: Largest differences allowed.
        report: Called with a line for each stage.
        progress: Called with the engine builder's stage and share done.
        onnx: Passed on to ``export_onnx``: ``input_size``, ``map_size``, ``batch``, ``opset``.

    Yields:
        Each artifact when it is written, and what was skipped.

    Raises:
        DestsegError: As ``export_onnx`` and ``build_engine``. With ``auto``, an engine that cannot
            be built because there is no GPU or builder is skipped; one that fails raises.
    """
    choice = engine or EngineChoice()
    obstacle = _obstacle(form, choice)
    name = category or checkpoint.stem.removeprefix("DeSTSeg_MVTec_5000_")
    allowed = limits or Limits()
    first = precision or (ENGINE_PRECISION if form == "engine" else "fp32")
    last = precision or ENGINE_PRECISION
    builds = form != "onnx" and obstacle is None
    for each in dict.fromkeys([first, last] if builds else [first]):
        path = folder / f"{name}-{each}.onnx"
        spec = to_onnx.export_onnx(
            checkpoint,
            path,
            category=category,
            precision=each,
            verify_images=verify_images,
            budget=allowed.budget(each),
            report=report,
            **onnx,
        )
        yield Made(path, spec)
    if builds:
        path = folder / f"{name}-{last}.engine"
        spec = to_engine.build_engine(
            folder / f"{name}-{last}.onnx",
            path,
            checkpoint=checkpoint,
            verify_images=verify_images,
            budget=allowed.budget(last),
            report=report,
            progress=progress,
            **vars(choice),
        )
        yield Made(path, spec)
    elif obstacle is not None:
        yield Skipped("engine", obstacle)


def _obstacle(form: str, choice: EngineChoice) -> str | None:
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
        with open_site(choice.builder, choice.targets, device=choice.device):
            return None
    except DestsegError as error:
        if form == "engine" or choice.targets or choice.builder != AUTO:
            raise
        return str(error)
