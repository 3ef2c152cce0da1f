"""FP32 artifact to INT8 artifact: calibrate, rank, quantise within the budget, write.

Teacher, student and segmentation network are quantised as far as the budget allows. The last 1x1
convolution, the sigmoid, and everything between the three networks stay in float32. Where 8 bit is
too few, the teacher's first layers and the student's last ones are the first to be given back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from destseg_deploy.atomic import staging
from destseg_deploy.data.calibration_images import Labelled, add_anomalies, read_normal
from destseg_deploy.data.images import read_image, read_mask
from destseg_deploy.data.mvtec import list_test
from destseg_deploy.data.resize import resize_image, resize_plane
from destseg_deploy.errors import DataError, ExportError
from destseg_deploy.spec import FileRecord, ModelSpec, Threshold
from destseg_export.calibrate import TAIL, Calibration, measure_ranges
from destseg_export.fusing import FOR_INT8, fuse
from destseg_export.int8_budget import (
    Accuracy,
    Fit,
    by_bargain,
    fit_budget,
    measure_accuracy,
    rank_layers,
)
from destseg_export.int8_parts import PARTS
from destseg_export.qdq import (
    SCHEMES,
    find_layers,
    macs_by_layer,
    quantize_layers,
    share_of_macs,
    tensors_around,
)
from destseg_export.session import open_session

RANKED_ON = 8
"""Images of the sensitivity sweep, half of them anomalous."""


@dataclass(frozen=True)
class Int8Options:
    """How an artifact is quantised.

    Attributes:
        scheme: ``u8`` for CPUs, ``s8`` for TensorRT; see ``qdq``.
        parts: Which of ``int8_parts.PARTS`` are quantised.
        max_drop: Points that pixel AP and image AUROC may lose each.
        images: Normal images to calibrate on, at most; as many with an anomaly are added.
        textures: Folder of textures for the anomalies; built-in ones unless given.
        fusions: Exact rewrites applied first; see ``fusing``.
    """

    scheme: str = "u8"
    parts: tuple[str, ...] = PARTS
    max_drop: float = 0.5
    images: int = 32
    textures: Path | None = None
    fusions: tuple[str, ...] = FOR_INT8


def quantize_artifact(
    source: Path,
    output: Path,
    normal: Path,
    *,
    labelled: Path | None = None,
    options: Int8Options | None = None,
    report: Callable[[str], None] = lambda line: None,
    advance: Callable[[int, int, str], None] = lambda done, total, layer: None,
) -> ModelSpec:
    """Write an INT8 artifact, its spec and its calibration, if the accuracy budget holds.

    Args:
        source: An fp32 ``.onnx`` with its spec; the plain export, it is fused here.
        output: The ``.onnx`` to write; ``<name>-calibration.json`` is written beside it.
        normal: Folder of normal images to calibrate on.
        labelled: Category in the MVTec AD layout whose test images the budget is measured on;
            synthetic anomalies in other normal images of ``normal`` unless given.
        options: See ``Int8Options``.
        report: Called with a line for each stage.
        advance: Called while layers are ranked, with those done, all of them, and the layer.

    Returns:
        The spec as written; ``parity`` holds accuracy before and after, the layers given back and
        how far each layer alone moves the maps.

    Raises:
        SpecError: If the source's spec is missing or belongs to another file.
        DataError: If images are missing, all the same, or of another size.
        ExportError: If the source is not fp32, or the budget cannot be met. Nothing is written.
    """
    chosen = options or Int8Options()
    spec = _read_source(source, chosen)
    proto, _ = fuse(onnx.load(source), chosen.fusions)
    layers = find_layers(proto, chosen.parts)
    good = read_normal(normal, spec, 2 * chosen.images)
    half = len(good) if len(good) < 4 or labelled is not None else len(good) // 2
    seen = add_anomalies(good[: min(half, chosen.images)], textures=chosen.textures)
    report(f"calibrating on {len(seen.frames)} images, half of them with an anomaly")
    ranges = measure_ranges(proto, tensors_around(proto, layers), seen.frames)
    judged, where = _judged(good[half:], labelled, spec, chosen, seen)
    outputs = [spec.output.map_name, spec.output.score_name]
    report(f"ranking {len(layers)} layers")
    few = np.unique(np.linspace(0, len(seen.frames) - 1, RANKED_ON).astype(int))
    moved = rank_layers(proto, layers, ranges, chosen.scheme, seen.frames[few], outputs, advance)
    masks = _at_map_size(judged.masks, spec.map_size)

    def measure(kept: Sequence[str]) -> Accuracy:
        graph = quantize_layers(proto, kept, ranges, chosen.scheme) if kept else proto
        return measure_accuracy(open_session(graph, outputs), judged, masks)

    reference = measure([])
    ranked = by_bargain(moved, macs_by_layer(proto, layers))
    fit = fit_budget(measure, reference, ranked, chosen.max_drop, report)
    parity = {
        "images": where,
        "count": len(judged.frames),
        "max_drop": chosen.max_drop,
        "scheme": chosen.scheme,
        "moved_alone": moved,
        **_record(proto, reference, fit),
    }
    calibration = Calibration(
        len(seen.frames) // 2, len(seen.frames) // 2, str(normal), TAIL, ranges
    )
    graph = quantize_layers(proto, fit.layers, ranges, chosen.scheme)
    written = replace(spec, precision="int8", parity=parity, threshold=_inherited(spec.threshold))
    return _write(graph, output, written, calibration)


def _inherited(threshold: Threshold | None) -> Threshold | None:
    """Return the threshold with a rule that says what it was set for; INT8 moves the scores."""
    if threshold is None:
        return None
    return replace(threshold, rule=f"set for fp32: {threshold.rule}")


def _record(proto: onnx.ModelProto, reference: Accuracy, fit: Fit) -> dict[str, Any]:
    """Return what the budget left, for the spec."""
    return {
        "fp32": asdict(reference),
        "int8": asdict(fit.accuracy),
        "drop": fit.drop,
        "share_of_macs": share_of_macs(proto, fit.layers),
        "layers": list(fit.layers),
        "given_back": list(fit.given_back),
    }


def _read_source(source: Path, options: Int8Options) -> ModelSpec:
    """Check everything that can be checked before images are read."""
    spec = ModelSpec.read(source)
    spec.check_artifact(source)
    if spec.kind != "onnx" or spec.precision != "fp32":
        raise ExportError(
            f"{source}: {spec.precision} {spec.kind}, expected an fp32 .onnx. Quantise the fp32 "
            "export."
        )
    if options.scheme not in SCHEMES:
        raise ExportError(f"scheme {options.scheme!r}: expected {' or '.join(SCHEMES)}.")
    if unknown := [part for part in options.parts if part not in PARTS]:
        raise ExportError(f"part {unknown[0]!r}: expected some of {', '.join(PARTS)}.")
    if not options.max_drop >= 0:
        raise ExportError(f"--max-drop {options.max_drop}: expected 0 or more points.")
    return spec


def _judged(
    rest: NDArray[np.uint8],
    labelled: Path | None,
    spec: ModelSpec,
    options: Int8Options,
    seen: Labelled,
) -> tuple[Labelled, str]:
    """Return what the budget is measured on, and a phrase for it."""
    if labelled is not None:
        return read_labelled(labelled, spec), f"test images of {labelled}"
    if len(rest) < 2:
        return seen, "synthetic anomalies in the calibration images"
    found = add_anomalies(rest, textures=options.textures, seed=1)
    return found, "synthetic anomalies in other normal images"


def read_labelled(category: Path, spec: ModelSpec) -> Labelled:
    """Read a category's test images and masks at the graph's input size.

    Raises:
        DataError: If it lacks normal or anomalous images, masks, or the size is another.
    """
    frames, masks = [], []
    for sample in list_test(category):
        frame = read_image(sample.image)
        if spec.size != spec.network_size and frame.shape[:2] != spec.size:
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
    found = Labelled(np.stack(frames), np.stack(masks))
    if found.labels.all() or not found.labels.any():
        raise DataError(f"{category}: expected normal and anomalous test images.")
    return found


def _at_map_size(masks: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    return np.stack([resize_plane(mask.astype(np.float32), size) >= 0.5 for mask in masks])


def _write(
    graph: onnx.ModelProto, output: Path, spec: ModelSpec, calibration: Calibration
) -> ModelSpec:
    for entry in graph.metadata_props:
        if entry.key == "destseg":
            contract = json.loads(entry.value)
            entry.value = json.dumps({**contract, "precision": spec.precision})
    with staging(output.parent) as folder:
        staged = folder / output.name
        onnx.save_model(graph, staged)
        spec = replace(
            spec,
            artifact=FileRecord(output.name, FileRecord.of(staged).sha256),
            tools={**spec.tools, "onnxruntime": version("onnxruntime")},
        )
        spec.write(staged)
        calibration.write(staged.with_name(f"{output.stem}-calibration.json"))
    return spec
