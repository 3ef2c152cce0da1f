"""The runtime contract: what every back end takes, gives and refuses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.errors import BackendError, ShapeError
from destseg_deploy.spec import ModelSpec


@dataclass(frozen=True)
class Prediction:
    """Answers for N images. The arrays belong to the caller; no runtime writes to them again.

    Attributes:
        anomaly_map: float32 (N, H, W), in [0, 1]; high where a defect is seen.
        score: float32 (N,), in [0, 1]; raw, to be judged by the spec's threshold.
    """

    anomaly_map: NDArray[np.float32]
    score: NDArray[np.float32]


class Runtime(Protocol):
    """Runs one artifact. Owns its memory and device until ``close``.

    ``infer`` may be called from several threads at once; ``close`` must not overlap a call.
    """

    spec: ModelSpec

    def infer(self, images: NDArray[np.uint8]) -> Prediction:
        """Score images: uint8 (N, H, W, 3) RGB at ``spec.size``, N within ``spec.input.batch``.

        Raises:
            ShapeError: If dtype, size or batch is another.
            BackendError: If the runtime is closed or its device fails.
        """

    def close(self) -> None:
        """Release everything; a second call does nothing."""


def check_images(images: NDArray[np.uint8], spec: ModelSpec) -> None:
    """Refuse what the artifact was not made for; every runtime calls this first.

    Raises:
        ShapeError: If dtype, shape or batch differ from the spec's.
    """
    height, width = spec.size
    if not isinstance(images, np.ndarray):
        raise ShapeError(f"images: expected a NumPy array, got {type(images).__name__}")
    expected = f"uint8 (N, {height}, {width}, 3)"
    if images.dtype != np.uint8:
        raise ShapeError(
            f"images: expected {expected}, got {images.dtype} {images.shape}. The graph normalises "
            "by itself; pass RGB pixels in [0, 255]."
        )
    if images.ndim != 4 or images.shape[1:] != (height, width, 3):
        raise ShapeError(
            f"images: expected {expected}, got uint8 {images.shape}. This artifact takes frames of "
            f"{width}x{height} pixels; export one for yours with --input-size HEIGHTxWIDTH."
        )
    check_batch(len(images), spec)


def check_batch(count: int, spec: ModelSpec) -> None:
    """Refuse more or fewer images than a call takes.

    Raises:
        ShapeError: If there are.
    """
    batch = spec.input.batch
    if not batch.min <= count <= batch.max:
        raise ShapeError(
            f"images: a batch of {count}, expected {batch.min} to {batch.max}. Split it, or "
            "export again with --batch MIN:OPT:MAX."
        )


def check_open(resource: object | None, spec: ModelSpec) -> None:
    """Refuse to work after ``close``.

    Raises:
        BackendError: If ``resource`` is None, which is what ``close`` leaves.
    """
    if resource is None:
        raise BackendError(f"{spec.artifact.file}: the runtime is closed. Load the artifact again.")
