"""Predictor: the class that inspection software holds. Frames in, judged predictions out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from io import IOBase
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from destseg_deploy.data.images import read_content, read_image, read_picture
from destseg_deploy.data.pixel_formats import FrameFormat, layout_of, to_rgb
from destseg_deploy.data.resize import remark_squeeze, resize_image
from destseg_deploy.errors import BackendError, DataError, ShapeError, SpecError
from destseg_deploy.runtime.base import (
    Prediction,
    Runtime,
    TakesFrames,
    check_prediction,
    check_values,
)
from destseg_deploy.spec import ModelSpec, Threshold, exceeds

SINGLE = (str, Path, Image.Image, bytes, bytearray, memoryview, IOBase)
"""What Python can go through piece by piece, and is one thing here: a frame, or no frame at all."""

Frame = NDArray[np.uint8] | str | Path | Image.Image
"""uint8 (H, W, 3) RGB or (H, W) grey, an image file, or a Pillow image."""


class Predictor:
    """Scores frames of any number, and of any size where the artifact allows it.

    An artifact exported at the network's size takes frames of any size: they are resized with the
    kernel of the training, on the GPU where the artifact runs on one (TensorRT, ONNX Runtime CUDA)
    and else on the CPU, with the same bits. One exported with ``--input-size`` takes frames of that
    size only, because resizing twice would change the scores.

    One Predictor may be shared by several threads, and each thread may have its own. ``close`` it,
    or use ``with``, when no call is running any more.
    """

    def __init__(self, runtime: Runtime) -> None:
        """Take ownership of a runtime; ``destseg_deploy.load`` makes both.

        Raises:
            BackendError: If it is no runtime, or is closed.
        """
        if not hasattr(runtime, "infer"):
            raise BackendError(
                f"Predictor: got {type(runtime).__name__}, expected a runtime. Open an artifact "
                "with destseg_deploy.load(path)."
            )
        self.runtime = runtime
        self._remarked = False
        self._pipeline = runtime.open_frames() if isinstance(runtime, TakesFrames) else None

    def __repr__(self) -> str:
        """Return the file, its precision, and the size of its frames: height x width."""
        file, size = self.spec.artifact.file, "x".join(map(str, self.spec.size))
        return f"Predictor({file}, {self.spec.precision}, {size})"

    @property
    def spec(self) -> ModelSpec:
        """The artifact's contract, threshold included."""
        return self.runtime.spec

    @property
    def resizes(self) -> bool:
        """Whether frames of another size than ``spec.size`` are taken."""
        return self.spec.takes_any_size

    def __call__(
        self,
        frames: Frame | Iterable[Frame],
        *,
        source_maps: bool = False,
        frame_format: FrameFormat | None = None,
        maximum: int | None = None,
    ) -> Prediction:
        """Score frames.

        Args:
            frames: One frame or several: uint8 RGB (H, W, 3) or (H, W) grey, the path of an image
                file, or a Pillow image; several as (N, H, W, 3) or as a sequence. Any N: more than
                the artifact's largest batch are done in turn.
            source_maps: Return the maps at the frames' size instead of ``spec.map_size``; all
                frames must then have the same size.
            frame_format: What the arrays are when they are not RGB or grey of 8 bit, such as
                ``bayer_rg8`` or ``mono12``; ``destseg_deploy.data.pixel_formats`` has the shapes.
            maximum: The value of white in ``mono10``, ``mono12`` and ``mono16``.

        Returns:
            The prediction of all frames, in order.

        Raises:
            ShapeError: If a frame is of another type, is not uint8, has no pixels, or has a size
                the artifact refuses.
            DataError: If a file or a Pillow image cannot be read.
            BackendError: If the runtime's answer is not within [0, 1].
        """
        singles = list(
            self.stream(frames, source_maps=source_maps, frame_format=frame_format, maximum=maximum)
        )
        if not singles:
            raise ShapeError("frames: none were passed. Pass at least one uint8 (H, W, 3) frame.")
        sizes = {single.anomaly_map.shape[1:] for single in singles}
        if len(sizes) > 1:
            raise ShapeError(
                f"frames: of {len(sizes)} sizes, such as {sizes.pop()} and {sizes.pop()}, so their "
                "maps do not stack. Use Predictor.stream, or leave source_maps out."
            )
        return Prediction.concatenate(singles)

    def stream(
        self,
        frames: Frame | Iterable[Frame],
        *,
        source_maps: bool = False,
        batch_size: int | None = None,
        frame_format: FrameFormat | None = None,
        maximum: int | None = None,
    ) -> Iterator[Prediction]:
        """Score frames one after another in bounded memory, batching where it can.

        On a GPU, the next batch is uploaded while the current one is computed. So one batch of
        frames more is taken than has been answered; to judge each part before the next one is
        photographed, call the predictor with the frame instead.

        Args:
            frames: Any iterable of what ``__call__`` takes, each of its own size. A camera may give
                the next frame in the same memory: frames of an iterator are copied where several
                wait for their batch.
            source_maps: Return each map at its frame's size.
            batch_size: Frames per call of the runtime; the artifact's optimum unless given.
            frame_format: As for ``__call__``.
            maximum: As for ``__call__``.

        Yields:
            One prediction with N = 1 per frame, in order.

        Raises:
            ShapeError: As ``__call__``, or if the batch size is out of the artifact's range. The
                frames before one that is refused are answered first.
            BackendError: If the runtime's answer is not within [0, 1].
        """
        batch = self.spec.input.batch
        wanted = batch.opt if batch_size is None else batch_size
        if type(wanted) is not int or not 1 <= wanted <= batch.max:
            raise ShapeError(
                f"batch_size: {wanted!r}, expected 1 to {batch.max}, the artifact's largest."
            )
        several = _several(frames, _dimensions(frame_format))
        if frame_format is None and maximum is not None:
            raise ShapeError(f"maximum: {maximum!r} without frame_format, which it belongs to.")
        if frame_format is not None:
            several = (_converted(frame, frame_format, maximum) for frame in several)
        sizes: deque[tuple[int, int]] = deque()  # of frames that were taken and not yet answered
        lent = not isinstance(frames, Sequence | np.ndarray)
        groups = self._groups(several, max(wanted, batch.min), sizes, lent=lent)
        pixel = None if self.spec.threshold is None else self.spec.threshold.pixel
        for single in self._singles(groups, source_maps=source_maps):
            yield replace(single, frame_sizes=(sizes.popleft(),), pixel_threshold=pixel)

    def _singles(
        self, groups: Iterable[list[NDArray[np.uint8]]], *, source_maps: bool
    ) -> Iterator[Prediction]:
        """Score groups of frames, on the pipeline where there is one; yield an answer per frame."""
        if self._pipeline is not None:
            for prediction in self._pipeline.stream(groups, source_maps=source_maps):
                check_values(prediction.anomaly_map, self.spec, "anomaly map")
                check_values(prediction.score, self.spec, "score")
                yield prediction
            return
        for group in groups:
            prediction = self._infer(group)
            for i, frame in enumerate(group):
                anomaly_map = prediction.anomaly_map[i]
                if source_maps:
                    anomaly_map = resize_map(anomaly_map, frame.shape[:2])
                yield Prediction(anomaly_map[None], prediction.score[i : i + 1])

    def is_anomalous(self, prediction: Prediction) -> NDArray[np.bool_]:
        """Judge scores by the spec's threshold: bool (N,), True where score > threshold.

        Raises:
            SpecError: If no threshold was set yet.
            ShapeError: If it is no prediction.
            BackendError: If a score is not within [0, 1]; no verdict can be made of it.
        """
        self._check_score(prediction)
        return exceeds(prediction.score, self._threshold().score)

    def normalized_score(self, prediction: Prediction) -> NDArray[np.float32]:
        """Return scores in [0, 1] with the threshold at 0.5; see ``Threshold.normalized``.

        Raises:
            SpecError, ShapeError, BackendError: As ``is_anomalous``.
        """
        self._check_score(prediction)
        threshold = self._threshold()
        return np.array([threshold.normalized(float(s)) for s in prediction.score], np.float32)

    def read(self, path: Path | str, content: bytes | None = None) -> NDArray[np.uint8]:
        """Read an image file as a frame, uint8 (H, W, 3).

        Args:
            path: The file, or what errors call it where its content is given.
            content: All bytes of a file that is on no disk.

        Raises:
            DataError: If it cannot be read.
            ShapeError: If the artifact takes no image of its size; the error names the file.
        """
        if not isinstance(path, str | Path) or not str(path).strip():
            raise DataError(f"path {path!r}: expected the name of an image file.")
        name = str(path)
        pixels = read_image(path) if content is None else read_content(content, name)
        return self._check(pixels, name)

    def close(self) -> None:
        """Release the runtime; a second call does nothing."""
        self.runtime.close()

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied: threads and device memory stay in their process.

        Raises:
            BackendError: Always.
        """
        raise BackendError(
            f"{self.spec.artifact.file}: an open predictor cannot be copied or sent to another "
            "process. Send the path, and load it there."
        )

    def __enter__(self) -> Predictor:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def _groups(
        self, frames: Iterable[Frame], size: int, sizes: deque[tuple[int, int]], *, lent: bool
    ) -> Iterator[list[NDArray[np.uint8]]]:
        """Cut frames into lists of a size, the last one shorter, after checking each frame.

        A frame that is refused raises its error when those before it were given.

        Args:
            frames: The frames.
            size: How many are in a list.
            sizes: Gets the heights and widths of the frames.
            lent: Whether an array may have the next frame's pixels when that is taken.
        """
        group: list[NDArray[np.uint8]] = []
        try:
            for frame in frames:
                pixels = self._frame(frame)
                kept = lent and size > 1 and isinstance(frame, np.ndarray)
                group.append(pixels.copy() if kept else pixels)
                sizes.append((pixels.shape[0], pixels.shape[1]))
                if len(group) == size:
                    yield group
                    group = []
        except Exception:
            if group:
                yield group
            raise
        if group:
            yield group

    def _frame(self, frame: Frame) -> NDArray[np.uint8]:
        """Return what was passed as pixels that the artifact takes."""
        if isinstance(frame, str | Path):
            return self.read(frame)
        if isinstance(frame, Image.Image):
            return self._check(read_picture(frame))
        if not isinstance(frame, np.ndarray) or isinstance(frame, np.ma.MaskedArray):
            raise ShapeError(
                f"frame: expected uint8 (H, W, 3) or (H, W), a path or a Pillow image, got "
                f"{type(frame).__name__}. Convert it to an array, masked pixels filled."
            )
        return self._check(np.asarray(frame))

    def _check(self, frame: NDArray[np.uint8], name: str = "frame") -> NDArray[np.uint8]:
        """Return a frame; refuse another type, and a size that the artifact does not take."""
        if frame.dtype != np.uint8:
            raise ShapeError(
                f"{name}: expected uint8 (H, W, 3) or (H, W), got {frame.dtype} {frame.shape}. The "
                "graph normalises by itself; pass RGB pixels in [0, 255]."
            )
        if frame.ndim not in (2, 3) or frame.shape[2:] not in ((), (3,)) or 0 in frame.shape:
            raise ShapeError(
                f"{name}: expected uint8 (H, W, 3) or (H, W), got uint8 {frame.shape}. Pass pixels "
                "as height, width, colours."
            )
        if frame.shape[:2] != self.spec.size and not self.resizes:
            raise ShapeError(
                f"{name}: {frame.shape[1]}x{frame.shape[0]} pixels, this artifact was exported for "
                f"{self.spec.size[1]}x{self.spec.size[0]}. Export with --input-size "
                f"{frame.shape[0]}x{frame.shape[1]}, or without it to accept any size."
            )
        if not self._remarked:  # once: a line's frames are all alike
            self._remarked = remark_squeeze(frame.shape[:2], self.spec.working_size)
        return frame

    def _infer(self, frames: list[NDArray[np.uint8]]) -> Prediction:
        """Run a batch, filled up to the artifact's smallest with copies that are dropped again."""
        missing = self.spec.input.batch.min - len(frames)
        images = [_fit(frame, self.spec.size) for frame in frames]
        stacked = np.stack(images + images[:1] * max(missing, 0))
        prediction = self.runtime.infer(stacked)
        check_prediction(prediction, self.spec, len(stacked))
        count = len(frames)
        return Prediction(prediction.anomaly_map[:count], prediction.score[:count])

    def _check_score(self, prediction: Prediction) -> None:
        if not isinstance(prediction, Prediction):
            raise ShapeError(
                f"prediction: got {type(prediction).__name__}, expected the Prediction that the "
                "predictor returned for frames."
            )
        check_values(prediction.score, self.spec, "score")

    def _threshold(self) -> Threshold:
        threshold = self.spec.threshold
        if threshold is None:
            raise SpecError(
                f"{self.spec.artifact.file}: no threshold set yet. Set one from normal images: "
                "destseg-threshold ARTIFACT --good FOLDER"
            )
        return threshold


def _several(frames: Frame | Iterable[Frame], dimensions: int = 3) -> Iterable[Frame]:
    """Return what was passed as several frames; what is neither is refused as a frame.

    An array of more dimensions than a frame can have is several frames.
    """
    if isinstance(frames, np.ndarray):
        return frames if frames.ndim > dimensions else [frames]
    if isinstance(frames, dict):  # its names would be taken for paths
        raise ShapeError(
            "frame: expected uint8 (H, W, 3) or (H, W), a path or a Pillow image, got dict. Pass "
            "its values as a list."
        )
    if isinstance(frames, set | frozenset):
        raise ShapeError("frames: a set has no order, so no answer has a frame. Pass a list.")
    if isinstance(frames, SINGLE) or not isinstance(frames, Iterable):
        one: Any = frames  # the next step refuses what is no frame
        return [one]
    return frames


def _dimensions(frame_format: FrameFormat | None) -> int:
    """Return the most dimensions of one frame's array."""
    return 3 if frame_format is None else layout_of(frame_format).ndim


def _converted(frame: Frame, frame_format: FrameFormat, maximum: int | None) -> NDArray[np.uint8]:
    """Bring an array of a camera's format to RGB or grey."""
    if not isinstance(frame, np.ndarray):
        raise ShapeError(
            f"frame: got {type(frame).__name__} with frame_format {frame_format!r}. Files and "
            "pictures say their format themselves; leave frame_format out for them."
        )
    return to_rgb(frame, frame_format, maximum)


def _fit(frame: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Bring a checked frame to RGB and to the input's height and width."""
    rgb = np.repeat(frame[:, :, None], 3, axis=2) if frame.ndim == 2 else frame
    return resize_image(rgb, size)


def resize_map(anomaly_map: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Bring a map (H, W) to another height and width, bilinearly with half-pixel centres."""
    if anomaly_map.shape == size:
        return anomaly_map
    resized = cv2.resize(anomaly_map, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return resized.astype(np.float32, copy=False)
