"""FP32 artifact to INT8 artifact: calibrate, rank, quantise within the budget, write.

Teacher, student and segmentation network are quantised as far as the budget allows. The last 1x1
convolution, the sigmoid, and everything between the three networks stay in float32. Where 8 bit are
too few, the teacher's first layers and the student's last ones are usually given back first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from destseg_deploy.data.calibration import Labelled, add_anomalies, read_normal
from destseg_deploy.data.datasets import DataSet, open_dataset
from destseg_deploy.data.images import read_image
from destseg_deploy.data.masks import read_mask
from destseg_deploy.data.resize import resize_image
from destseg_deploy.errors import DataError, ExportError
from destseg_deploy.options import Checked, option
from destseg_deploy.runtime.offline import import_onnxruntime
from destseg_deploy.spec import (
    FileRecord,
    ModelSpec,
    QuantizationRecord,
    Threshold,
    check_output,
    settle_threshold,
    writing,
)
from destseg_deploy.spec.contract import KEY, contract_of
from destseg_deploy.spec.records import SCHEMES
from destseg_export.fusions.apply import FOR_INT8, fuse
from destseg_export.graph.run import open_session
from destseg_export.int8.budget import Cost, fit_budget, spared
from destseg_export.int8.calibrate import TAIL, Calibration
from destseg_export.int8.judge import (
    ask,
    check_calibration,
    check_kept,
    check_reference,
    cost,
    split,
)
from destseg_export.int8.measured import measure
from destseg_export.int8.networks import NETWORKS
from destseg_export.int8.qdq import find_layers, share_of_macs


@dataclass(frozen=True)
class Int8Options(Checked):
    """How an artifact is quantised.

    Attributes:
        scheme: ``u8`` for CPUs, ``s8`` for TensorRT; see ``qdq``.
        parts: Which of ``networks.NETWORKS`` are quantised.
        max_drop: Points that pixel AP and image AUROC may lose each.
        images: Normal images to calibrate on, at most; as many with an anomaly are added.
        textures: Folder of textures for the anomalies; built-in ones unless given.
        fusions: Fusions applied first; see ``fusions.apply``.
    """

    error = ExportError

    scheme: str = option("u8", "How values become INT8.", choices=SCHEMES)
    parts: tuple[str, ...] = NETWORKS
    max_drop: float = option(0.5, "Points that each metric may lose.", between=(0, 100))
    images: int = option(32, "Images to calibrate on.", between=(1, 2**20))
    textures: Path | None = None
    fusions: tuple[str, ...] = FOR_INT8

    def __post_init__(self) -> None:
        """Refuse values out of range, and parts that the network does not have.

        Raises:
            ExportError: With the field, its value, and what was expected.
        """
        super().__post_init__()
        if unknown := [part for part in self.parts if part not in NETWORKS]:
            raise ExportError(f"part {unknown[0]!r}: expected some of {', '.join(NETWORKS)}.")


def quantize_artifact(
    source: Path,
    output: Path,
    normal: Path | DataSet,
    *,
    labelled: Path | DataSet | None = None,
    options: Int8Options | None = None,
    report: Callable[[str], None] = lambda line: None,
    advance: Callable[[int, int, str], None] = lambda done, total, layer: None,
) -> ModelSpec:
    """Write an INT8 artifact, its spec and its calibration, if the accuracy budget holds.

    Args:
        source: An fp32 ``.onnx`` with its spec; the plain export, it is fused here.
        output: The ``.onnx`` to write; ``<name>-calibration.json`` is written beside it.
        normal: Data set whose images of good parts calibrate, or its folder or list.
        labelled: Data set whose labelled images the budget is measured on, or its folder or list;
            synthetic anomalies in other normal images of ``normal`` unless given.
        options: See ``Int8Options``.
        report: Called with a line for each stage.
        advance: Called while layers are ranked, with those done, all of them, and the layer.

    Returns:
        The spec as written; ``quantization`` holds accuracy before and after, the layers given
        back, and how far each layer alone moves the maps.

    Raises:
        SpecError: If the source's spec is missing or belongs to another file.
        DataError: If images are missing, too few, all the same, or of another size.
        ExportError: If the source is not fp32 or may be guessing, or the budget cannot be met.
            Nothing is written.
    """
    chosen = options or Int8Options()
    check_output(output, ".onnx")
    spec = read_source(source, chosen, report)
    proto, _ = fuse(onnx.load(source), chosen.fusions)
    layers = find_layers(proto, chosen.parts)
    good = read_normal(normal, spec, 2 * chosen.images)
    # The images that calibrate do not measure the budget, too.
    half = len(good) if labelled is not None else len(good) // 2
    check_calibration(min(half, chosen.images))
    seen = add_anomalies(good[: min(half, chosen.images)], textures=chosen.textures)
    # Before the first inference: a mask that cannot be read would cost the calibration.
    judged, where = _judged(good[half:], labelled, spec, chosen)
    report(f"calibrating on {len(seen.frames)} images, half of them with an anomaly")
    choosing, judging = split(judged)
    outputs = [spec.output.map_name, spec.output.score_name]
    before = ask(open_session(proto, outputs), judging, spec.map_size)
    check_reference(before)
    found = measure(
        proto, layers, seen.frames, outputs, chosen.scheme, report=report, advance=advance
    )
    exact = ask(open_session(proto, outputs), choosing, spec.map_size)

    def cost_of(kept: Sequence[str]) -> Cost:
        run = open_session(found.quantized(kept), outputs)
        return cost(exact, ask(run, choosing, spec.map_size))

    ranked = found.ranked
    first = spared(ranked, found.macs)
    report(f"{first} layers, the most harmful for their size, stay in float32")
    fit = fit_budget(cost_of, ranked[first:], chosen.max_drop, report)
    graph = found.quantized(fit.layers)
    after = ask(open_session(graph, outputs), judging, spec.map_size)
    lost = check_kept(before, after, chosen.max_drop)
    made = QuantizationRecord(
        quantiser="destseg-export",
        scheme=chosen.scheme,
        layers=tuple(fit.layers),
        given_back=(*ranked[:first], *fit.given_back),
        share_of_macs=share_of_macs(proto, fit.layers),
        images=where,
        count=len(judging.frames),
        fp32=before.accuracy(),
        int8=after.accuracy(),
        drop=lost,
        max_drop=chosen.max_drop,
        moved_alone=dict(found.moved),
    )
    calibration = Calibration(
        len(seen.frames) // 2,
        len(seen.frames) // 2,
        str(open_dataset(normal).source),
        TAIL,
        found.ranges,
    )
    written = replace(
        spec,
        precision="int8",
        quantization=made,
        parity=None,  # it says how close the fp32 file is, and 8 bit moves the answers further
        threshold=_inherited(spec.threshold),
    )
    return _write(graph, output, written, calibration, report)


def _inherited(threshold: Threshold | None) -> Threshold | None:
    """Return the threshold with a rule that says what it was set for; INT8 moves the scores."""
    if threshold is None:
        return None
    return replace(threshold, rule=f"set for fp32: {threshold.rule}")


def read_source(
    source: Path, options: Int8Options, report: Callable[[str], None] = lambda line: None
) -> ModelSpec:
    """Return an artifact's spec, after checking all that can be checked before images are read.

    Args:
        source: The artifact.
        options: How it is to be quantised.
        report: Called with a line where another source would make a faster file.

    Raises:
        SpecError: If it is missing or belongs to another file.
        ExportError: If the artifact is not one that can be quantised.
    """
    spec = ModelSpec.read(source)
    spec.check_artifact(source)
    if spec.kind != "onnx" or spec.precision != "fp32":
        raise ExportError(
            f"{source}: {spec.precision} {spec.kind}, expected an fp32 .onnx. Quantise the fp32 "
            "export."
        )
    if spec.tiling is not None and spec.tiling.tile_batch is not None:
        raise ExportError(
            f"{source}: runs {spec.tiling.tile_batch} tiles at a time, so that each layer stands "
            "several times in the graph, with other ranges each time. Export without --tile-batch."
        )
    done = () if spec.fusion is None else spec.fusion.fusions
    if costly := [name for name in done if name not in options.fusions]:
        report(
            f"{source.name} was fused for float32 ({', '.join(costly)}), which makes int8 slower. "
            "Quantise the plain export for a faster file."
        )
    return spec


def _judged(
    rest: NDArray[np.uint8],
    labelled: Path | DataSet | None,
    spec: ModelSpec,
    options: Int8Options,
) -> tuple[Labelled, str]:
    """Return what the budget is measured on, and a phrase for it."""
    if labelled is not None:
        return read_labelled(labelled, spec), f"test images of {open_dataset(labelled).source}"
    found = add_anomalies(rest, textures=options.textures, seed=1)
    return found, "synthetic anomalies in other normal images"


def read_labelled(source: Path | DataSet, spec: ModelSpec) -> Labelled:
    """Read labelled images and their masks at the graph's input size.

    Raises:
        DataError: If it lacks normal or anomalous images, masks, or the size is another.
    """
    data = open_dataset(source)
    frames, masks = [], []
    samples = data.test()
    for sample in samples:
        frame = read_image(sample.image)
        if not spec.takes_any_size and frame.shape[:2] != spec.size:
            raise DataError(
                f"{sample.image}: {frame.shape[1]}x{frame.shape[0]} pixels, the graph takes "
                f"{spec.size[1]}x{spec.size[0]}. Pass images of the camera."
            )
        if sample.anomalous and sample.mask is None:
            raise DataError(f"{sample.image}: no mask, so pixel AP cannot be measured.")
        frames.append(resize_image(frame, spec.size))
        mask = np.zeros(spec.size, np.bool_)
        if sample.mask is not None:
            mask = read_mask(sample.mask, (frame.shape[0], frame.shape[1]), spec.size)
        masks.append(mask)
    labels = np.array([sample.anomalous for sample in samples])
    found = Labelled(np.stack(frames), np.stack(masks), labels)
    if found.labels.all() or not found.labels.any():
        raise DataError(f"{data.source}: expected normal and anomalous test images.")
    return found


def _write(
    graph: onnx.ModelProto,
    output: Path,
    spec: ModelSpec,
    calibration: Calibration,
    report: Callable[[str], None],
) -> ModelSpec:
    onnx.helper.set_model_props(graph, {KEY: contract_of(spec.as_entries())})
    with writing(output, ".onnx") as staged:
        onnx.save_model(graph, staged)
        spec = replace(
            spec,
            artifact=FileRecord(output.name, FileRecord.of(staged).sha256),
            tools={**spec.tools, "onnxruntime": import_onnxruntime().__version__},
        )
        spec = settle_threshold(spec, output, report)
        spec.write(staged)
        calibration.write(staged.with_name(f"{output.stem}-calibration.json"))
    return spec
