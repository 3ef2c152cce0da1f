"""Checkpoint to ONNX: trace the export twin, stamp it, verify it, and only then name it.

``export_onnx(checkpoint, output, precision="fp16")`` converts the traced graph (``half``). What is
compared with PyTorch then is the same graph with its rounding made explicit (``rounding``), because
ONNX Runtime's CPU provider does not round half graphs. The shipped file is run as well, which shows
that it loads and answers, and nothing about half.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from destseg_deploy.atomic import staging
from destseg_deploy.errors import ExportError
from destseg_deploy.models.destseg import DeSTSeg
from destseg_deploy.models.inference import InferenceGraph
from destseg_deploy.models.weights import load_checkpoint
from destseg_deploy.predictor import Predictor
from destseg_deploy.runtime.ort import OrtRuntime
from destseg_deploy.runtime.pytorch import PyTorchRuntime
from destseg_deploy.spec import BatchRange, FileRecord, InputSpec, ModelSpec, OutputSpec
from destseg_export import half
from destseg_export.epsilon import keep_epsilon
from destseg_export.half import to_half
from destseg_export.ranges import check_activations, measure_activations
from destseg_export.rounding import open_graph
from destseg_export.verify import Budget, check_parity, compare, verification_frames

OPSETS = range(18, 24)
"""torch's exporter writes 18 when it is asked for less; few runtimes read newer ones than 23."""

OLDEST_OPSETS = {"fp32": OPSETS.start, **half.OPSETS}
"""Precision -> the oldest opset that has its operators."""

RUN_BY_CPU = ("fp32", "fp16")
"""Precisions that ONNX Runtime's CPU provider runs; it has no bf16 convolution."""


def export_onnx(
    checkpoint: Path,
    output: Path,
    *,
    category: str | None = None,
    input_size: tuple[int, int] | None = None,
    map_size: tuple[int, int] | None = None,
    batch: BatchRange | None = None,
    opset: int | None = None,
    precision: str = "fp32",
    verify_images: Sequence[Path] | None = None,
    budget: Budget | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> ModelSpec:
    """Export a checkpoint to ONNX, compare it with PyTorch, and write it with its spec.

    Args:
        checkpoint: ``.safetensors`` with its spec, or an official ``.pckl``.
        output: The ``.onnx`` file to write. Nothing is written when anything fails.
        category: Name to record; the checkpoint's unless given.
        input_size: Height and width of the camera's frames: their antialiased resize becomes part
            of the graph. The network's size unless given.
        map_size: Height and width of the returned map; the network's size unless given.
        batch: Images per call; one number thrice makes the batch static.
        opset: ONNX opset, one of ``OPSETS``; the oldest that has the precision's operators unless
            given: 18, for bf16 22.
        precision: ``fp32``, ``fp16`` or ``bf16``, that of the convolutions; input and outputs are
            the same for all. The largest activation is measured, and what half cannot hold
            refused.
        verify_images: Images to compare on; those of the training data, or rendered ones, unless
            given.
        budget: Largest differences allowed; ``verify.BUDGETS`` has the precision's unless given.
        report: Called with a line for each stage.

    Returns:
        The spec as written.

    Raises:
        WeightsError, SpecError: If the checkpoint cannot be read.
        ExportError: If the graph cannot be made, or half cannot hold its values.
        ParityError: If its answers differ from PyTorch's beyond the budget.
    """
    allowed = budget or Budget.of(precision)
    model, trained = load_checkpoint(checkpoint)
    spec = served_spec(trained, category, input_size, map_size, batch)
    report(f"tracing {checkpoint.name}")
    proto = trace(model, spec, opset or OLDEST_OPSETS[precision])
    proto, spec, notes = _converted(proto, spec, precision, report)
    with staging(output.parent) as folder:
        staged = folder / output.name
        onnx.save_model(proto, staged)
        spec = replace(spec, artifact=FileRecord(output.name, FileRecord.of(staged).sha256))
        spec.write(staged)
        frames, source = verification_frames(verify_images, trained, spec.size)
        if precision != "fp32":
            notes |= _check_range(proto, spec, frames, report)
        report(f"comparing with PyTorch on {len(frames)} {source}")
        reference = Predictor(PyTorchRuntime(model, trained))
        with _candidate(proto, staged, spec, frames) as candidate:
            parity = compare(reference, candidate, frames)
        check_parity(parity, allowed, output.name)
        record = {"images": source, "budget": asdict(allowed), **parity.summary(), **notes}
        spec = replace(spec, parity=record)
        spec.write(staged)
    return spec


def _converted(
    proto: onnx.ModelProto, spec: ModelSpec, precision: str, report: Callable[[str], None]
) -> tuple[onnx.ModelProto, ModelSpec, dict[str, Any]]:
    """Bring a traced graph to its precision; return notes on that for the spec."""
    if precision == "fp32":
        return proto, spec, {}
    proto, made = to_half(proto, precision)
    spec = replace(spec, precision=precision)
    _stamp_contract(proto, spec)
    for line in made.lines():
        report(line)
    return proto, spec, {"rounding": f"emulated {precision}", **made.summary()}


def _check_range(
    proto: onnx.ModelProto,
    spec: ModelSpec,
    frames: Sequence[NDArray[np.uint8]],
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Refuse activations that half cannot hold; return the largest for the spec."""
    report(f"measuring the activations on {len(frames)} images")
    activations = measure_activations(proto, spec, frames)
    check_activations(activations, spec.precision)
    name = max(activations, key=activations.__getitem__)
    return {"largest_activation": {"tensor": name, "value": activations[name]}}


@contextmanager
def _candidate(
    proto: onnx.ModelProto, staged: Path, spec: ModelSpec, frames: Sequence[NDArray[np.uint8]]
) -> Iterator[Predictor]:
    """Give what is to be compared with PyTorch: the file, or its emulation where it is half."""
    if spec.precision == "fp32":
        with Predictor(OrtRuntime(staged)) as shipped:
            yield shipped
        return
    if spec.precision in RUN_BY_CPU:
        with Predictor(OrtRuntime(staged)) as shipped:
            shipped(frames[0])
    with open_graph(proto, spec) as emulated:
        yield emulated


def trace(model: DeSTSeg, spec: ModelSpec, opset: int) -> onnx.ModelProto:
    """Turn a model into an FP32 ONNX graph with the spec's tensors, sizes and batch.

    Raises:
        ExportError: If the opset is not supported or torch cannot export the graph.
    """
    if opset not in OPSETS:
        raise ExportError(
            f"opset {opset}: expected {OPSETS.start} to {OPSETS.stop - 1}; torch writes no older."
        )
    graph = InferenceGraph(
        model,
        network_size=spec.network_size,
        input_size=spec.size,
        map_size=spec.map_size,
        top_k=spec.output.top_k,
    )
    batch = spec.input.batch
    fixed = batch.min == batch.max
    example = torch.zeros((batch.max if fixed else 2, *spec.size, 3), dtype=torch.uint8)
    dimension = None if fixed else torch.export.Dim("batch", min=1, max=max(batch.max, 2))
    with _quiet():
        program = torch.onnx.export(
            graph,
            (example,),
            input_names=[spec.input.name],
            output_names=[spec.output.map_name, spec.output.score_name],
            dynamic_shapes=None if fixed else ({0: dimension},),
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise ExportError(
            "torch.onnx.export returned nothing. Install a torch between 2.6 and 2.13."
        )
    proto = program.model_proto
    keep_epsilon(proto)
    return _stamped(proto, spec, opset)


def _stamped(proto: onnx.ModelProto, spec: ModelSpec, opset: int) -> onnx.ModelProto:
    """Check what the exporter wrote and put the contract into the file's metadata."""
    written = {entry.domain: entry.version for entry in proto.opset_import}
    if written.get("") != opset:
        raise ExportError(
            f"opset {opset} was asked for and the exporter wrote {written.get('')}. Pass the "
            "latter, or use another version of torch."
        )
    names = [value.name for value in (*proto.graph.input, *proto.graph.output)]
    expected = [spec.input.name, spec.output.map_name, spec.output.score_name]
    if names != expected:
        raise ExportError(
            f"the exporter named the tensors {names}, expected {expected}. Change torch."
        )
    _drop_traces(proto.graph)
    proto.producer_name = "destseg-deploy"
    proto.producer_version = version("destseg-deploy")
    _stamp_contract(proto, spec)
    onnx.checker.check_model(proto)
    return proto


def _drop_traces(graph: onnx.GraphProto) -> None:
    """Delete what names files of the machine that exported: the same model gives the same bytes."""
    for node in graph.node:
        kept = [entry for entry in node.metadata_props if entry.key != STACK_TRACE]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)


def _stamp_contract(proto: onnx.ModelProto, spec: ModelSpec) -> None:
    """Write what cannot change later into the file itself."""
    contract = {k: v for k, v in asdict(spec).items() if k in CONTRACT}
    onnx.helper.set_model_props(proto, {"destseg": json.dumps(contract)})


STACK_TRACE = "pkg.torch.onnx.stack_trace"
"""Key under which the exporter leaves lines of source with their paths."""

CONTRACT = ("format", "category", "precision", "input", "network", "output", "checkpoint")
"""Entries of the spec that are also in the ONNX file's metadata: those that cannot change later."""


def served_spec(
    trained: ModelSpec,
    category: str | None = None,
    input_size: tuple[int, int] | None = None,
    map_size: tuple[int, int] | None = None,
    batch: BatchRange | None = None,
) -> ModelSpec:
    """Return the spec of a graph to be made from a checkpoint; see ``export_onnx``."""
    height, width = input_size or trained.network_size
    map_height, map_width = map_size or trained.network_size
    return replace(
        trained,
        kind="onnx",
        category=category or trained.category,
        input=InputSpec(height, width, batch or BatchRange()),
        output=OutputSpec(map_height, map_width, trained.output.top_k),
        tools={**trained.tools, "torch": torch.__version__, "onnx": onnx.__version__},
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's remarks about its own internals; errors still surface."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
