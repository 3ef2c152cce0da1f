"""A runtime on a GPU: what TensorRT, ONNX Runtime and PyTorch share once they have a network."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.errors import BackendError
from destseg_deploy.runtime.base import (
    FramePipeline,
    Prediction,
    check_images,
    check_open,
    kept_by_children,
)
from destseg_deploy.runtime.cuda.arrays import check_arrays, read_arrays
from destseg_deploy.runtime.cuda.frames import GpuFrames
from destseg_deploy.runtime.cuda.protocols import Gpu
from destseg_deploy.runtime.cuda.slots import Addresses, Network, SlotPool, follow

logger = logging.getLogger(__name__)


class GpuRuntime:
    """Runs a network in several slots, so that several cameras are served at once.

    Answers are copies that belong to the caller. Everything may be called from several threads,
    except ``close``. ``infer_into`` is for arrays that lie on the GPU: it is reached through
    ``predictor.runtime``.
    """

    def __init__(self, network: Network, gpu: Gpu, slots: int, owned: ExitStack) -> None:
        """Make the slots.

        Args:
            network: The opened artifact; from now on this runtime's.
            gpu: Where it runs.
            slots: Calls that run at the same time; each has its own stream and memory.
            owned: What is closed after the network, such as the GPU.

        Raises:
            BackendError: If there is not enough memory; the network and ``owned`` are closed then.
        """
        self.spec = network.spec
        self.gpu = gpu
        self._process = os.getpid()  # a CUDA context stays in its process
        with owned:

            def close_network() -> None:
                with gpu.current():  # else its memory might be freed in another context
                    network.close()

            owned.callback(close_network)
            self._pool = SlotPool(network, gpu, slots)
            owned.callback(self._pool.close)
            self._owned: ExitStack | None = owned.pop_all()
        self._keep = kept_by_children(self, self._owned)

    def infer(self, images: NDArray[np.uint8]) -> Prediction:
        """Score images; see ``Runtime.infer``."""
        check_open(self._owned, self.spec, self._process)
        check_images(images, self.spec)
        slot = self._pool.take()
        try:
            slot.submit(images)
            return slot.collect(len(images))
        finally:
            self._pool.give_back(slot)

    def infer_into(
        self, images: Any, anomaly_map: Any, score: Any, *, stream: int | None = None
    ) -> None:
        """Score images that lie on the GPU, into arrays there, without a copy; wait for the end.

        All three are objects with ``__dlpack__`` or ``__cuda_array_interface__`` (torch, CuPy,
        cuda.core and others), contiguous, and kept alive here until the call ends. With CUDA
        graphs, arrays that come back, such as a camera's ring of buffers, get graphs of their own.

        Args:
            images: uint8 (N, H, W, 3) RGB at ``spec.size``.
            anomaly_map: float32 (N, H, W) at ``spec.map_size``; written.
            score: float32 (N,); written.
            stream: A ``cudaStream_t`` whose work is done first, such as the copy of a frame
                grabber. Arrays of DLPack and arrays that name a stream need none.

        Raises:
            ShapeError: If an array is not what is expected, not contiguous, misaligned, or
                somewhere else.
            BackendError: If the runtime is closed or the GPU fails.
        """
        check_open(self._owned, self.spec, self._process)
        given = {"images": images, "anomaly_map": anomaly_map, "score": score}
        slot = self._pool.take()
        try:
            arrays = read_arrays(given, self.gpu, slot.stream.handle)
            batch = check_arrays(arrays, self.spec)
            for foreign in (stream, *(array.stream for array in arrays)):
                if foreign is not None:
                    follow(self.gpu, slot.stream, self.gpu.foreign_stream(foreign))
            slot.run_at(batch, Addresses(*(array.pointer for array in arrays)))
        finally:
            self._pool.give_back(slot)

    def open_frames(self) -> FramePipeline | None:
        """See ``TakesFrames.open_frames``; None, with a warning, without a kernel compiler."""
        check_open(self._owned, self.spec, self._process)
        assert self._owned is not None
        try:
            frames = GpuFrames(self.gpu, self._pool, self.spec)
        except BackendError as error:
            # The host's resize gives the same bits, so this costs time and changes no answer.
            logger.warning("frames are resized on the CPU, which costs time: %s", error)
            return None
        self._owned.callback(frames.close)
        return frames

    def close(self) -> None:
        """Wait for the GPU and release everything; a second call does nothing."""
        owned, self._owned = self._owned, None
        if owned is not None and not self._keep():
            owned.close()
