"""What a swap of weights needs beside TensorRT: fitting specs, and proof by answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.errors import ParityError, ShapeError, SpecError
from destseg_deploy.runtime.base import Prediction, Runtime
from destseg_deploy.spec import ModelSpec


@dataclass(frozen=True)
class RefitBudget:
    """Largest absolute differences to the expected answers; values lie in [0, 1].

    Attributes:
        anomaly_map: Of any pixel of any map.
        score: Of any score.
    """

    anomaly_map: float
    score: float

    @classmethod
    def of(cls, precision: str) -> RefitBudget:
        """Return what a precision can keep: TF32 convolutions in fp32, rounded ones in others."""
        return cls(1e-2, 2e-3) if precision == "fp32" else cls(3e-2, 1e-2)


def read_weights(path: Path, engine: ModelSpec) -> tuple[bytes, ModelSpec]:
    """Read an ONNX file whose weights fit an engine.

    Returns:
        Its bytes, and the spec that the engine has with its weights.

    Raises:
        SpecError: If it is no ONNX artifact, or its contract is not the engine's.
    """
    if path.suffix != ".onnx":
        raise SpecError(
            f"{path}: expected the .onnx of another category. Export it: destseg-export "
            f"--checkpoint {path.name} --precision {engine.precision}"
        )
    weights = ModelSpec.read(path)
    weights.check_artifact(path)
    _check_contract(path, weights, engine)
    record = {
        **engine.engine,
        "onnx": weights.artifact.file,
        "onnx_sha256": weights.artifact.sha256,
    }
    swapped = replace(
        engine,
        category=weights.category,
        checkpoint=weights.checkpoint,
        threshold=weights.threshold,
        teacher=weights.teacher,
        training=weights.training,
        engine=record,
    )
    return path.read_bytes(), swapped


def expected_answers(
    expected: Prediction | Runtime, frames: NDArray[np.uint8], file: str
) -> Prediction:
    """Return what frames must give: as recorded, or as another runtime says now.

    Raises:
        ShapeError: If there are fewer than two frames, or not as many answers.
    """
    if len(frames) < 2:
        raise ShapeError(
            f"{file}: {len(frames)} frames, expected at least 2 to tell right answers from wrong."
        )
    answers = (
        expected
        if isinstance(expected, Prediction)
        else infer_all(expected.infer, expected.spec, frames)
    )
    if len(answers.score) != len(frames):
        raise ShapeError(f"{file}: {len(answers.score)} answers to {len(frames)} frames.")
    return answers


def infer_all(
    infer: Callable[[NDArray[np.uint8]], Prediction], spec: ModelSpec, frames: NDArray[np.uint8]
) -> Prediction:
    """Score any number of frames, batch by batch, the last one filled up to the smallest."""
    batch = spec.input.batch
    answers = []
    for start in range(0, len(frames), batch.max):
        part = frames[start : start + batch.max]
        filled = np.concatenate([part] + [part[:1]] * max(batch.min - len(part), 0))
        answer = infer(filled)
        answers.append((answer.anomaly_map[: len(part)], answer.score[: len(part)]))
    maps, scores = zip(*answers, strict=True)
    return Prediction(np.concatenate(maps), np.concatenate(scores))


def check_answers(
    found: Prediction, wanted: Prediction, budget: RefitBudget, file: str
) -> dict[str, float]:
    """Hold answers against the expected ones.

    Returns:
        What was measured, for the spec.

    Raises:
        ParityError: If they differ by more than the budget, or if the frames could not show it,
            because the answer to another frame would pass, too.
    """
    if found.anomaly_map.shape != wanted.anomaly_map.shape:
        raise ParityError(
            f"{file}: maps of {found.anomaly_map.shape}, expected {wanted.anomaly_map.shape}."
        )
    maps = _largest(found.anomaly_map, wanted.anomaly_map)
    scores = _largest(found.score, wanted.score)
    control = _largest(np.roll(found.anomaly_map, 1, axis=0), wanted.anomaly_map)
    if not (maps <= budget.anomaly_map and scores <= budget.score):
        raise ParityError(
            f"{file}: after the swap, {len(found.score)} frames differ from what is expected: map "
            f"by {maps:.2e} (allowed {budget.anomaly_map:.0e}), score by {scores:.2e} (allowed "
            f"{budget.score:.0e}). The old weights are still in use. Rebuild the engine instead."
        )
    if not control > budget.anomaly_map:
        raise ParityError(
            f"{file}: the frames cannot tell right from wrong: another frame's answer differs by "
            f"only {control:.2e}. The old weights are still in use. Pass more varied frames."
        )
    return {
        "count": len(found.score),
        "map_max_abs": maps,
        "score_max_abs": scores,
        "control": control,
    }


def _check_contract(path: Path, weights: ModelSpec, engine: ModelSpec) -> None:
    def contract(spec: ModelSpec) -> dict[str, Any]:
        return {
            "precision": spec.precision,
            "input": (spec.input.name, *spec.size),
            "network": spec.network,
            "output": spec.output,
        }

    if weights.kind != "onnx":
        raise SpecError(f"{path}: its spec says {weights.kind}, expected onnx.")
    theirs, ours = contract(weights), contract(engine)
    for name, value in ours.items():
        if theirs[name] != value:
            raise SpecError(
                f"{path}: {name} is {theirs[name]}, the engine {engine.artifact.file} has {value}. "
                "Weights can be swapped only between equal graphs; export it with the same options."
            )


def _largest(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Return the largest difference; NaN if there is one, which no budget allows."""
    return float(np.abs(a.astype(np.float64) - b).max())
