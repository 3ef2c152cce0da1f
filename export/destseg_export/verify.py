"""The parity gate: an artifact is compared with PyTorch on images before it gets its name.

Both sides get the same frames. The reference resizes them on the host and runs the checkpoint; the
artifact does everything inside its graph. A control shows that the images can tell right from
wrong: answers compared with those of the *next* image must break the budget.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.data.images import is_image, read_image
from destseg_deploy.data.resize import resize_image
from destseg_deploy.data.sample import DEFECTS, render
from destseg_deploy.errors import DataError, ParityError
from destseg_deploy.predictor import Predictor, resize_map
from destseg_deploy.spec import ModelSpec

FRAMES = 16
"""Images compared at an export, spread over those at hand."""


@dataclass(frozen=True)
class Budget:
    """Largest absolute differences allowed; values lie in [0, 1].

    Attributes:
        anomaly_map: Of any pixel of any map.
        score: Of any score.
    """

    anomaly_map: float = 1e-4
    score: float = 1e-4


@dataclass(frozen=True)
class Parity:
    """What a comparison measured.

    Attributes:
        count: Images compared.
        map_max_abs: Largest difference of any map pixel.
        score_max_abs: Largest difference of any score.
        bad_values: Values of the artifact that are not finite or outside [0, 1].
        control: Largest map difference to the wrong image's answer.
        scores: Scores of the reference.
        candidate_scores: Scores of the artifact.
    """

    count: int
    map_max_abs: float
    score_max_abs: float
    bad_values: int
    control: float
    scores: tuple[float, ...]
    candidate_scores: tuple[float, ...]

    def summary(self) -> dict[str, float]:
        """Return the numbers that belong into a spec."""
        return {
            "count": self.count,
            "map_max_abs": self.map_max_abs,
            "score_max_abs": self.score_max_abs,
            "control": self.control,
        }

    def swapped_pairs(self, gap: float) -> int:
        """Count pairs in the other order that the reference sees further apart than ``gap``."""
        apart = np.subtract.outer(self.scores, self.scores)
        found = np.subtract.outer(self.candidate_scores, self.candidate_scores)
        return int(((apart > gap) & (found < 0)).sum())


def compare(
    reference: Predictor, candidate: Predictor, frames: Sequence[NDArray[np.uint8]]
) -> Parity:
    """Run both on the same frames and measure how their answers differ.

    Args:
        reference: The checkpoint in PyTorch; takes frames of any size.
        candidate: The artifact.
        frames: uint8 (H, W, 3) at the artifact's input size, at least two.
    """
    size = candidate.spec.map_size
    batch = min(candidate.spec.max_batch, 4)
    wanted = list(reference.stream(frames))
    found = list(candidate.stream(frames, batch_size=batch))
    expected = np.stack([resize_map(p.anomaly_map[0], size) for p in wanted])
    maps = np.concatenate([p.anomaly_map for p in found])
    scores = np.concatenate([p.score for p in wanted])
    got = np.concatenate([p.score for p in found])
    values = np.concatenate([maps.ravel(), got])
    return Parity(
        count=len(frames),
        map_max_abs=_max_abs(expected, maps),
        score_max_abs=_max_abs(scores, got),
        bad_values=int((~(np.isfinite(values) & (values >= 0) & (values <= 1))).sum()),
        control=_max_abs(expected, np.roll(maps, 1, axis=0)),
        scores=tuple(scores.tolist()),
        candidate_scores=tuple(got.tolist()),
    )


def check_parity(parity: Parity, budget: Budget, name: str) -> None:
    """Refuse an artifact that is beyond the budget, or images that could not show it.

    Raises:
        ParityError: With the measured values.
    """
    if parity.bad_values:
        raise ParityError(
            f"{name}: {parity.bad_values} values are not finite or outside [0, 1]. Nothing was "
            "written. Check the checkpoint with destseg-evaluate, then export again."
        )
    swapped = parity.swapped_pairs(budget.score)
    within = parity.map_max_abs <= budget.anomaly_map and parity.score_max_abs <= budget.score
    if not within or swapped:
        raise ParityError(
            f"{name}: differs from PyTorch on {parity.count} images: map by "
            f"{parity.map_max_abs:.2e} (allowed {budget.anomaly_map:.0e}), score by "
            f"{parity.score_max_abs:.2e} (allowed {budget.score:.0e}), {swapped} pairs ranked "
            "otherwise. Nothing was written. Check the versions of torch, onnx and onnxruntime "
            "against constraints.txt."
        )
    if not parity.control > budget.anomaly_map:
        raise ParityError(
            f"{name}: the images cannot tell right from wrong: another image's answer differs by "
            f"only {parity.control:.2e}. Nothing was written. Pass more varied ones with "
            "--verify-images, or train longer."
        )


def verification_frames(
    images: Sequence[Path] | None, trained: ModelSpec, size: tuple[int, int]
) -> tuple[list[NDArray[np.uint8]], str]:
    """Return frames to compare on and a phrase for where they are from.

    Args:
        images: Image files, or None for the test images of the training data where these are still
            at hand, else rendered ones.
        trained: The checkpoint's spec, which knows its data.
        size: Height and width of the frames.

    Raises:
        DataError: If fewer than two images were given or one cannot be read.
    """
    if images is None:
        folder = Path(str(trained.training.get("data", "")), "test")
        images = sorted(path for path in folder.glob("*/*") if is_image(path))
        if len(images) < 2:
            return [_rendered(i, size) for i in range(FRAMES)], "rendered images"
    if len(images) < 2:
        raise DataError(f"--verify-images: {len(images)} images, expected at least 2 that differ.")
    chosen = np.unique(np.linspace(0, len(images) - 1, FRAMES).astype(int))
    frames = [resize_image(read_image(images[i]), size) for i in chosen]
    common = os.path.commonpath([path.parent for path in images])
    return frames, f"images of {common}"


def _rendered(number: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return a rendered cable; every second one is defective."""
    defect = DEFECTS[number // 2 % len(DEFECTS)] if number % 2 else None
    image, _ = render(np.random.default_rng([number]), 256, defect)
    return resize_image(image, size)


def _max_abs(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Return the largest absolute difference; infinity where any is NaN."""
    difference = np.abs(a.astype(np.float64) - b.astype(np.float64))
    return float(np.nan_to_num(difference, nan=np.inf).max())
