"""ONNX Runtime back end: runs ``.onnx`` on a CPU or, with onnxruntime-gpu, on CUDA or TensorRT.

Inputs and outputs are bound to memory: on a CPU to the caller's arrays, on a GPU to memory that is
kept there, or to arrays of the caller's that lie there already (``infer_into``). **Nothing here has
been run on a GPU yet.**

An FP16 graph on the CPU provider is computed in float32 between casts; it shows that the file loads
and answers, and nothing about half precision.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.errors import BackendError, DestsegError
from destseg_deploy.runtime.base import Prediction, check_images, check_open
from destseg_deploy.runtime.cpu_options import OrtCpuOptions
from destseg_deploy.runtime.ort_arrays import GpuArrays
from destseg_deploy.runtime.ort_binding import Bindings, CudaGraphs, LanePool
from destseg_deploy.runtime.ort_cpu import session_settings
from destseg_deploy.runtime.ort_options import (
    OrtOptions,
    Place,
    check_options,
    engine_cache,
    provider_options,
)
from destseg_deploy.runtime.ort_session import (
    check_available,
    count_nodes,
    one_line,
    open_session,
    placed_nodes,
)
from destseg_deploy.spec import ModelSpec


class OrtRuntime:
    """An exported graph in ONNX Runtime, on exactly the provider that was asked for.

    Attributes:
        spec: The artifact's contract.
        placement: Provider -> operators that it runs; None where ONNX Runtime is too old to tell.
            Beside ``tensorrt``, CUDA may run what TensorRT cannot, but no convolution; beside a
            GPU, the CPU only computes shapes.
    """

    def __init__(
        self,
        path: Path,
        device: str = "cpu",
        *,
        threads: int = 0,
        cuda_graph: bool = False,
        tf32: bool = False,
        cache: Path | None = None,
        cpu: OrtCpuOptions | None = None,
    ) -> None:
        """Open an artifact after checking it against its spec.

        Args:
            path: The ``.onnx`` file; its spec lies beside it.
            device: ``cpu``, ``cuda``, ``cuda:<index>``, ``tensorrt`` or ``tensorrt:<index>``.
                TensorRT builds an engine when a session is opened first, which takes minutes, and
                reads it from ``cache`` after that.
            threads: Threads within an operator; 0 leaves the choice to ONNX Runtime.
            cuda_graph: Record a CUDA graph for each batch size, at its first use, and replay it.
                Calls then run one after the other, and each thread records graphs of its own.
            tf32: Let a GPU round float32 factors to TF32: faster, and the scores move.
            cache: Folder for TensorRT's engines; ``.trt-cache`` beside the artifact unless given.
            cpu: How the CPU's cores and memory are used; for device ``cpu`` only.

        Raises:
            SpecError: If the spec is missing or was written for another file.
            BackendError: If ONNX Runtime or the device is not there, refuses the file or runs only
                a part of it, or an option does not fit the device.
        """
        self.spec = ModelSpec.read(path)
        if not path.is_file():
            raise BackendError(
                f"{path}: no such file. Run destseg-export --category NAME to make it."
            )
        self.spec.check_artifact(path)
        self._place = Place.parse(device)
        ort = _import(path)
        options = OrtOptions(threads, cuda_graph, tf32, cache, cpu)
        self._session: Any = _open(ort, path, self.spec, self._place, options)
        self.placement = count_nodes(placed_nodes(self._session))
        self._bindings = Bindings(ort, self._session, self.spec, self._place)
        self._lanes = LanePool(self._bindings)
        self._graphs = CudaGraphs(ort) if cuda_graph else None
        # Two runs of a session must not record or replay CUDA graphs at the same time.
        self._turn: AbstractContextManager[Any] = threading.Lock() if cuda_graph else nullcontext()
        self._arrays: GpuArrays | None = None
        self._opening = threading.Lock()

    def infer(self, images: NDArray[np.uint8]) -> Prediction:
        """Score images; see ``Runtime.infer``."""
        check_open(self._session, self.spec)
        check_images(images, self.spec)
        with self._failures(), self._turn:
            if self._place.kind == "cpu":
                return self._infer_in_place(np.ascontiguousarray(images))
            with self._lanes.lend(len(images)) as lane:
                lane.load(images)
                self._run(lane.binding, lane)
                return lane.read()

    def infer_into(
        self, images: Any, anomaly_map: Any, score: Any, *, stream: int | None = None
    ) -> None:
        """Score images that lie on the GPU, into arrays there, without a copy; wait for the end.

        All three are objects with ``__dlpack__`` or ``__cuda_array_interface__`` (torch, CuPy,
        ``GpuFrames``), contiguous, and kept alive here until the call ends. As
        ``TrtRuntime.infer_into``, but the host waits for what makes them before the run is started.

        Args:
            images: uint8 (N, H, W, 3) RGB at ``spec.size``.
            anomaly_map: float32 (N, H, W) at ``spec.map_size``; written.
            score: float32 (N,); written.
            stream: A ``cudaStream_t`` whose work is done first. DLPack's producers and arrays that
                name a stream need none.

        Raises:
            ShapeError: If an array is not what is expected, not contiguous, misaligned, or
                somewhere else.
            BackendError: If the runtime is closed or on a CPU, or the GPU fails.
        """
        check_open(self._session, self.spec)
        if self._place.kind == "cpu":
            raise BackendError(
                f"{self.spec.artifact.file}: infer_into is for arrays on a GPU, this runtime is on "
                "the CPU. Use infer."
            )
        arrays = self._gpu_arrays()
        with self._failures(), self._turn:
            batch, pointers, kept = arrays.read(images, anomaly_map, score, stream)
            self._run(self._bindings.at(batch, pointers), (batch, pointers))
            del kept  # the run is over

    def close(self) -> None:
        """Release the session and all memory; a second call does nothing."""
        if self._session is None:
            return
        del self._lanes, self._bindings
        self._graphs = self._session = None
        arrays, self._arrays = self._arrays, None
        if arrays is not None:
            arrays.close()

    def _infer_in_place(self, images: NDArray[np.uint8]) -> Prediction:
        """Run on the host's memory; the answers are written where the caller gets them."""
        batch = len(images)
        anomaly_map = np.empty((batch, *self.spec.map_size), np.float32)
        score = np.empty(batch, np.float32)
        pointers = images.ctypes.data, anomaly_map.ctypes.data, score.ctypes.data
        self._run(self._bindings.at(batch, pointers), pointers)
        return Prediction(anomaly_map, score)

    def _run(self, binding: Any, memory: object) -> None:
        options = None if self._graphs is None else self._graphs.run_options(memory)
        self._session.run_with_iobinding(binding, options)
        binding.synchronize_outputs()

    def _gpu_arrays(self) -> GpuArrays:
        """Return the reader of arrays on the GPU; only who has such arrays needs a CUDA binding."""
        with self._opening:
            if self._arrays is None:
                self._arrays = GpuArrays(self._place.index, self.spec)
            return self._arrays

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Turn what ONNX Runtime raises, which shares no base class, into ``BackendError``."""
        try:
            yield
        except DestsegError:
            raise
        except Exception as error:
            advice = "Load the artifact again; nvidia-smi shows the GPU's memory and errors."
            if self._place.kind == "cpu":
                advice = "Export it again."
            raise BackendError(
                f"{self.spec.artifact.file}: ONNX Runtime failed on device '{self._place}' "
                f"({one_line(error)}). {advice}"
            ) from error


def _import(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            f"{path}: ONNX Runtime is not installed. pip install 'destseg-deploy[onnxruntime]', or "
            "[gpu] for CUDA."
        ) from error
    return onnxruntime


def _open(ort: Any, path: Path, spec: ModelSpec, place: Place, options: OrtOptions) -> Any:
    check_available(ort, place)
    check_options(place, spec, options)
    cache = None
    if place.kind == "tensorrt":
        cache = engine_cache(path, spec, options, ort.__version__)
    providers = provider_options(place, spec, options, cache)
    settings = session_settings(ort, place, spec, options)
    return open_session(ort, path, place, providers, settings)
