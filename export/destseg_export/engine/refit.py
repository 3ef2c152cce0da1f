"""Another category's weights into an engine that is built already, as a file of its own.

All categories share one architecture, so one refittable engine per GPU serves them all, and a swap
takes as long as copying the weights. What can be refused without a GPU is refused first: another
contract, another graph, a weight that is missing or of another shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx as onnx_format

from destseg_deploy.errors import ExportError
from destseg_deploy.files import sha256
from destseg_deploy.models.weights import category_of
from destseg_deploy.runtime.cuda.device import open_device
from destseg_deploy.runtime.tracebacks import letting_go
from destseg_deploy.runtime.trt.engine import check_file, check_machine
from destseg_deploy.runtime.trt.library import load_library, make_messages
from destseg_deploy.runtime.trt.record import engine_record, rebuild_command
from destseg_deploy.runtime.trt.refit import read_weights, refit_engine
from destseg_deploy.spec import EngineRecord, ModelSpec, check_output
from destseg_export.cutting import Cut
from destseg_export.engine.build import key_of, write_engine
from destseg_export.engine.builder import Report, current
from destseg_export.engine.comparison import compare_engine, find_checkpoint
from destseg_export.engine.site import Site
from destseg_export.graph.architecture import architecture_hash, weight_differences
from destseg_export.parity import Verification
from destseg_export.to_onnx import OnnxOptions, export_onnx

TOLD = 3
"""Differences of weights named in an error."""


def refit_file(
    engine: Path,
    source: Path,
    output: Path,
    *,
    device: str = "cuda",
    checkpoint: Path | None = None,
    verification: Verification | None = None,
    report: Report = lambda line: None,
) -> ModelSpec:
    """Write a copy of a refittable engine that has another model's weights, compared with PyTorch.

    Args:
        engine: The ``.engine`` built with ``refit``, its spec beside it; stays as it is.
        source: Where the weights are: a ``.onnx`` exported with the same options, or a checkpoint,
            whose ``.onnx`` is then exported beside ``output``.
        output: The ``.engine`` file to write. Nothing is written when anything fails.
        device: The GPU; one that the engine was built for.
        checkpoint: What a ``.onnx`` source was exported from; beside it unless given.
        verification: What it is compared on and how closely; defaults unless given.
        report: Called with a line for each stage.

    Returns:
        The spec as written.

    Raises:
        SpecError: If a file or spec is missing or damaged, or the engine is another machine's.
        BackendError: If no GPU or no TensorRT is there, or it refuses the weights.
        ExportError: If the engine is not refittable or the weights cannot fit it.
        ParityError: If the new engine's answers differ from PyTorch's beyond the budget.
    """
    check_output(output, ".engine")
    spec, record = _read_refittable(engine)
    exported, verified = source.suffix.lower() == ".onnx", verification or Verification()
    if exported:
        check_weights(source, engine, spec)
    with _open_site(spec, record, device) as site:
        onnx = source if exported else _export(source, spec, output.parent, verified, report)
        content, swapped = check_weights(onnx, engine, spec)
        reference = find_checkpoint(onnx, swapped, checkpoint if exported else source)
        report(f"replacing the weights of {engine.name} by those of {onnx.name}")
        refitted, refittable = _swap(site, engine.read_bytes(), content)
        prove = partial(
            compare_engine,
            checkpoint=reference,
            verification=verified,
            device=device,
            report=report,
        )
        record = _record(swapped, refittable=refittable)
        return write_engine(refitted, output, swapped, record, prove, report)


def check_weights(source: Path, engine: Path, spec: ModelSpec) -> tuple[bytes, ModelSpec]:
    """Make sure, without a GPU, that an ONNX file's weights fit an engine.

    Args:
        source: The ``.onnx``, its spec beside it.
        engine: The engine. Where the ONNX file it was built from lies beside it, an error names the
            weights that differ.
        spec: The engine's.

    Returns:
        The ONNX file's bytes, and the spec that the engine has with its weights.

    Raises:
        SpecError: If the contracts differ.
        ExportError: If the graphs differ in anything but the values of their weights.
    """
    content, swapped = read_weights(source, spec)
    record = engine_record(spec)
    theirs = onnx_format.load_model_from_string(content)
    if record.architecture in (None, architecture_hash(theirs)):
        return content, swapped
    raise ExportError(
        f"{source}: its graph is not the one that {engine.name} was built from"
        f"{_differences(engine, record, theirs)}. Export it with the same options and versions, or "
        "build an engine of its own: destseg-export --format engine"
    )


def _differences(engine: Path, record: EngineRecord, theirs: onnx_format.ModelProto) -> str:
    """Name differing weights where the engine's own ONNX file is at hand."""
    own = engine.with_name(record.onnx)
    if not own.is_file() or sha256(own) != record.onnx_sha256:
        return ""
    found = weight_differences(onnx_format.load(own), theirs)
    more = ", ..." if len(found) > TOLD else ""
    return f" ({', '.join(found[:TOLD])}{more})" if found else " (its nodes differ)"


def _read_refittable(engine: Path) -> tuple[ModelSpec, EngineRecord]:
    spec, record = check_file(engine)
    if not record.refittable:
        raise ExportError(
            f"{engine}: not refittable. Build one that is, once per GPU: {rebuild_command(spec)} "
            "--refittable"
        )
    return spec, record


@contextmanager
def _open_site(spec: ModelSpec, record: EngineRecord, device: str) -> Iterator[Site]:
    """Open the GPU and the TensorRT that the engine was built for, or refuse."""
    gpu = open_device(device)
    try:
        library = load_library(record.builder)
        check_machine(spec, library, gpu)
        yield Site(record.builder, library, record.targets, gpu)
    finally:
        gpu.close()


def _export(
    checkpoint: Path,
    spec: ModelSpec,
    folder: Path,
    verification: Verification,
    report: Report,
) -> Path:
    """Export a checkpoint with the engine's contract; return the ONNX file."""
    name = category_of(checkpoint)
    path = folder / f"{name}-{spec.precision}.onnx"
    export_onnx(
        checkpoint,
        path,
        options=OnnxOptions(
            input_size=spec.size,
            map_size=spec.map_size,
            batch=spec.input.batch,
            precision=spec.precision,
            cut=Cut.of_spec(spec),
            top_k=spec.output.top_k,
        ),
        verification=verification,
        report=report,
    )
    return path


@letting_go()
def _swap(site: Site, engine: bytes, onnx: bytes) -> tuple[bytes, bool]:
    """Refit an engine on the GPU; return the new one, and whether it can be refitted again."""
    library, messages = site.library, make_messages(site.library)
    with current(site):
        runtime = library.Runtime(messages)
        opened = _opened(runtime, engine, messages)
        refit_engine(library, opened, onnx, messages)
        config = opened.create_serialization_config()
        # Without the flag the written engine takes no weights again; not all releases have it.
        if hasattr(library.SerializationFlag, "INCLUDE_REFIT"):
            config.set_flag(library.SerializationFlag.INCLUDE_REFIT)
        written = opened.serialize_with_config(config)
        if written is None:
            raise ExportError(f"TensorRT cannot write the engine: {messages.take()[:300]}")
        content = bytes(written)
        return content, bool(_opened(runtime, content, messages).refittable)


def _opened(runtime: Any, content: bytes, messages: Any) -> Any:
    opened = runtime.deserialize_cuda_engine(content)
    if opened is None:
        raise ExportError(f"TensorRT cannot open the engine: {messages.take()[:300]}")
    return opened


def _record(swapped: ModelSpec, *, refittable: bool) -> EngineRecord:
    """Return the record of the engine with its new weights, as if it were built from them."""
    record = engine_record(swapped)
    flags = tuple(flag for flag in record.flags if refittable or flag != "refit")
    key = key_of(
        onnx_sha256=record.onnx_sha256,
        precision=swapped.precision,
        profile=str(swapped.input.batch),
        builder=record.builder,
        version=record.version,
        gpu=record.gpu,
        targets=record.targets,
        flags=flags,
    )
    return replace(record, key=key, flags=flags)
