"""Frames from the host, resized on the GPU, ready for ``infer_into``.

An artifact at the network's size takes frames of any size. ``Predictor`` resizes them on the host;
this uploads them as they are and resizes them on the GPU, with the same bits::

    device = open_device("cuda:0")
    stream = device.stream()
    with GpuFrames(device, stream, runtime.spec.size, runtime.spec.max_batch) as on_gpu:
        runtime.infer_into(on_gpu(frames, order="BGR"), anomaly_map, score)

**Not run on a GPU yet.**
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.errors import BackendError, ShapeError
from destseg_deploy.runtime.device import Buffer, Device, PinnedBuffer, Stream
from destseg_deploy.runtime.resize_gpu import DeviceFrames, GpuResize

ORDERS = ("RGB", "BGR")


@dataclass(frozen=True)
class DeviceImages:
    """Images on the GPU: uint8 (N, H, W, 3) RGB without padding.

    Attributes:
        pointer: Where they start.
        shape: (N, H, W, 3).
        stream: The ``cudaStream_t`` whose queued work makes them.
    """

    pointer: int
    shape: tuple[int, int, int, int]
    stream: int

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3 of the interface, which names the stream to wait for."""
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": "|u1",
            "data": (self.pointer, False),  # torch takes no read-only ones
            "strides": None,
            "stream": self.stream,
        }


class GpuFrames:
    """Uploads and resizes batches of frames on one stream, from one thread at a time.

    While the GPU copies and resizes a frame, the next one is copied into pinned memory. Close it
    before the stream and the device.
    """

    def __init__(
        self, device: Device, stream: Stream, size: tuple[int, int], max_batch: int
    ) -> None:
        """Compile the kernels and take memory for the result; that for frames grows as they come.

        Args:
            device: The GPU.
            stream: Where the work is queued; it stays the caller's.
            size: Height and width of the artifact's input, ``spec.size``.
            max_batch: Frames per call at most, ``spec.max_batch``.

        Raises:
            ShapeError: If the size is impossible.
            BackendError: If NVRTC is not there, or there is not enough memory.
        """
        self.size = size
        self.max_batch = max_batch
        self._stream = stream
        self._turn = 0
        with ExitStack() as owned:
            self._resize = GpuResize(device, stream, size)
            owned.callback(self._resize.close)
            self._target = device.allocate(max_batch * size[0] * size[1] * 3)
            owned.callback(self._target.close)
            self._uploads = []
            for _ in range(2):
                self._uploads.append(_Upload(device, stream))
                owned.callback(self._uploads[-1].close)
            self._owned: ExitStack | None = owned.pop_all()

    def __call__(self, frames: Sequence[NDArray[np.uint8]], *, order: str = "RGB") -> DeviceImages:
        """Queue the upload and the resize of a batch.

        Args:
            frames: uint8 (H, W, 3), or (H, W) or (H, W, 1) grey, each of its own size and with any
                strides. They are read before this returns.
            order: ``RGB`` or ``BGR``, of those with three channels.

        Returns:
            The images, valid until the next call.

        Raises:
            ShapeError: If there are too many, or one is no such frame.
            BackendError: If closed, or there is not enough memory.
        """
        if self._owned is None:
            raise BackendError("GpuFrames: used after close. Make another.")
        if order not in ORDERS:
            raise ShapeError(f"order {order!r}: expected {' or '.join(ORDERS)}.")
        if not 1 <= len(frames) <= self.max_batch:
            raise ShapeError(f"frames: {len(frames)} of them, expected 1 to {self.max_batch}.")
        pixels = [_pixels(frame) for frame in frames]
        height, width = self.size
        for i, frame in enumerate(pixels):
            self._queue(frame, order, self._target.pointer + i * height * width * 3)
        shape = (len(frames), height, width, 3)
        return DeviceImages(self._target.pointer, shape, self._stream.handle)

    def close(self) -> None:
        """Wait for the stream and free everything; a second call does nothing."""
        owned, self._owned = self._owned, None
        if owned is not None:
            with owned:
                self._stream.synchronize()

    def __enter__(self) -> GpuFrames:
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

    def _queue(self, frame: NDArray[np.uint8], order: str, target: int) -> None:
        height, width, channels = frame.shape
        upload = self._uploads[self._turn]
        self._turn = (self._turn + 1) % len(self._uploads)
        pointer = upload.load(frame)
        order = "GREY" if channels == 1 else order
        try:
            self._resize(DeviceFrames(pointer, height, width, order), target)
        finally:
            upload.mark()


class _Upload:
    """Memory for one frame on its way: pinned on the host, and on the GPU."""

    def __init__(self, device: Device, stream: Stream) -> None:
        self._device = device
        self._stream = stream
        self._pinned: PinnedBuffer | None = None
        self._buffer: Buffer | None = None
        self._used = device.event()

    def load(self, frame: NDArray[np.uint8]) -> int:
        """Queue the copy of a frame; return where it comes to lie, without padding."""
        self._used.synchronize()  # the frame before may still be on its way
        if self._pinned is None or self._buffer is None or self._buffer.size < frame.size:
            self._free()
            self._buffer = self._device.allocate(frame.size)
            self._pinned = self._device.allocate_pinned(frame.size)
        staged = self._pinned.array[: frame.size]
        np.copyto(staged.reshape(frame.shape), frame)
        self._stream.copy_in(self._buffer.pointer, staged)
        return self._buffer.pointer

    def mark(self) -> None:
        """Note that all that uses the frame is queued."""
        self._stream.record(self._used)

    def close(self) -> None:
        self._free()
        self._used.close()

    def _free(self) -> None:
        buffer, self._buffer = self._buffer, None
        pinned, self._pinned = self._pinned, None
        for memory in (buffer, pinned):
            if memory is not None:
                memory.close()


def _pixels(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a frame as (H, W, channels)."""
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8:
        found = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame)
        raise ShapeError(f"frame: expected uint8 (H, W, 3) or (H, W), got {found}.")
    pixels = frame[:, :, None] if frame.ndim == 2 else frame
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or 0 in pixels.shape:
        raise ShapeError(f"frame: expected uint8 (H, W, 3) or (H, W), got uint8 {frame.shape}.")
    return pixels
