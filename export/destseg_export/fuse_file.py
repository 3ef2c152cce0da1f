"""An FP32 artifact to the same one, fused: written only when its answers stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from destseg_deploy.atomic import staging
from destseg_deploy.errors import ExportError, ParityError
from destseg_deploy.predictor import Predictor
from destseg_deploy.runtime.base import Prediction
from destseg_deploy.runtime.ort import OrtRuntime
from destseg_deploy.spec import FileRecord, ModelSpec
from destseg_export.fusing import DEFAULT, Fusion, fuse
from destseg_export.verify import verification_frames

BUDGET = 1e-4
"""Largest difference of a map's pixel and of a score; float32 rounding was up to 3e-5."""


def fuse_file(
    source: Path,
    output: Path,
    *,
    names: Sequence[str] = DEFAULT,
    images: Sequence[Path] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[ModelSpec, list[Fusion]]:
    """Fuse an artifact, compare it with what it was, and write it with its spec.

    Args:
        source: An fp32 ``.onnx`` with its spec.
        output: The ``.onnx`` file to write; may be the source. Nothing is written when anything
            fails.
        names: See ``fuse``.
        images: Images to compare on; those of the training data, or rendered ones, unless given.
        report: Called with a line for each rewrite.

    Returns:
        The spec as written, whose ``parity["fused"]`` says what was compared, and the report.

    Raises:
        SpecError: If the spec is missing or belongs to another file.
        ExportError: If the source is not fp32 or a rewrite fails.
        ParityError: If an answer moved by more than ``BUDGET``, or the images cannot show it.
    """
    spec = ModelSpec.read(source)
    spec.check_artifact(source)
    if spec.kind != "onnx" or spec.precision != "fp32":
        raise ExportError(
            f"{source}: {spec.precision} {spec.kind}, expected an fp32 .onnx. Fuse the fp32 export."
        )
    proto, fusions = fuse(onnx.load(source), names)
    for line in describe(fusions):
        report(line)
    frames, where = verification_frames(images, spec, spec.size)
    with Predictor(OrtRuntime(source)) as plain:
        wanted = _answers(plain, frames)
    with staging(output.parent) as folder:
        staged = folder / output.name
        onnx.save_model(proto, staged)
        spec = replace(spec, artifact=FileRecord(output.name, FileRecord.of(staged).sha256))
        spec.write(staged)
        with Predictor(OrtRuntime(staged)) as fused:
            found = _answers(fused, frames)
        record = {"images": where, "count": len(frames), **_compare(wanted, found, output.name)}
        record["fusions"] = [fusion.name for fusion in fusions if fusion.changed]
        record["macs"] = [fusions[0].macs_before, fusions[-1].macs_after] if fusions else []
        spec = replace(spec, parity={**spec.parity, "fused": record})
        spec.write(staged)
    return spec, fusions


def describe(fusions: Sequence[Fusion]) -> list[str]:
    """Return a line for each rewrite and each node it left, for people."""
    lines = []
    for fusion in fusions:
        saved = fusion.macs_before - fusion.macs_after
        lines.append(
            f"{fusion.name}: {len(fusion.changed)} nodes, {saved / 1e9:+.3f} GMAC saved of "
            f"{fusion.macs_before / 1e9:.3f}"
        )
        lines += [f"{fusion.name}: left {left.node}: {left.reason}" for left in fusion.refused]
    return lines


def _answers(predictor: Predictor, frames: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
    """Score one by one, and again as a batch where the artifact takes one."""
    alone = list(predictor.stream(frames, batch_size=max(1, predictor.spec.input.batch.min)))
    together = list(predictor.stream(frames, batch_size=min(4, predictor.spec.max_batch)))
    return [*alone, *together]


def _compare(wanted: list[Prediction], found: list[Prediction], name: str) -> dict[str, float]:
    """Return the largest differences, and that to another image's map, which must be larger."""
    maps = [_maps(answers) for answers in (wanted, found)]
    scores = [np.concatenate([p.score for p in answers]) for answers in (wanted, found)]
    moved, score = (float(np.abs(a - b).max()) for a, b in (maps, scores))
    control = float(np.abs(maps[0] - np.roll(maps[1], 1, axis=0)).max())
    if not (moved <= BUDGET and score <= BUDGET):
        raise ParityError(
            f"{name}: fusing moved a map by {moved:.2e} and a score by {score:.2e}, allowed "
            f"{BUDGET:.0e}. Nothing was written. Leave rewrites out, or export without them."
        )
    if not control > BUDGET:
        raise ParityError(
            f"{name}: the images cannot tell right from wrong: another image's map differs by only "
            f"{control:.2e}. Nothing was written. Pass more varied ones with --verify-images."
        )
    return {"map_max_abs": moved, "score_max_abs": score, "control": control}


def _maps(answers: list[Prediction]) -> NDArray[np.float32]:
    return np.concatenate([answer.anomaly_map for answer in answers])
