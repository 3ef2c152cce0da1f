"""The fusions of the FP32 graph: which there are, in which order, and what came of them.

A fusion rewrites a part of the graph into one that gives the same answers for less work; its
formula stands at the top of its file. ``fuse`` applies them to a graph, ``fuse_file`` to an
artifact, which is written only when its answers stay, and ``write_variants`` leaves each one out in
turn, so that each can be timed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import onnx
import onnx_ir as ir

from destseg_deploy.errors import ExportError
from destseg_deploy.predictor import Predictor
from destseg_deploy.runtime.ort.runtime import OrtRuntime
from destseg_deploy.spec import (
    FileRecord,
    FusionRecord,
    ModelSpec,
    check_output,
    settle_threshold,
    writing,
)
from destseg_export.frames import verification_frames
from destseg_export.fusions.below_upsampling import (
    move_kernels,
    move_shortcuts,
    move_twofold_kernels,
    take_out_pooled_branch,
)
from destseg_export.fusions.duplicates import drop_duplicates
from destseg_export.fusions.normalization import fold_normalization
from destseg_export.fusions.optimizer import optimize
from destseg_export.fusions.products import divide_lengths_once
from destseg_export.fusions.resizes import fix_resizes
from destseg_export.fusions.stems import join_stems
from destseg_export.graph.edit import Fusion, Refusal, open_model, tidy
from destseg_export.graph.macs import count_macs
from destseg_export.parity import (
    FUSION_BUDGET,
    UNFUSED,
    answer,
    check_parity,
    check_sight,
    compare,
)

FUSIONS: Mapping[str, Fusion] = MappingProxyType(
    {
        "resizes": fix_resizes,
        "normalization": fold_normalization,
        "stems": join_stems,
        "products": divide_lengths_once,
        "pooled-branch": take_out_pooled_branch,
        "shortcuts": move_shortcuts,
        "kernels": move_kernels,
        "kernels-twofold": move_twofold_kernels,
        "duplicates": drop_duplicates,
        "optimizer": optimize,
    }
)
"""In the order in which they are applied; each sees what the ones before it left. ``resizes`` comes
early, since those below it read the constant scales."""

DEFAULT = tuple(FUSIONS)

FOR_INT8 = ("normalization", "stems", "products", "pooled-branch", "duplicates", "optimizer")
"""What pays before quantising.

The others save arithmetic, which costs little in INT8, and put products of matrices and sums in
float32 among the quantised layers, so that tensors change type and layout there. With them, a model
takes 1.37 times as long in OpenVINO on an Intel with AMX, and as long, within the noise, on the
same machine kept to AVX-512 VNNI or AVX VNNI, in ONNX Runtime too. On an AMD with VNNI it takes
1.03 to 1.1 times as long in OpenVINO and 1.12 times in ONNX Runtime."""


@dataclass(frozen=True)
class Applied:
    """What one fusion did to a graph.

    Attributes:
        name: Its name in ``FUSIONS``.
        changed: Nodes that it replaced.
        refused: Nodes that it left, and why.
        macs_before: Multiply-accumulates for an image before it; a MAC is two FLOP.
        macs_after: The same after it.
    """

    name: str
    changed: tuple[str, ...]
    refused: tuple[Refusal, ...]
    macs_before: int
    macs_after: int


def fuse(
    proto: onnx.ModelProto, names: Sequence[str] = DEFAULT
) -> tuple[onnx.ModelProto, list[Applied]]:
    """Return a graph with the same answers that costs less, and a report.

    Inputs, outputs, their names and the metadata stay as they are; so do the weights' names, apart
    from an ending where one was cut or scaled.

    Args:
        proto: An FP32 export; it is not changed.
        names: Fusions to apply, of ``FUSIONS``, in the order given there.

    Raises:
        ExportError: If a name is unknown, or the graph was fused before.
    """
    check_names(names)
    model = open_model(proto)
    before = count_macs(model)
    report = []
    for name in (name for name in FUSIONS if name in names):
        outcome = FUSIONS[name](model)
        tidy(model)
        after = count_macs(model)
        report.append(Applied(name, outcome.changed, outcome.refused, before, after))
        before = after
    fused = ir.to_proto(model)
    _check_contract(proto, fused)
    return fused, report


def check_names(names: Sequence[str]) -> None:
    """Refuse a name that no fusion has.

    Raises:
        ExportError: With the names there are.
    """
    if unknown := sorted(set(names) - set(FUSIONS)):
        raise ExportError(f"fusion {unknown[0]!r}: expected one of {', '.join(FUSIONS)}.")


def _check_contract(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Refuse a graph that is not valid or whose interface is another.

    Raises:
        ExportError: If shapes contradict each other, or inputs, outputs or metadata were touched.
    """
    try:
        onnx.checker.check_model(after, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ExportError(f"graph: its shapes do not fit ({reason}). Export it again.") from error
    for what in ("input", "output"):
        if list(getattr(before.graph, what)) != list(getattr(after.graph, what)):
            raise ExportError(f"fusion changed the graph's {what}s. Export without fusions.")
    if list(before.metadata_props) != list(after.metadata_props):
        raise ExportError("fusion changed the graph's metadata. Export without fusions.")


def write_variants(
    source: Path,
    folder: Path,
    *,
    images: Sequence[Path] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Write ``fused.onnx`` and, for each fusion that changed something, ``without-<name>.onnx``.

    Each is compared with the source, as ``fuse_file`` does, and has its spec beside it.

    Args:
        source: A plain fp32 ``.onnx`` with its spec.
        folder: Where they are written; made when missing.
        images: See ``fuse_file``.
        report: Called with a line for each file, and each fusion that changed nothing.

    Raises:
        SpecError: See ``fuse_file``.
        ExportError: See ``fuse_file``; or if the source is fused already. Nothing is written.
        ParityError: See ``fuse_file``.
    """
    if ModelSpec.read(source).fusion is not None:
        raise ExportError(f"{source}: fused already. Pass the export without fusions.")
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / "fused.onnx"
    _, fusions = fuse_file(source, whole, names=DEFAULT, images=images)
    report(f"{whole.name}: {', '.join(f.name for f in fusions if f.changed)}")
    written = [whole]
    for fusion in fusions:
        if not fusion.changed:
            report(f"{fusion.name}: changes nothing here, so there is no file without it")
            continue
        path = folder / f"without-{fusion.name}.onnx"
        fuse_file(source, path, names=[n for n in DEFAULT if n != fusion.name], images=images)
        report(path.name)
        written.append(path)
    return written


def fuse_file(
    source: Path,
    output: Path,
    *,
    names: Sequence[str] = DEFAULT,
    images: Sequence[Path] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[ModelSpec, list[Applied]]:
    """Fuse an artifact, compare it with what it was, and write it with its spec.

    Args:
        source: An fp32 ``.onnx`` with its spec.
        output: The ``.onnx`` file to write; may be the source. Nothing is written when anything
            fails.
        names: See ``fuse``.
        images: Images to compare on; those of the training data, or rendered ones, unless given.
        report: Called with a line for each fusion.

    Returns:
        The spec as written, whose ``fusion`` says what was compared, and the report.

    Raises:
        SpecError: If the spec is missing or belongs to another file.
        ExportError: If the source is not fp32 or a fusion fails.
        ParityError: If an answer moved by more than ``FUSION_BUDGET``, or the images cannot show
            it.
    """
    check_output(output, ".onnx")
    spec = ModelSpec.read(source)
    spec.check_artifact(source)
    if spec.kind != "onnx" or spec.precision != "fp32":
        raise ExportError(
            f"{source}: {spec.precision} {spec.kind}, expected an fp32 .onnx. Fuse the fp32 export."
        )
    proto, fusions = fuse(onnx.load(source), names)
    for line in describe(fusions):
        report(line)
    frames = verification_frames(images, spec, spec.size, spec.tiles)
    with writing(output, ".onnx") as staged:
        onnx.save_model(proto, staged)
        spec = replace(spec, artifact=FileRecord(output.name, FileRecord.of(staged).sha256))
        spec.write(staged)
        with Predictor(OrtRuntime(source)) as plain:
            wanted = answer(plain, frames)
        with Predictor(OrtRuntime(staged)) as fused:
            parity = compare(wanted, fused, frames)
        check_sight(parity, output.name)
        check_parity(parity, FUSION_BUDGET, output.name, UNFUSED)
        record = FusionRecord(
            fusions=tuple(fusion.name for fusion in fusions if fusion.changed),
            parity=parity.record(output.name, frames.source, FUSION_BUDGET),
            macs_before=fusions[0].macs_before if fusions else None,
            macs_after=fusions[-1].macs_after if fusions else None,
        )
        spec = settle_threshold(replace(spec, fusion=record), output, report)
        spec.write(staged)
    return spec, fusions


def describe(fusions: Sequence[Applied]) -> list[str]:
    """Return a line for each fusion and each node it left, for people."""
    lines = []
    for fusion in fusions:
        saved = fusion.macs_before - fusion.macs_after
        lines.append(
            f"{fusion.name}: {len(fusion.changed)} nodes, {saved / 1e9:+.3f} GMAC saved of "
            f"{fusion.macs_before / 1e9:.3f}"
        )
        lines += [f"{fusion.name}: left {left.node}: {left.reason}" for left in fusion.refused]
    return lines
