"""Predictor: the class that inspection software holds. Frames in, judged predictions out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
from numpy.typing import NDArray

from destseg_deploy.data.resize import resize_image
from destseg_deploy.errors import BackendError, ShapeError, SpecError
from destseg_deploy.runtime.base import Prediction, Runtime
from destseg_deploy.runtime.cpu_options import OpenVinoOptions, OrtCpuOptions
from destseg_deploy.spec import ModelSpec, Threshold

CHECKPOINT_SUFFIXES = (".safetensors", ".pckl", ".pth")
KNOWN = ".onnx, .engine or .safetensors"


@dataclass(frozen=True)
class EngineOptions:
    """How a TensorRT engine is run; see ``TrtRuntime``.

    Attributes:
        binding: How CUDA is reached: ``auto``, ``torch``, ``cuda.core``, ``pycuda`` or ``driver``.
        contexts: Calls that run at the same time.
        cuda_graph: Record a CUDA graph per batch size.
    """

    binding: str = "auto"
    contexts: int = 2
    cuda_graph: bool = True


class Predictor:
    """Scores frames of any number, and of any size where the artifact allows it.

    An artifact exported at the network's size takes frames of any size: they are resized here,
    with the kernel of the training. One exported with ``--input-size`` takes frames of that size
    only, because resizing twice would change the scores.

    One Predictor may be shared by several threads, and each thread may have its own. ``close`` it,
    or use ``with``, when no call is running any more.
    """

    def __init__(self, runtime: Runtime) -> None:
        """Take ownership of a runtime; ``destseg_deploy.load`` makes both."""
        self.runtime = runtime

    @property
    def spec(self) -> ModelSpec:
        """The artifact's contract, threshold included."""
        return self.runtime.spec

    @property
    def resizes(self) -> bool:
        """Whether frames of another size than ``spec.size`` are taken."""
        return self.spec.size == self.spec.network_size

    def __call__(
        self, frames: NDArray[np.uint8] | Sequence[NDArray[np.uint8]], *, source_maps: bool = False
    ) -> Prediction:
        """Score frames.

        Args:
            frames: uint8 RGB: one frame (H, W, 3) or (H, W) grey, or several as (N, H, W, 3) or as
                a sequence. Any N: more than the artifact's largest batch are done in turn.
            source_maps: Return the maps at the frames' size instead of ``spec.map_size``; all
                frames must then have the same size.

        Returns:
            The prediction of all frames, in order.

        Raises:
            ShapeError: If a frame is not uint8, has no pixels, or has a size the artifact refuses.
        """
        listed = [frames] if isinstance(frames, np.ndarray) and frames.ndim < 4 else list(frames)
        if not listed:
            raise ShapeError("frames: none were passed. Pass at least one uint8 (H, W, 3) frame.")
        singles = list(self.stream(listed, source_maps=source_maps))
        sizes = {single.anomaly_map.shape[1:] for single in singles}
        if len(sizes) > 1:
            raise ShapeError(
                f"frames: of {len(sizes)} sizes, such as {sizes.pop()} and {sizes.pop()}, so their "
                "maps do not stack. Use Predictor.stream, or leave source_maps out."
            )
        return Prediction(
            np.concatenate([single.anomaly_map for single in singles]),
            np.concatenate([single.score for single in singles]),
        )

    def stream(
        self,
        frames: Iterable[NDArray[np.uint8]],
        *,
        source_maps: bool = False,
        batch_size: int | None = None,
    ) -> Iterator[Prediction]:
        """Score frames one after another in bounded memory, batching where it can.

        Args:
            frames: uint8 (H, W, 3) RGB or (H, W) grey, each of its own size.
            source_maps: Return each map at its frame's size.
            batch_size: Frames per call of the runtime; the artifact's optimum unless given.

        Yields:
            One prediction with N = 1 per frame, in order.

        Raises:
            ShapeError: As ``__call__``, or if the batch size is out of the artifact's range.
        """
        batch = self.spec.input.batch
        wanted = batch.opt if batch_size is None else batch_size
        if not 1 <= wanted <= batch.max:
            raise ShapeError(
                f"batch_size: {wanted}, expected 1 to {batch.max}, the artifact's largest."
            )
        wanted = max(wanted, batch.min)
        remaining = iter(frames)
        while group := list(islice(remaining, wanted)):
            prediction = self._infer([self._fit(frame) for frame in group])
            for i, frame in enumerate(group):
                anomaly_map = prediction.anomaly_map[i]
                if source_maps:
                    anomaly_map = resize_map(anomaly_map, frame.shape[:2])
                yield Prediction(anomaly_map[None], prediction.score[i : i + 1])

    def is_anomalous(self, prediction: Prediction) -> NDArray[np.bool_]:
        """Judge scores by the spec's threshold: bool (N,), True where score > threshold.

        Raises:
            SpecError: If no threshold was set yet.
        """
        return np.asarray(prediction.score > np.float32(self._threshold().score))

    def normalized_score(self, prediction: Prediction) -> NDArray[np.float32]:
        """Return scores in [0, 1] with the threshold at 0.5; see ``Threshold.normalized``."""
        threshold = self._threshold()
        return np.array([threshold.normalized(float(s)) for s in prediction.score], np.float32)

    def close(self) -> None:
        """Release the runtime; a second call does nothing."""
        self.runtime.close()

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

    def _fit(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Bring a frame to RGB and, where allowed, to the input size."""
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8:
            found = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame)
            raise ShapeError(
                f"frame: expected uint8 (H, W, 3) or (H, W), got {found}. The graph normalises by "
                "itself; pass RGB pixels in [0, 255]."
            )
        if frame.ndim == 2:
            frame = np.repeat(frame[:, :, None], 3, axis=2)
        if frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
            raise ShapeError(f"frame: expected uint8 (H, W, 3) or (H, W), got uint8 {frame.shape}.")
        if frame.shape[:2] == self.spec.size:
            return frame
        if not self.resizes:
            raise ShapeError(
                f"frame: {frame.shape[1]}x{frame.shape[0]} pixels, this artifact was exported for "
                f"{self.spec.size[1]}x{self.spec.size[0]}. Export with --input-size "
                f"{frame.shape[0]}x{frame.shape[1]}, or without it to accept any size."
            )
        return resize_image(frame, self.spec.size)

    def _infer(self, images: list[NDArray[np.uint8]]) -> Prediction:
        """Run a batch, filled up to the artifact's smallest with copies that are dropped again."""
        missing = self.spec.input.batch.min - len(images)
        stacked = np.stack(images + images[:1] * max(missing, 0))
        prediction = self.runtime.infer(stacked)
        count = len(images)
        return Prediction(prediction.anomaly_map[:count], prediction.score[:count])

    def _threshold(self) -> Threshold:
        threshold = self.spec.threshold
        if threshold is None:
            raise SpecError(
                f"{self.spec.artifact.file}: no threshold set yet. Set one from normal images: "
                "destseg-threshold ARTIFACT --normal FOLDER"
            )
        return threshold


def resize_map(anomaly_map: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Bring a map (H, W) to another height and width, bilinearly with half-pixel centres."""
    if anomaly_map.shape == size:
        return anomaly_map
    resized = cv2.resize(anomaly_map, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return resized.astype(np.float32, copy=False)


def load(
    path: str | Path,
    *,
    device: str | None = None,
    threads: int = 0,
    engine: EngineOptions | None = None,
    ort_cpu: OrtCpuOptions | None = None,
    openvino: OpenVinoOptions | None = None,
) -> Predictor:
    """Open an artifact with the back end its suffix, and for ``.onnx`` the device, names.

    Args:
        path: ``.onnx`` (ONNX Runtime or OpenVINO), ``.engine`` (TensorRT) or ``.safetensors``
            (PyTorch), its ``.json`` beside it.
        device: ``cpu``, ``cuda`` or ``cuda:<index>``; for ``.onnx`` also ``openvino``, the CPU by
            way of OpenVINO, and ``tensorrt`` or ``tensorrt:<index>``, ONNX Runtime's TensorRT
            provider. The CPU unless given, and a GPU for an engine. What was asked for runs, or an
            error is raised; nothing falls back silently.
        threads: CPU threads of ONNX Runtime or OpenVINO; 0 leaves the choice to it.
        engine: How an engine is run; for ``.engine`` only.
        ort_cpu: How ONNX Runtime uses the CPU; for ``.onnx`` on device ``cpu`` only.
        openvino: How OpenVINO runs the graph; for device ``openvino`` only.

    Raises:
        SpecError: If the spec is missing, was written for another file, or an engine was built for
            another GPU or TensorRT.
        WeightsError: If a checkpoint is damaged.
        BackendError: If the back end or device is not there, an option is out of range or belongs
            to another back end, or the file is of no known kind.
    """
    path = Path(path)
    if not path.is_file():
        raise BackendError(f"{path}: no such file. Expected a {KNOWN} artifact.")
    _check_device(device, path)
    _check_options(path, device, engine, ort_cpu, openvino)
    if path.suffix == ".engine":
        return Predictor(_open_engine(path, device or "cuda", engine or EngineOptions()))
    if path.suffix == ".onnx" and device == "openvino":
        return Predictor(_open_openvino(path, threads, openvino or OpenVinoOptions()))
    if path.suffix == ".onnx":
        from destseg_deploy.runtime.ort import OrtRuntime

        return Predictor(OrtRuntime(path, device or "cpu", threads=threads, cpu=ort_cpu))
    if path.suffix in CHECKPOINT_SUFFIXES:
        return Predictor(_open_checkpoint(path, device or "cpu"))
    raise BackendError(f"{path}: unknown kind of artifact. Expected {KNOWN}.")


def _check_device(device: str | None, path: Path) -> None:
    if device is None:
        return
    if not re.fullmatch(r"cpu|openvino|(cuda|tensorrt)(:\d+)?", device):
        raise BackendError(
            f"device {device!r}: expected cpu, cuda or cuda:<index>, or tensorrt[:<index>] or "
            "openvino for .onnx."
        )
    if path.suffix == ".onnx":
        return
    if device.startswith("tensorrt"):
        raise BackendError(
            f"device {device!r}: is ONNX Runtime's and runs .onnx only; {path.name} is none. Pass "
            "'cuda'."
        )
    if device == "openvino":
        raise BackendError(
            f"device 'openvino': runs .onnx only; {path.name} is none. Load the .onnx that was "
            "exported from the same checkpoint."
        )


def _check_options(
    path: Path,
    device: str | None,
    engine: EngineOptions | None,
    ort_cpu: OrtCpuOptions | None,
    openvino: OpenVinoOptions | None,
) -> None:
    """Refuse options that nothing would read."""
    if engine is not None and path.suffix != ".engine":
        raise BackendError(f"{path}: engine options were given, but it is no .engine. Drop them.")
    if ort_cpu is not None and (path.suffix != ".onnx" or device not in (None, "cpu")):
        raise BackendError(
            f"{path}: ort_cpu options were given, but they are for .onnx on device 'cpu'. Drop "
            "them."
        )
    if openvino is not None and device != "openvino":
        raise BackendError(
            f"{path}: openvino options were given, but the device is {device or 'cpu'!r}. Pass "
            "device 'openvino', or drop them."
        )


def _open_openvino(path: Path, threads: int, options: OpenVinoOptions) -> Runtime:
    from destseg_deploy.runtime.openvino_runtime import OpenVinoRuntime

    return OpenVinoRuntime(
        path,
        threads=threads,
        streams=options.streams,
        hint=options.hint,
        precision=options.precision,
        pinning=options.pinning,
        cache=options.cache,
    )


def _open_engine(path: Path, device: str, options: EngineOptions) -> Runtime:
    if device == "cpu":
        raise BackendError(
            f"device 'cpu': {path.name} is a TensorRT engine and runs on a GPU only. Pass device "
            "'cuda', or load the .onnx that it was built from."
        )
    from destseg_deploy.runtime.trt import TrtRuntime

    return TrtRuntime(
        path,
        device,
        binding=options.binding,
        contexts=options.contexts,
        cuda_graph=options.cuda_graph,
    )


def _open_checkpoint(path: Path, device: str) -> Runtime:
    try:
        import torch  # noqa: F401 - only asks whether it is there
    except ImportError as error:
        raise BackendError(
            f"{path}: a checkpoint needs PyTorch. pip install 'destseg-deploy[train]', or load the "
            "exported .onnx, which does not."
        ) from error
    from destseg_deploy.runtime.pytorch import PyTorchRuntime

    return PyTorchRuntime.open(path, device)
