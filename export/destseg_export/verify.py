"""The parity gate: an artifact is compared with PyTorch on images before it gets its name.

Both sides get the same frames. The reference resizes them on the host and runs the checkpoint; the
artifact does everything inside its graph. A control shows that the images can tell right from
wrong: answers compared with those of the *next* image must differ by far more.

A difference cannot show everything. Where the last steps of a graph are stored in half, its answers
are off by less than half convolutions cost anyway, but they lie on half's grid, and images and
pixels tie. So it is also counted how many answers end in zero bits, which those of float32 seldom
do.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.data.images import is_image, read_image
from destseg_deploy.data.resize import resize_image
from destseg_deploy.data.sample import DEFECTS, render
from destseg_deploy.errors import DataError, ExportError, ParityError
from destseg_deploy.predictor import Predictor, resize_map
from destseg_deploy.runtime.base import Prediction
from destseg_deploy.spec import ModelSpec

FRAMES = 16
"""Images compared at an export, spread over those at hand."""


@dataclass(frozen=True)
class Budget:
    """Largest absolute differences allowed; values lie in [0, 1].

    Attributes:
        anomaly_map: Of any pixel of any map.
        score: Of any score.
        map_mean: Of the maps' pixels on average; 1 allows whatever ``anomaly_map`` does.
    """

    anomaly_map: float = 1e-4
    score: float = 1e-4
    map_mean: float = 1.0

    @classmethod
    def of(
        cls, precision: str, anomaly_map: float | None = None, score: float | None = None
    ) -> Budget:
        """Return a precision's budget, with limits of one's own in place of those given.

        Raises:
            ExportError: If the precision has none.
        """
        if precision not in BUDGETS:
            raise ExportError(f"precision {precision!r}: expected one of {', '.join(BUDGETS)}.")
        budget = BUDGETS[precision]
        if anomaly_map is not None:
            budget = replace(budget, anomaly_map=anomaly_map, map_mean=1.0)
        return budget if score is None else replace(budget, score=score)


BUDGETS = {
    "fp32": Budget(1e-4, 1e-4),
    "fp16": Budget(1e-2, 5e-3, 5e-4),
    "bf16": Budget(1e-1, 5e-2, 5e-3),
}
"""Precision -> what its artifacts may differ by, unless said otherwise.

Measured on a trained network at 256 x 256, rounding emulated (map, score, map's mean): on screw's
160 test images fp16 3.1e-3, 1.7e-3, 7.8e-6, bf16 3.3e-2, 2.1e-2, 7.4e-5 and fp32 4.9e-6, 1.8e-6,
2.0e-8 (benchmarks/results/screw-half-cpu.json). The half budgets are about three times those,
since GPUs add in other orders than the emulation does. The mean's is wider, since images unlike
those of the training need it. The controls: fp16 without any FP32 part differs by 2.6e-2 and
1.0e-2, with the stems in half by 7.7e-3 and 5.1e-3, and a norm in fp16 differed by 0.79 and 0.40 on
magnetic_tile."""

MARGIN = 2.0
"""How much more another image's map must differ than the artifact's does."""

MAP_BITS, SCORE_BITS = 4, 12
"""Final bits that are looked at: 1 of 16 pixels has 4 zeros by chance, 1 of 4096 scores has 12. A
half value has 13 of 23 (bf16: 16), and keeps more than 4 when it is interpolated fourfold."""

CLEAR = (2.0**-4, 1 - 2.0**-10)
"""Answers between these are looked at. Below, ONNX Runtime's float32 sigmoid, a sum with 0.5, has a
grid of its own; above, it is saturated, and a constant may end in zero bits."""

COARSE = 0.5
"""Share of answers on a coarse grid from which an artifact is refused."""


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
        map_mean_abs: Mean difference of the map pixels.
        score_mean_abs: Mean difference of the scores.
        coarse_map: Share of the artifact's ``CLEAR`` map values whose last ``MAP_BITS`` bits are
            0, less that of the reference.
        coarse_scores: The same of the scores and ``SCORE_BITS``.
    """

    count: int
    map_max_abs: float
    score_max_abs: float
    bad_values: int
    control: float
    scores: tuple[float, ...]
    candidate_scores: tuple[float, ...]
    map_mean_abs: float = 0.0
    score_mean_abs: float = 0.0
    coarse_map: float = 0.0
    coarse_scores: float = 0.0

    def summary(self) -> dict[str, float]:
        """Return the numbers that belong into a spec."""
        return {
            "count": self.count,
            "map_max_abs": self.map_max_abs,
            "map_mean_abs": self.map_mean_abs,
            "score_max_abs": self.score_max_abs,
            "score_mean_abs": self.score_mean_abs,
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
    return measure_parity(
        Prediction(
            np.stack([resize_map(p.anomaly_map[0], size) for p in wanted]),
            np.concatenate([p.score for p in wanted]),
        ),
        Prediction(
            np.concatenate([p.anomaly_map for p in found]),
            np.concatenate([p.score for p in found]),
        ),
    )


def measure_parity(wanted: Prediction, found: Prediction) -> Parity:
    """Measure how an artifact's answers differ from the reference's.

    Args:
        wanted: Of the reference, N images, maps at the artifact's size.
        found: Of the artifact, for the same images.
    """
    maps, scores = found.anomaly_map, found.score
    values = np.concatenate([maps.ravel(), scores])
    map_difference = _differences(wanted.anomaly_map, maps)
    score_difference = _differences(wanted.score, scores)
    other_image = _differences(wanted.anomaly_map, np.roll(maps, 1, axis=0))
    return Parity(
        count=len(scores),
        map_max_abs=float(map_difference.max()),
        score_max_abs=float(score_difference.max()),
        bad_values=int((~(np.isfinite(values) & (values >= 0) & (values <= 1))).sum()),
        control=float(other_image.max()),
        scores=tuple(wanted.score.tolist()),
        candidate_scores=tuple(scores.tolist()),
        map_mean_abs=float(map_difference.mean()),
        score_mean_abs=float(score_difference.mean()),
        coarse_map=_share_of_coarse(maps, MAP_BITS)
        - _share_of_coarse(wanted.anomaly_map, MAP_BITS),
        coarse_scores=_share_of_coarse(scores, SCORE_BITS)
        - _share_of_coarse(wanted.score, SCORE_BITS),
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
    _check_differences(parity, budget, name)
    if max(parity.coarse_map, parity.coarse_scores) > COARSE:
        raise ParityError(
            f"{name}: {parity.coarse_map:.0%} more of the map's values and "
            f"{parity.coarse_scores:.0%} more of the scores than in PyTorch end in zero bits: "
            "something behind the last convolution is stored in half, so that images and pixels "
            "tie. Nothing was written. Keep all of half.ISLANDS in fp32."
        )
    least = max(BUDGETS["fp32"].anomaly_map, MARGIN * parity.map_max_abs)
    if not parity.control > least:
        raise ParityError(
            f"{name}: the images cannot tell right from wrong: another image's answer differs by "
            f"only {parity.control:.2e}, expected more than {least:.2e}. Nothing was written. Pass "
            "more varied ones with --verify-images, or train longer."
        )


def _check_differences(parity: Parity, budget: Budget, name: str) -> None:
    swapped = parity.swapped_pairs(budget.score)
    within = (
        parity.map_max_abs <= budget.anomaly_map
        and parity.map_mean_abs <= budget.map_mean
        and parity.score_max_abs <= budget.score
    )
    if not within or swapped:
        raise ParityError(
            f"{name}: differs from PyTorch on {parity.count} images: map by "
            f"{parity.map_max_abs:.2e} (allowed {budget.anomaly_map:.0e}), on average by "
            f"{parity.map_mean_abs:.2e} (allowed {budget.map_mean:.0e}), score by "
            f"{parity.score_max_abs:.2e} (allowed {budget.score:.0e}), {swapped} pairs ranked "
            "otherwise. Nothing was written. Check the versions of torch, onnx and onnxruntime "
            "against constraints.txt."
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


def _differences(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the absolute differences; infinity where any is NaN."""
    difference = np.abs(a.astype(np.float64) - b.astype(np.float64))
    return np.nan_to_num(difference, nan=np.inf)


def _share_of_coarse(values: NDArray[np.float32], bits: int) -> float:
    """Return the share of ``CLEAR`` values whose last bits are all 0; 0 if there are too few."""
    clear = values[(values > CLEAR[0]) & (values < CLEAR[1])].astype(np.float32, copy=False)
    if clear.size * bits < 64:  # so many zero bits are no chance
        return 0.0
    return float((clear.view(np.uint32) % (1 << bits) == 0).mean())
