"""Checkpoint to ONNX: trace the export twin, stamp it, verify it, and only then name it.

``export_onnx(checkpoint, output, precision="fp16")`` converts the traced graph (``half``). What is
compared with PyTorch then is the same graph with its rounding made explicit (``rounding``), because
ONNX Runtime's CPU provider does not round half graphs. The shipped file is run as well, which shows
that it loads and answers, and nothing about half.
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from destseg_deploy.environment import VERSION
from destseg_deploy.errors import ExportError, SpecError
from destseg_deploy.models.destseg import DeSTSeg
from destseg_deploy.models.half import fold_batch_norms
from destseg_deploy.models.inference import served_graph
from destseg_deploy.models.weights import load_checkpoint
from destseg_deploy.predictor import Predictor
from destseg_deploy.runtime.base import Prediction
from destseg_deploy.runtime.ort.runtime import OrtRuntime
from destseg_deploy.spec import (
    BatchRange,
    FileRecord,
    InputSpec,
    ModelSpec,
    OutputSpec,
    check_output,
    other_scores,
    settle_threshold,
    writing,
)
from destseg_deploy.spec.contract import KEY, contract_of
from destseg_deploy.spec.limits import RESTORE
from destseg_export.cutting import Cut, remark_scale, remark_threshold
from destseg_export.frames import Frames, verification_frames
from destseg_export.graph.epsilon import keep_epsilon
from destseg_export.half import convert as half
from destseg_export.half.convert import HalfReport, to_half
from destseg_export.half.emulate import open_graph, undo
from destseg_export.half.ranges import check_activations, measure_activations
from destseg_export.parity import (
    BUDGETS,
    Verification,
    answer,
    check_parity,
    check_sight,
    compare,
    open_reference,
)

OPSETS = range(18, 24)
"""torch's exporter writes 18 when it is asked for less; few runtimes read newer ones than 23."""

OLDEST_OPSETS = {"fp32": OPSETS.start, **half.OPSETS}
"""Precision -> the oldest opset that has its operators."""

RUN_BY_CPU = ("fp32", "fp16")
"""Precisions that ONNX Runtime's CPU provider runs; it has no bf16 convolution."""


@dataclass(frozen=True)
class OnnxOptions:
    """Which graph is made of a checkpoint.

    Attributes:
        category: Name to record; the checkpoint's unless given.
        input_size: Height and width of the camera's frames: their antialiased resize becomes part
            of the graph. The checkpoint's unless given: the network's size, or with tiles or a
            region that of its frames.
        map_size: Height and width of the returned map; that of the map that the score is taken
            from unless given: the network's size, or the scaled frame's with tiles.
        batch: Images per call; one number thrice makes the batch static. 1 to 16 unless given,
            with tiles 1, since the tiles of a frame are a batch already.
        opset: ONNX opset, one of ``OPSETS``; the oldest that has the precision's operators unless
            given: 18, for bf16 22.
        precision: ``fp32``, ``fp16`` or ``bf16``, that of the convolutions; input and outputs are
            the same for all. None for fp32, and for engines fp16.
        cut: Tiles and region of the frames.
        top_k: Pixels of the map whose mean is the score; the checkpoint's unless given.
    """

    category: str | None = None
    input_size: tuple[int, int] | None = None
    map_size: tuple[int, int] | None = None
    batch: BatchRange | None = None
    opset: int | None = None
    precision: str | None = None
    cut: Cut = field(default_factory=Cut)
    top_k: int | None = None

    def __post_init__(self) -> None:
        """Refuse what no graph can be made with.

        Raises:
            ExportError: If precision or opset is not among those supported.
        """
        if self.precision not in (None, *OLDEST_OPSETS):
            raise ExportError(
                f"precision {self.precision!r}: expected one of {', '.join(OLDEST_OPSETS)}."
            )
        check_opset(self.opset, self.precision or "fp32")


def check_opset(opset: int | None, precision: str = "fp32") -> None:
    """Refuse an opset that is not supported; None stands for the oldest that will do.

    Raises:
        ExportError: If it is another, or has not all operators of the precision.
    """
    if opset is None:
        return
    if opset not in OPSETS:
        raise ExportError(
            f"opset {opset}: expected {OPSETS.start} to {OPSETS.stop - 1}; torch writes no older."
        )
    if opset < (oldest := OLDEST_OPSETS[precision]):
        raise ExportError(
            f"opset {opset}: ONNX has {precision} convolutions from opset {oldest} on. Pass "
            f"{oldest} to {OPSETS.stop - 1}, or leave it out."
        )


def export_onnx(
    checkpoint: Path,
    output: Path,
    *,
    options: OnnxOptions | None = None,
    verification: Verification | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> ModelSpec:
    """Export a checkpoint to ONNX, compare it with PyTorch, and write it with its spec.

    Args:
        checkpoint: ``.safetensors`` with its spec, or an official ``.pckl``.
        output: The ``.onnx`` file to write. Nothing is written when anything fails.
        options: Which graph is made; defaults unless given.
        verification: What it is compared on and how closely; defaults unless given.
        report: Called with a line for each stage.

    Returns:
        The spec as written.

    Raises:
        WeightsError, SpecError: If the checkpoint cannot be read.
        ExportError: If the graph cannot be made, or half cannot hold its values.
        ParityError: If its answers differ from PyTorch's beyond the budget.
    """
    chosen, verified = options or OnnxOptions(), verification or Verification()
    precision = chosen.precision or "fp32"
    allowed = verified.budget(precision)
    check_output(output, ".onnx")
    model, trained = load_checkpoint(checkpoint)
    _check_category(checkpoint, trained, chosen.category)
    spec = served_spec(trained, chosen)
    _check_asked(spec, output.name)
    remark_scale(trained, spec, report)
    remark_threshold(trained, spec, report)
    report(f"tracing {checkpoint.name}")
    proto = trace(model, spec, chosen.opset or OLDEST_OPSETS[precision])
    frames = verification_frames(verified.images, trained, spec.size, spec.tiles)
    report(f"comparing with PyTorch on {len(frames.images)} {frames.source}")
    wanted = answer(open_reference(model, trained, spec), frames)
    if precision != "fp32":
        proto, made = to_half(proto, precision)
        _check_unrounded(undo(proto, made.originals), spec, wanted, frames, output.name)
        spec = replace(spec, precision=precision, half=made.record())
        _stamp_contract(proto, spec)
        _report_half(made, report)
    with writing(output, ".onnx") as staged:
        onnx.save_model(proto, staged)
        spec = replace(spec, artifact=FileRecord(output.name, FileRecord.of(staged).sha256))
        spec.write(staged)
        if precision != "fp32":
            spec = _check_range(proto, spec, frames.images, report)
        with _candidate(proto, staged, spec, frames.images) as candidate:
            parity = compare(wanted, candidate, frames)
        check_sight(parity, output.name)
        check_parity(parity, allowed, output.name)
        rounding = None if precision == "fp32" else f"emulated {precision}"
        record = parity.record(output.name, frames.source, allowed, rounding)
        spec = settle_threshold(replace(spec, parity=record), output, report)
        spec.write(staged)
    return spec


def _check_asked(spec: ModelSpec, name: str) -> None:
    """Refuse what the options ask for; a spec's own advice is for a file that is there."""
    try:
        spec.check(name)
    except SpecError as error:
        if not str(error).endswith(RESTORE):
            raise
        advice = "Change the option that says so."
        raise ExportError(f"{str(error).removesuffix(RESTORE)}{advice}") from error


def _check_unrounded(
    proto: onnx.ModelProto,
    spec: ModelSpec,
    wanted: Prediction,
    frames: Frames,
    name: str,
) -> None:
    """Compare a half graph before its rounding, which hides what float32's does not."""
    with open_graph(proto, spec, emulated=False) as unrounded:
        parity = compare(wanted, unrounded, frames)
    check_sight(parity, name)
    check_parity(parity, BUDGETS["fp32"], f"{name} in fp32")


def _check_category(checkpoint: Path, trained: ModelSpec, category: str | None) -> None:
    """Refuse to export one category's weights under the name of another."""
    # An official checkpoint under another name says nowhere what it was trained on.
    known = checkpoint.suffix.lower() == ".safetensors" or checkpoint.stem.startswith(
        "DeSTSeg_MVTec_"
    )
    if known and category not in (None, trained.category):
        raise ExportError(
            f"{checkpoint}: trained on {trained.category!r}, not on {category!r}. Leave out "
            "--category, or pass the checkpoint of that category."
        )


def _report_half(made: HalfReport, report: Callable[[str], None]) -> None:
    for line in made.lines():
        report(line)
    if made.precision not in RUN_BY_CPU:
        report(
            f"{made.precision} runs on NVIDIA GPUs, as an .engine or in ONNX Runtime with --device "
            "cuda; ONNX Runtime's CPU provider cannot open it"
        )


def _check_range(
    proto: onnx.ModelProto,
    spec: ModelSpec,
    frames: Sequence[NDArray[np.uint8]],
    report: Callable[[str], None],
) -> ModelSpec:
    """Refuse activations that half cannot hold; return the spec with the largest one."""
    report(f"measuring the activations on {len(frames)} images")
    activations = measure_activations(proto, frames)
    check_activations(activations, spec.precision)
    name = max(activations, key=activations.__getitem__)
    half = spec.half and replace(
        spec.half, largest_tensor=name, largest_activation=activations[name]
    )
    return replace(spec, half=half)


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


def trace(network: DeSTSeg, spec: ModelSpec, opset: int) -> onnx.ModelProto:
    """Turn a model into an FP32 ONNX graph with the spec's tensors, sizes and batch.

    Raises:
        ExportError: If the opset is not supported or torch cannot export the graph.
    """
    check_opset(opset)
    served = served_graph(_folded(network), spec)
    batch = spec.input.batch
    fixed = batch.min == batch.max
    # torch.export takes a size of 1 in the example for a constant, so a free batch shows it 2.
    example = torch.zeros((batch.max if fixed else 2, *spec.size, 3), dtype=torch.uint8)
    dimension = None if fixed else torch.export.Dim("batch", min=1, max=max(batch.max, 2))
    with _quiet():
        program = torch.onnx.export(
            served,
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
    # Through the protobuf message, since older versions of torch have an IR of their own.
    model = ir.from_proto(program.model_proto)
    keep_epsilon(model)
    return _stamped(model, spec, opset)


def _folded(network: DeSTSeg) -> DeSTSeg:
    """Return the networks with their BatchNorms folded into the convolutions before them.

    torch folds one itself, but not where several nodes read the weights, as with tiles; and it
    first traces each operator of a BatchNorm, which takes 10 s where this takes 6.
    """
    folded = copy.deepcopy(network).eval().requires_grad_(False)
    fold_batch_norms(folded)
    return folded


def _stamped(model: ir.Model, spec: ModelSpec, opset: int) -> onnx.ModelProto:
    """Check what the exporter wrote and put the contract into the file's metadata."""
    written = model.opset_imports.get("")
    if written != opset:
        raise ExportError(
            f"opset {opset} was asked for and the exporter wrote {written}. Pass the latter, or "
            "use another version of torch."
        )
    names = [value.name for value in (*model.graph.inputs, *model.graph.outputs)]
    expected = [spec.input.name, spec.output.map_name, spec.output.score_name]
    if names != expected:
        raise ExportError(
            f"the exporter named the tensors {names}, expected {expected}. Change torch."
        )
    for node in model.graph:
        # Stack traces name files of this machine: the same model would give other bytes elsewhere.
        node.metadata_props.pop(STACK_TRACE, None)
    proto: onnx.ModelProto = ir.to_proto(model)
    proto.producer_name = "destseg-deploy"
    proto.producer_version = VERSION
    _stamp_contract(proto, spec)
    onnx.checker.check_model(proto)
    return proto


def _stamp_contract(proto: onnx.ModelProto, spec: ModelSpec) -> None:
    """Write what cannot change later into the file itself."""
    onnx.helper.set_model_props(proto, {KEY: contract_of(spec.as_entries())})


STACK_TRACE = "pkg.torch.onnx.stack_trace"
"""Key under which the exporter leaves lines of source with their paths."""


def served_spec(trained: ModelSpec, options: OnnxOptions | None = None) -> ModelSpec:
    """Return the spec of a graph to be made from a checkpoint.

    Raises:
        ExportError, SpecError: If its frames cannot be cut as the options say, or the map has fewer
            pixels than the score needs.
    """
    options = options or OnnxOptions()
    frame = options.cut.frame(trained, options.input_size)
    tiling = options.cut.tiling(trained)
    batch = options.batch or (BatchRange(1, 1, 1) if tiling else BatchRange())
    spec = replace(
        trained,
        input=InputSpec(*frame, batch),
        tiling=tiling,
        region=options.cut.region_of(trained, frame),
    )
    map_height, map_width = options.map_size or spec.working_size
    top_k = trained.output.top_k if options.top_k is None else options.top_k
    pixels = math.prod(spec.working_size)
    if not 1 <= top_k <= pixels:
        raise ExportError(
            f"top_k {top_k}: expected 1 to {pixels}, the pixels of the map that the score is "
            "taken from. Change --top-k."
        )
    served = replace(
        spec,
        kind="onnx",
        category=options.category or trained.category,
        output=OutputSpec(map_height, map_width, top_k),
        tools={**trained.tools, "torch": torch.__version__, "onnx": onnx.__version__},
    )
    return replace(served, threshold=None) if other_scores(trained, served) else served


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
