"""Parity of a half runtime: its answers are compared with float32's before it is used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.data.datasets import images_at_hand
from destseg_deploy.data.finding import expand
from destseg_deploy.data.images import read_image
from destseg_deploy.data.resize import resize_image
from destseg_deploy.data.sample.category import DEFECTS, render
from destseg_deploy.errors import ParityError
from destseg_deploy.runtime.base import Prediction, Runtime
from destseg_deploy.spec import Budget, ModelSpec

BUDGETS = {
    "fp32": Budget(1e-4, 1e-4),
    "tf32": Budget(1e-2, 5e-3, 5e-4),  # its mantissa is as short as fp16's
    "fp16": Budget(1e-2, 5e-3, 5e-4),
    "bf16": Budget(1e-1, 5e-2, 5e-3),
}
"""Precision -> how far answers may differ from float32's, here and in the exporter's gate.

Measured on a trained network at 256 x 256, rounding emulated (map, score, map's mean): on screw's
160 test images fp16 3.1e-3, 1.7e-3, 7.8e-6, bf16 3.3e-2, 2.1e-2, 7.4e-5 and fp32 4.9e-6, 1.8e-6,
2.0e-8 (benchmarks/results/screw-half-cpu.json). The half budgets are about three times those,
since GPUs add in other orders than the emulation does. The mean's is wider, since images unlike
those of the training need it. The controls: fp16 without any FP32 part differs by 2.6e-2 and
1.0e-2, with the stems in half by 7.7e-3 and 5.1e-3, and a norm in fp16 differed by 0.79 and 0.40 on
magnetic_tile."""

FRAMES = 8
MARGIN = 2.0
"""How many times the difference the answer for another image must differ, or nothing is shown."""


@dataclass(frozen=True)
class Difference:
    """How answers differ; all differences are absolute.

    Attributes:
        map_max_abs: Largest difference of a map's pixel; infinite where a value is not finite.
        map_mean_abs: Mean difference of the maps' pixels.
        score_max_abs: Largest difference of a score.
        control: Largest difference of a map from the map of the image beside it.
    """

    map_max_abs: float
    map_mean_abs: float
    score_max_abs: float
    control: float


def measure_difference(wanted: Prediction, found: Prediction) -> Difference:
    """Measure how answers for the same images differ from the wanted ones."""
    maps = _apart(wanted.anomaly_map, found.anomaly_map)
    other = _apart(wanted.anomaly_map, np.roll(found.anomaly_map, 1, axis=0))
    scores = _apart(wanted.score, found.score)
    return Difference(*(float(x) for x in (maps.max(), maps.mean(), scores.max(), other.max())))


_ADVICE = {
    "fp32": "Use another back end.",
    "tf32": "Leave TF32 off.",
    "fp16": "Use precision 'fp32' or 'bf16'.",
    "bf16": "Use precision 'fp32'.",
}


def check_difference(found: Difference, precision: str, name: str) -> None:
    """Refuse answers beyond the budget of a precision.

    Raises:
        ParityError: With the measured values.
    """
    budget = BUDGETS[precision]
    if not (
        found.map_max_abs <= budget.anomaly_map
        and found.map_mean_abs <= budget.map_mean
        and found.score_max_abs <= budget.score
    ):
        raise ParityError(
            f"{name}: {precision} differs from float32: map by {found.map_max_abs:.2e} (allowed "
            f"{budget.anomaly_map:.0e}), on average by {found.map_mean_abs:.2e} (allowed "
            f"{budget.map_mean:.0e}), score by {found.score_max_abs:.2e} (allowed "
            f"{budget.score:.0e}). {_ADVICE[precision]}"
        )


def check_runtime(reference: Runtime, candidate: Runtime, frames: NDArray[np.uint8]) -> Difference:
    """Run both on the same frames, one by one, and refuse a candidate that is not close enough.

    Args:
        reference: Computes in float32.
        candidate: Computes in ``candidate.spec.precision``.
        frames: uint8 (N, H, W, 3) at the model's size, at least two that differ.

    Raises:
        ParityError: If the answers differ too much, or the frames cannot show it.
    """
    name, precision = candidate.spec.artifact.file, candidate.spec.precision
    found = measure_difference(_answers(reference, frames), _answers(candidate, frames))
    check_difference(found, precision, name)
    least = max(BUDGETS["fp32"].anomaly_map, MARGIN * found.map_max_abs)
    if not found.control > least:
        raise ParityError(
            f"{name}: the frames cannot tell right from wrong: the answer for another frame "
            f"differs by only {found.control:.2e}, expected more than {least:.2e}. Name a folder "
            "of varied images of the part as verify_images (--torch-verify-images)."
        )
    return found


def parity_frames(spec: ModelSpec, folder: Path | None) -> NDArray[np.uint8]:
    """Return frames to compare on, uint8 (N, H, W, 3) at the model's size.

    Args:
        spec: Of the checkpoint.
        folder: Images of the part. None stands for the test images of the training where they are
            still at hand, and for drawn cables otherwise.

    Raises:
        ParityError: If the folder holds fewer than two images.
        DataError: If an image cannot be read.
    """
    if folder is not None:
        images = expand([str(folder)])
        if len(images) < 2:
            raise ParityError(
                f"{folder}: 1 image to compare on, expected at least 2 that differ. Name a folder "
                "with more images of the part."
            )
    else:
        trained = spec.training.data if spec.training else None
        images = images_at_hand(trained)
    if len(images) < 2:
        return np.stack([resize_image(_drawn(i), spec.size) for i in range(FRAMES)])
    chosen = np.unique(np.linspace(0, len(images) - 1, FRAMES).astype(int))
    return np.stack([resize_image(read_image(images[i]), spec.size) for i in chosen])


def _drawn(number: int) -> NDArray[np.uint8]:
    """Return a drawn cable; every second one has a defect."""
    defect = DEFECTS[number // 2 % len(DEFECTS)] if number % 2 else None
    return render(np.random.default_rng([number]), 256, defect)[0]


def _answers(runtime: Runtime, frames: NDArray[np.uint8]) -> Prediction:
    return Prediction.concatenate([runtime.infer(frame[None]) for frame in frames])


def _apart(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the absolute differences; infinity in place of NaN, which no budget allows."""
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(np.abs(a.astype(np.float64) - b.astype(np.float64)), nan=np.inf)
