"""The runtime contract: what every back end takes, gives and refuses."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.data.defects import Defect, find_defects
from destseg_deploy.errors import BackendError, ShapeError, SpecError
from destseg_deploy.spec import ModelSpec
from destseg_deploy.spec.limits import are_answers


@dataclass(frozen=True, eq=False)
class Prediction:
    """Answers for N images. The arrays belong to the caller; no runtime writes to them again.

    It equals itself alone; compare the arrays.

    Attributes:
        anomaly_map: float32 (N, H, W), in [0, 1]; high where a defect is seen.
        score: float32 (N,), in [0, 1]; raw, to be judged by the spec's threshold.
        frame_sizes: Height and width of each frame, where a ``Predictor`` took frames.
        pixel_threshold: The spec's, where it has one and a ``Predictor`` made the prediction.
    """

    anomaly_map: NDArray[np.float32]
    score: NDArray[np.float32]
    frame_sizes: tuple[tuple[int, int], ...] | None = None
    pixel_threshold: float | None = None

    @staticmethod
    def concatenate(parts: Sequence[Prediction]) -> Prediction:
        """Join predictions of one artifact, in order.

        Args:
            parts: At least one; their maps have one height and width.

        Returns:
            Copies of their answers. It has frame sizes where all parts have them, and the pixel
            threshold of the first.
        """
        sizes: list[tuple[int, int]] = []
        for part in parts:
            sizes += part.frame_sizes or ()
        anomaly_map = np.concatenate([part.anomaly_map for part in parts])
        score = np.concatenate([part.score for part in parts])
        known = tuple(sizes) if len(sizes) == len(score) else None
        return Prediction(anomaly_map, score, known, parts[0].pixel_threshold)

    def defects(self, threshold: float | None = None) -> list[list[Defect]]:
        """Return the defects of each frame, in the frame's pixels, the greatest peak first.

        Args:
            threshold: The value above which a pixel is part of a defect; the spec's unless given.

        Raises:
            SpecError: If none is given and the spec has none yet.
            ShapeError: If it, or a value of a map, is not within [0, 1].
        """
        cut = self.pixel_threshold if threshold is None else threshold
        if cut is None:
            raise SpecError(
                "defects: no pixel threshold is set yet. Pass one, or set it from normal images: "
                "destseg-threshold ARTIFACT --good FOLDER"
            )
        sizes = self.frame_sizes or [self.anomaly_map.shape[1:]] * len(self.anomaly_map)
        return [
            find_defects(anomaly_map, (size[0], size[1]), cut)
            for anomaly_map, size in zip(self.anomaly_map, sizes, strict=True)
        ]


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


class FramePipeline(Protocol):
    """Takes frames as a camera gives them: resizes on the device, and overlaps copies with work."""

    def stream(
        self, batches: Iterable[Sequence[NDArray[np.uint8]]], *, source_maps: bool
    ) -> Iterator[Prediction]:
        """Score batches one after another, uploading the next while the current one is computed.

        Args:
            batches: Lists of uint8 (H, W, 3) RGB or (H, W) grey frames, at most
                ``spec.input.batch.max`` each. One list more than has been answered is taken.
            source_maps: Return each map at its frame's size instead of ``spec.map_size``.

        Yields:
            One prediction with N = 1 per frame, in order.

        Raises:
            BackendError: If the runtime is closed, its memory does not suffice or its device fails.
        """


@runtime_checkable
class TakesFrames(Protocol):
    """A runtime that may have a ``FramePipeline``; ``Predictor`` uses it in place of ``infer``."""

    def open_frames(self) -> FramePipeline | None:
        """Return the pipeline, which lives until the runtime is closed; None if it has none here.

        Raises:
            BackendError: If the runtime is closed.
        """


@runtime_checkable
class HasStudentTeacherMap(Protocol):
    """A runtime of a checkpoint, which has the networks and not only an exported graph."""

    def student_teacher(self) -> Runtime:
        """Return a runtime whose map is the student-teacher map, the paper's DeST, over 8.

        Raises:
            BackendError: If this runtime is closed.
        """


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


def check_prediction(prediction: Prediction, spec: ModelSpec, count: int) -> None:
    """Refuse answers that are none; whoever takes them from a runtime calls this first.

    Args:
        prediction: What a runtime returned.
        spec: Of its artifact.
        count: Number of images that it was given.

    Raises:
        BackendError: If a shape or type is not the spec's, or a value is not within [0, 1].
    """
    maps = prediction.anomaly_map
    for name, values, shape in (
        ("anomaly map", maps, (count, *spec.map_size)),
        ("score", prediction.score, (count,)),
    ):
        if values.shape != shape or values.dtype != np.float32:
            raise BackendError(
                f"{spec.artifact.file}: the runtime returned {name}s {values.dtype} "
                f"{values.shape}, expected float32 {shape}. Export it again."
            )
        check_values(values, spec, name)


def check_values(values: NDArray[np.float32], spec: ModelSpec, name: str) -> None:
    """Refuse scores or maps that are not within [0, 1].

    NaN > threshold is false, so a defect with such a score would be judged as a good part.

    Raises:
        BackendError: With the first such value.
    """
    right = are_answers(values)
    if not right.all():
        raise BackendError(
            f"{spec.artifact.file}: the runtime returned the {name} {values[~right][0]}, expected "
            "a number from 0 to 1. No verdict is made of it. Compare the artifact with its "
            "checkpoint (destseg-bench agreement), or export it again with --precision fp32."
        )


def check_open(resource: object | None, spec: ModelSpec, process: int | None = None) -> None:
    """Refuse to work after ``close``, and in a child that was forked after the runtime was opened.

    Every back end has threads, locks or a GPU, and a fork copies none of these whole: the child
    would wait for ever for a thread that it does not have. With ONNX Runtime that happens once in
    some hundred forks.

    Args:
        resource: What ``close`` sets to None.
        spec: Of the artifact.
        process: ``os.getpid()`` when the runtime was opened; None within a call that checked it.

    Raises:
        BackendError: If it is closed, or this is another process.
    """
    if process not in (None, os.getpid()):
        raise BackendError(
            f"{spec.artifact.file}: it was opened in process {process} and does not work after a "
            "fork. Load it in the child, which multiprocessing must start with 'spawn'."
        )
    if resource is None:
        raise BackendError(f"{spec.artifact.file}: the runtime is closed. Load the artifact again.")


def kept_by_children(runtime: object, resource: object) -> Callable[[], bool | None]:
    """Let a child that is forked from here keep what a runtime holds until it ends.

    To release it, the child would wait for threads, or ask for a GPU, that only the parent has. So
    it is kept when the runtime is closed, when nobody refers to it any more, and at the exit.

    Args:
        runtime: Who holds it.
        resource: What it holds; it must not refer to the runtime.

    Returns:
        What the runtime's ``close`` calls: True in a child, where nothing may be released.
    """
    return weakref.finalize(runtime, _is_kept, resource, os.getpid())


def _is_kept(resource: object, process: int) -> bool:
    if process == os.getpid():
        return False
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(resource))  # so Python never releases it
    return True
