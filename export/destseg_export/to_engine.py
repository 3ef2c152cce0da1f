"""ONNX to a proven engine: build, count its half layers, compare it, and only then name it.

The engine file stays raw, so that trtexec, Triton and C++ hosts can load it; what it is and where
it fits lies in the spec beside it (``EngineRecord``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx as onnx_format

from destseg_deploy.atomic import staging
from destseg_deploy.errors import ExportError
from destseg_deploy.runtime.engine_record import EngineRecord
from destseg_deploy.spec import FileRecord, ModelSpec, spec_path
from destseg_export.architecture import architecture_hash
from destseg_export.build_progress import Progress
from destseg_export.engine_build import (
    BuildOptions,
    Graph,
    Report,
    check_options,
    current,
    serialize,
)
from destseg_export.engine_cache import engine_key, find_built
from destseg_export.engine_parity import (
    Verification,
    carry_parity,
    compare_engine,
    find_checkpoint,
)
from destseg_export.engine_site import AHEAD, AUTO, Site, open_site
from destseg_export.layer_precision import (
    Convolutions,
    check_precision,
    count_in_engine,
    count_in_network,
)
from destseg_export.verify import Budget

TIMING = "tensorrt.timing"
"""Name of the timing cache beside an engine."""


def build_engine(
    onnx: Path,
    output: Path,
    *,
    builder: str = AUTO,
    targets: Sequence[str] = (),
    device: str = "cuda",
    workspace_mib: int | None = None,
    refit: bool = False,
    tf32: bool = False,
    timing_cache: Path | None = None,
    rebuild: bool = False,
    checkpoint: Path | None = None,
    verify_images: Sequence[Path] | None = None,
    budget: Budget | None = None,
    report: Report = lambda line: None,
    progress: Progress = lambda stage, share: None,
) -> ModelSpec:
    """Build an engine, prove its precision, compare it with PyTorch, and write it with its spec.

    Precision is that of the ONNX file. Where this machine cannot run the engine, which is built for
    other GPUs then, its spec says that it was not run and what its ONNX file was measured to do.

    Args:
        onnx: The ``.onnx`` of ``export_onnx``, its spec beside it.
        output: The ``.engine`` file to write. Nothing is written when anything fails.
        builder: ``tensorrt``, ``tensorrt-rtx`` or ``auto``; see ``open_site``.
        targets: Compute capabilities to build for ahead of time, such as ``sm86``.
        device: The GPU to build and compare on.
        workspace_mib: GPU memory that tactics may use, in MiB; all there is unless given.
        refit: Make an engine whose weights can be replaced.
        tf32: Let fp32 operators round their inputs to 10 bits of mantissa.
        timing_cache: File that keeps tactics' timings, TensorRT only; ``tensorrt.timing`` beside
            the engine unless given.
        rebuild: Build also where the same engine is there already.
        checkpoint: What the ONNX file was exported from; beside it unless given. Needed only where
            the engine is run.
        verify_images: Images to compare on; those of the training data, or rendered ones, unless
            given.
        budget: Largest differences allowed; the precision's unless given.
        report: Called with a line for each stage.
        progress: Called with the builder's stage and the share that is done.

    Returns:
        The spec as written.

    Raises:
        SpecError: If the ONNX file or its spec is missing or damaged.
        BackendError: If no builder or no GPU is there.
        ExportError: If it cannot be built, or is not in the precision that its spec says.
        ParityError: If its answers differ from PyTorch's beyond the budget.
    """
    source = _read_source(onnx)
    if spec_path(output) == spec_path(onnx):
        raise ExportError(
            f"{output}: its spec would take the place of that of {onnx.name}, which could not be "
            "opened any more. Name another folder."
        )
    verification = Verification(checkpoint, verify_images, budget)
    with open_site(builder, targets, device=device) as site:
        if timing_cache is None and site.builder != AHEAD:
            timing_cache = output.with_name(TIMING)
        options = BuildOptions(workspace_mib, refit, tf32, timing_cache)
        check_options(source, site, options)
        key = engine_key(source, site, options)
        if not rebuild and (built := find_built(output, key)):
            report(
                f"{output}: already built from {onnx.name} for {', '.join(site.targets)} by "
                f"{site.title}; --rebuild builds it anew"
            )
            return _renewed(built, source, output)
        prove = _proof(onnx, source, site, verification, device, report)
        content, record = _build(onnx, source, site, options, key, report, progress)
        return write_engine(content, output, source, record, prove)


def write_engine(
    content: bytes,
    output: Path,
    source: ModelSpec,
    record: EngineRecord,
    prove: Callable[[Path, ModelSpec], dict[str, Any]],
) -> ModelSpec:
    """Write an engine and its spec under their names once ``prove`` is satisfied.

    Args:
        content: The raw engine.
        output: The ``.engine`` file.
        source: The spec of the ONNX file whose weights it has.
        record: What it is.
        prove: Called with the engine under a temporary path, its spec beside it; returns the
            spec's entry ``parity`` or raises.
    """
    with staging(output.parent) as folder:
        staged = folder / output.name
        staged.write_bytes(content)
        spec = replace(
            source,
            kind="engine",
            artifact=FileRecord.of(staged),
            engine=record.to_dict(),
            parity={},
            tools={**source.tools, record.builder: record.version},
        )
        spec.write(staged)
        spec = replace(spec, parity=prove(staged, spec))
        spec.write(staged)
    return spec


def read_layers(content: bytes, graph: Graph) -> str | None:
    """Open an engine on its GPU and return its inspector's JSON.

    Raises:
        ExportError: If TensorRT refuses what it has just built.
    """
    library = graph.site.library
    with current(graph.site):
        runtime = library.Runtime(graph.messages)
        engine = runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise ExportError(
                f"{graph.name}: {graph.site.title} cannot open the engine that it built: "
                f"{graph.messages.take()[:300]}"
            )
        inspector = engine.create_engine_inspector()
        return str(inspector.get_engine_information(library.LayerInformationFormat.JSON))


def _read_source(onnx: Path) -> ModelSpec:
    source = ModelSpec.read(onnx)
    if source.kind != "onnx":
        raise ExportError(f"{onnx}: its spec says {source.kind}, expected onnx. Export it first.")
    source.check_artifact(onnx)
    if source.parity.get("scheme") == "u8":
        raise ExportError(
            f"{onnx}: quantised for CPUs (uint8), TensorRT takes int8 with zero point 0. Make one "
            "with destseg-export quantize --for tensorrt."
        )
    return source


def _proof(
    onnx: Path,
    source: ModelSpec,
    site: Site,
    verification: Verification,
    device: str,
    report: Report,
) -> Callable[[Path, ModelSpec], dict[str, Any]]:
    """Choose how the engine will be proved, refusing now what would fail after the build."""
    if not site.runs_here:
        carried = carry_parity(source)
        return lambda staged, spec: carried
    reference = find_checkpoint(onnx, source, verification.checkpoint)
    return lambda staged, spec: compare_engine(
        staged, spec, reference, verification, device=device, report=report
    )


def _build(
    onnx: Path,
    source: ModelSpec,
    site: Site,
    options: BuildOptions,
    key: str,
    report: Report,
    progress: Progress,
) -> tuple[bytes, EngineRecord]:
    """Build, and count what became half."""
    report(f"building with {site.title} for {', '.join(site.targets)}")
    started = time.perf_counter()
    graph = Graph(site, onnx)
    in_network = count_in_network(site.library, graph.network, source.precision)
    check_precision(in_network, source.precision, onnx.name)
    content = serialize(graph, source, options, report=report, progress=progress)
    seconds = time.perf_counter() - started
    counted = _count_in_engine(content, graph, source.precision) or in_network
    check_precision(counted, source.precision, onnx.name)
    report(
        f"{counted.half} of {counted.count} convolutions are half, read from the {counted.source}"
    )
    return content, EngineRecord(
        key=key,
        builder=site.builder,
        version=site.version,
        gpu=site.gpu,
        targets=site.targets,
        onnx=source.artifact.file,
        onnx_sha256=source.artifact.sha256,
        flags=options.flags(),
        convolutions=counted.count,
        half_convolutions=counted.half,
        precision_source=counted.source,
        build_seconds=round(seconds, 3),
        architecture=architecture_hash(onnx_format.load(onnx)),
    )


def _count_in_engine(content: bytes, graph: Graph, precision: str) -> Convolutions | None:
    """Count in the built engine where this machine can open it and its layers are told apart."""
    if not graph.site.runs_here:
        return None
    description = read_layers(content, graph)
    return None if description is None else count_in_engine(description, precision)


def _renewed(built: ModelSpec, source: ModelSpec, output: Path) -> ModelSpec:
    """Bring what may change without a build, such as the threshold, up to date."""
    spec = replace(
        built,
        category=source.category,
        threshold=source.threshold,
        teacher=source.teacher,
        training=source.training,
    )
    if spec != built:
        spec.write(output)
    return spec
