"""ONNX to a proven engine: build, count its half layers, compare it, and only then name it.

The engine file stays raw, so that trtexec, Triton and C++ hosts can load it; the spec beside it
says what it is and which GPU runs it (``EngineRecord``).

An engine that exists is built again only where another one would come of it. The bytes of two
builds differ, so engines cannot be told apart by their hash; ``engine_key`` is a hash over all that
goes into a build instead.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx as onnx_format

from destseg_deploy.errors import ExportError, SpecError
from destseg_deploy.runtime.tracebacks import letting_go
from destseg_deploy.runtime.trt.record import engine_record
from destseg_deploy.spec import (
    EngineRecord,
    FileRecord,
    ModelSpec,
    ParityRecord,
    check_output,
    settle_threshold,
    spec_path,
    writing,
)
from destseg_export.engine.builder import (
    ParsedNetwork,
    Report,
    check_options,
    current,
    serialize,
)
from destseg_export.engine.comparison import carry_parity, compare_engine, find_checkpoint
from destseg_export.engine.layers import (
    Convolutions,
    check_precision,
    count_in_engine,
    count_in_network,
)
from destseg_export.engine.options import BuildOptions
from destseg_export.engine.progress import ReportShare
from destseg_export.engine.site import AHEAD, Site, open_site
from destseg_export.graph.architecture import architecture_hash
from destseg_export.parity import (
    Verification,
)

TIMING = "tensorrt.timing"
"""Name of the timing cache beside an engine."""

RECIPE = 1
"""Part of each key. Count it up when this module builds other engines from the same input."""


def build_engine(
    onnx: Path,
    output: Path,
    *,
    options: BuildOptions | None = None,
    checkpoint: Path | None = None,
    verification: Verification | None = None,
    report: Report = lambda line: None,
    progress: ReportShare = lambda stage, share: None,
) -> ModelSpec:
    """Build an engine, prove its precision, compare it with PyTorch, and write it with its spec.

    Precision is that of the ONNX file. Where this machine cannot run the engine, which is built for
    other GPUs then, its spec says that it was not run and what its ONNX file was measured to do.

    Args:
        onnx: The ``.onnx`` of ``export_onnx``, its spec beside it.
        output: The ``.engine`` file to write. Nothing is written when anything fails.
        options: For which GPUs, and with what; defaults unless given.
        checkpoint: What the ONNX file was exported from; beside it unless given. Needed only where
            the engine is run.
        verification: What it is compared on and how closely; defaults unless given.
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
    check_output(output, ".engine")
    source = _read_source(onnx)
    if spec_path(output) == spec_path(onnx):
        raise ExportError(
            f"{output}: its spec would replace the one of {onnx.name}, which cannot be opened "
            "without it. Name another folder."
        )
    options = options or BuildOptions()
    device = str(options.device)
    with open_site(options.builder, options.targets, device=device) as site:
        if options.timing_cache is None and site.builder != AHEAD:
            options = replace(options, timing_cache=output.with_name(TIMING))
        check_options(source, site, options)
        key = engine_key(source, site, options)
        if not options.rebuild and (built := find_built(output, key)):
            report(
                f"{output}: already built from {onnx.name} for {', '.join(site.targets)} by "
                f"{site.title}; --rebuild builds it anew"
            )
            return _renewed(built, source, output, report)
        verified = verification or Verification()
        prove = _proof(onnx, source, site, checkpoint, verified, device, report)
        content, record = _build(onnx, source, site, options, key, report, progress)
        return write_engine(content, output, source, record, prove, report)


def write_engine(
    content: bytes,
    output: Path,
    source: ModelSpec,
    record: EngineRecord,
    prove: Callable[[Path, ModelSpec], ParityRecord],
    report: Report = lambda line: None,
) -> ModelSpec:
    """Write an engine and its spec under their names once ``prove`` is satisfied.

    Args:
        content: The raw engine.
        output: The ``.engine`` file.
        source: The spec of the ONNX file whose weights it has.
        record: What it is.
        prove: Called with the engine under a temporary path, its spec beside it; returns the
            spec's entry ``parity`` or raises.
        report: Called with a line if a threshold that was set on an older engine is kept or lost.
    """
    with writing(output, ".engine") as staged:
        staged.write_bytes(content)
        spec = replace(
            source,
            kind="engine",
            artifact=FileRecord.of(staged),
            engine=record,
            parity=None,
            tools={**source.tools, record.builder: record.version},
        )
        spec.write(staged)
        spec = settle_threshold(replace(spec, parity=prove(staged, spec)), output, report)
        spec.write(staged)
    return spec


def read_layers(content: bytes, graph: ParsedNetwork) -> str | None:
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
    if source.quantization is not None and source.quantization.scheme == "u8":
        raise ExportError(
            f"{onnx}: quantised for CPUs (uint8), TensorRT takes int8 with zero point 0. Make one "
            "with destseg-export quantize --for tensorrt."
        )
    return source


def _proof(
    onnx: Path,
    source: ModelSpec,
    site: Site,
    checkpoint: Path | None,
    verification: Verification,
    device: str,
    report: Report,
) -> Callable[[Path, ModelSpec], ParityRecord]:
    """Choose how the engine will be proved; refuse before the build what would fail after it."""
    if not site.runs_here:
        carried = carry_parity(source)
        return lambda staged, spec: carried
    reference = find_checkpoint(onnx, source, checkpoint)
    return lambda staged, spec: compare_engine(
        staged, spec, reference, verification, device=device, report=report
    )


@letting_go()
def _build(
    onnx: Path,
    source: ModelSpec,
    site: Site,
    options: BuildOptions,
    key: str,
    report: Report,
    progress: ReportShare,
) -> tuple[bytes, EngineRecord]:
    """Build, and count what became half."""
    report(f"building with {site.title} for {', '.join(site.targets)}")
    started = time.perf_counter()
    graph = ParsedNetwork(site, onnx)
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


def _count_in_engine(content: bytes, graph: ParsedNetwork, precision: str) -> Convolutions | None:
    """Count in the built engine, if this machine opens it and its inspector names convolutions."""
    if not graph.site.runs_here:
        return None
    description = read_layers(content, graph)
    return None if description is None else count_in_engine(description, precision)


def _renewed(built: ModelSpec, source: ModelSpec, output: Path, report: Report) -> ModelSpec:
    """Bring what may change without a build, such as the threshold, up to date."""
    spec = replace(
        built,
        category=source.category,
        threshold=source.threshold,
        teacher=source.teacher,
        training=source.training,
    )
    spec = settle_threshold(spec, output, report)
    if spec != built:
        spec.write(output)
    return spec


def engine_key(source: ModelSpec, site: Site, options: BuildOptions) -> str:
    """Return the SHA-256 over what decides an engine.

    Args:
        source: The spec of the ONNX file.
        site: The builder, and what it builds for.
        options: What is asked of it. Where the timing cache is makes no other engine.
    """
    return key_of(
        onnx_sha256=source.artifact.sha256,
        precision=source.precision,
        profile=str(source.input.batch),
        builder=site.builder,
        version=site.version,
        gpu=site.gpu,
        targets=site.targets,
        flags=options.flags(),
    )


def key_of(
    *,
    onnx_sha256: str,
    precision: str,
    profile: str,
    builder: str,
    version: str,
    gpu: str | None,
    targets: tuple[str, ...],
    flags: tuple[str, ...],
) -> str:
    """Return the key of these entries; see ``EngineRecord`` for their form."""
    entries = {
        "onnx_sha256": onnx_sha256,
        "precision": precision,
        "profile": profile,
        "builder": builder,
        "version": version,
        "gpu": gpu,
        "targets": targets,
        "flags": flags,
        "recipe": RECIPE,
    }
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def find_built(output: Path, key: str) -> ModelSpec | None:
    """Return an engine's spec if the file exists, fits it and has that key; else None."""
    try:
        spec = ModelSpec.read(output)
        if engine_record(spec).key != key:
            return None
        spec.check_artifact(output)
    except SpecError:
        return None
    return spec
