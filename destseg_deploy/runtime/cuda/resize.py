"""Resizes on the GPU with ``resize.cu``: frames to the input, anomaly maps to a frame's size.

A frame becomes what ``data.resize.resize_image`` makes of it, to the bit; a map what ``cv2.resize``
makes of it, up to the rounding of float32. On an H200, frames had the host's bits; **maps were not
run on a GPU yet**. The tests run the same source and the same launches as host code.

``GpuFrames`` uses both for frames that come from the host. For a frame that lies on the GPU already
(BGR, grey or with padded rows, such as a frame grabber writes), use ``FrameResize`` before
``infer_into``::

    gpu = open_device("cuda:0")
    stream, kernels = gpu.stream(), ResizeKernels(gpu)
    resize = FrameResize(gpu, stream, runtime.spec.size, kernels)
    resize(FramesOnGpu(pointer, 1024, 1024, "BGR", stride=4096), images.data_ptr())
    runtime.infer_into(images, anomaly_map, score, stream=stream.handle)
"""

from __future__ import annotations

import ctypes
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.resources import files

from destseg_deploy.errors import BackendError, ShapeError
from destseg_deploy.runtime.cuda.bands import BandCache, GpuBands, frame_bands, map_bands
from destseg_deploy.runtime.cuda.memory import Growing
from destseg_deploy.runtime.cuda.protocols import Buffer, Gpu, Kernel, Stream

BLOCK = 192
"""Threads: 64 pixels of three channels, and whole warps."""
ROWS = 4
"""Source rows that share each weight read."""
CHUNK = 4095
"""Bytes of a row in shared memory at once, 16 KiB in all; whole pixels of three channels."""
OPTIONS = (f"-DBLOCK={BLOCK}", f"-DROWS={ROWS}", f"-DCHUNK={CHUNK}")

CHANNELS = {"RGB": 3, "BGR": 3, "GREY": 1}
"""Order of a frame's channels -> their number."""

LARGEST = 65535
"""Pixels along a side, and frames of a batch: what one launch addresses."""


@dataclass(frozen=True)
class FramesOnGpu:
    """Frames of one size on the GPU: uint8 pixels, 8 bits for each channel.

    Attributes:
        pointer: Address of the first pixel of the first frame.
        height: In pixels.
        width: In pixels.
        order: ``RGB``, ``BGR`` or ``GREY``.
        stride: Bytes from a row to the next; 0 for rows without padding.
        count: How many frames.
        step: Bytes from a frame to the next; 0 for frames without a gap.
    """

    pointer: int
    height: int
    width: int
    order: str = "RGB"
    stride: int = 0
    count: int = 1
    step: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be frames, and fill in stride and step.

        Raises:
            ShapeError: If order, size, stride, count or step are impossible.
        """
        if self.order not in CHANNELS:
            raise ShapeError(f"frames: order {self.order!r}, expected {', '.join(CHANNELS)}.")
        for name in ("height", "width", "count"):
            if not 1 <= getattr(self, name) <= LARGEST:
                raise ShapeError(
                    f"frames: {name} {getattr(self, name)}, expected 1 to {LARGEST}. Split them."
                )
        row = self.width * self.channels
        object.__setattr__(self, "stride", self.stride or row)
        if self.stride < row:
            raise ShapeError(
                f"frames: a stride of {self.stride} bytes, expected at least {row} for "
                f"{self.width} pixels of {self.order}. It counts bytes, not pixels."
            )
        size = (self.height - 1) * self.stride + row
        object.__setattr__(self, "step", self.step or self.height * self.stride)
        if self.count > 1 and self.step < size:
            raise ShapeError(
                f"frames: {self.step} bytes from frame to frame, expected at least {size}."
            )

    @property
    def channels(self) -> int:
        """1 or 3."""
        return CHANNELS[self.order]


class ResizeKernels:
    """The functions of ``resize.cu``, compiled for one GPU; any number of streams may use them."""

    def __init__(self, gpu: Gpu) -> None:
        """Compile.

        Raises:
            BackendError: If NVRTC is not there or refuses the source.
        """
        source = files("destseg_deploy.runtime.cuda").joinpath("resize.cu").read_text("utf-8")
        with ExitStack() as owned:

            def compiled(name: str) -> Kernel:
                kernel = gpu.compile(source, name, OPTIONS)
                owned.callback(kernel.close)
                return kernel

            self.rows = compiled("resize_rows")
            self.columns = compiled("resize_columns")
            self.map = compiled("resize_map")
            self._owned = owned.pop_all()

    def close(self) -> None:
        """Unload them; the GPU must have finished with them."""
        self._owned.close()


class FrameResize:
    """Resizes frames on the GPU to the size of an artifact's input, on one stream.

    Only that stream keeps the calls in order, so use one object for each stream, from one thread at
    a time. Close it before the stream and the GPU.
    """

    def __init__(
        self, gpu: Gpu, stream: Stream, size: tuple[int, int], kernels: ResizeKernels
    ) -> None:
        """Take memory as frames come.

        Args:
            gpu: Where the frames lie.
            stream: Where the work is queued.
            size: Height and width wanted, ``ModelSpec.size``.
            kernels: Compiled for that GPU; they stay the caller's.

        Raises:
            ShapeError: If the size is impossible.
        """
        if not all(1 <= side <= LARGEST for side in size):
            raise ShapeError(f"size: {size}, expected 1 to {LARGEST} pixels on each side.")
        self.size = size
        self._stream = stream
        self._kernels = kernels
        self._bands = BandCache(frame_bands, gpu, stream)
        self._between: Growing[Buffer] = Growing(gpu.allocate)
        self._open = True

    def prepare(self, frames: FramesOnGpu) -> tuple[GpuBands, GpuBands, int]:
        """Make the tables and memory that such frames need, waiting for the stream where needed.

        A call does this, too. Before recording a CUDA graph, which cannot wait, do it here; the
        graph stays valid until frames of another size are prepared.

        Returns:
            The bands along the height and along the width, and the address of the intermediate
            result, uint8 (count, frame height, width wanted, channels).

        Raises:
            BackendError: If closed, or there is not enough memory.
        """
        if not self._open:
            raise BackendError("FrameResize: used after close. Make another.")
        vertical = self._bands.get(frames.height, self.size[0])
        horizontal = self._bands.get(frames.width, self.size[1])
        size = frames.count * frames.height * self.size[1] * frames.channels
        if 0 < self._between.size < size:
            self._stream.synchronize()  # earlier calls may still use the memory that is too small
        return vertical, horizontal, self._between.at_least(size).pointer

    def __call__(self, frames: FramesOnGpu, target: int) -> None:
        """Queue the resize of a batch.

        Args:
            frames: The frames; their memory must stay as it is until the stream has read it.
            target: Address for uint8 (count, height, width, 3) RGB, without padding.

        Raises:
            BackendError: If closed, or the GPU refuses.
        """
        vertical, horizontal, between = self.prepare(frames)
        channels, (height, width) = frames.channels, self.size
        self._stream.launch(
            self._kernels.rows,
            (_groups(width, BLOCK // channels), _groups(frames.height, ROWS), frames.count),
            (BLOCK, 1, 1),
            [
                ctypes.c_void_p(frames.pointer),
                ctypes.c_ulonglong(frames.step),
                ctypes.c_ulonglong(frames.stride),
                ctypes.c_int(frames.height),
                ctypes.c_int(channels),
                *_axis(horizontal),
                ctypes.c_int(width),
                ctypes.c_void_p(between),
            ],
        )
        self._stream.launch(
            self._kernels.columns,
            (_groups(width * channels, BLOCK), height, frames.count),
            (BLOCK, 1, 1),
            [
                ctypes.c_void_p(between),
                ctypes.c_int(frames.height),
                ctypes.c_int(width),
                ctypes.c_int(channels),
                ctypes.c_int(frames.order == "BGR"),
                *_axis(vertical),
                ctypes.c_int(height),
                ctypes.c_void_p(target),
            ],
        )

    def close(self) -> None:
        """Wait for the stream and free everything; a second call does nothing."""
        if self._open:
            self._open = False
            with ExitStack() as owned:
                owned.callback(self._bands.close)
                owned.callback(self._between.close)
                self._stream.synchronize()


class MapResize:
    """Resizes anomaly maps on the GPU, on one stream, from one thread at a time."""

    def __init__(
        self, gpu: Gpu, stream: Stream, size: tuple[int, int], kernels: ResizeKernels
    ) -> None:
        """Take maps of one height and width; see ``FrameResize``."""
        self._size = size
        self._stream = stream
        self._kernels = kernels
        self._bands = BandCache(map_bands, gpu, stream)

    def __call__(self, anomaly_map: int, size: tuple[int, int], target: int) -> None:
        """Queue the resize of one map.

        Args:
            anomaly_map: Address of float32 (height, width) without padding.
            size: Height and width wanted.
            target: Address for float32 of that size, without padding.

        Raises:
            BackendError: If there is not enough memory, or the GPU refuses.
        """
        vertical = self._bands.get(self._size[0], size[0])
        horizontal = self._bands.get(self._size[1], size[1])
        self._stream.launch(
            self._kernels.map,
            (_groups(size[1], BLOCK), size[0], 1),
            (BLOCK, 1, 1),
            [
                ctypes.c_void_p(anomaly_map),
                ctypes.c_int(self._size[1]),
                *_axis(horizontal),
                *_axis(vertical),
                ctypes.c_int(size[1]),
                ctypes.c_int(size[0]),
                ctypes.c_void_p(target),
            ],
        )

    def close(self) -> None:
        """Free everything; the GPU must have finished with it."""
        self._bands.close()


def _axis(bands: GpuBands) -> tuple[ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]:
    """Return a kernel's three arguments for an axis."""
    return (
        ctypes.c_void_p(bands.starts),
        ctypes.c_void_p(bands.weights),
        ctypes.c_int(bands.taps),
    )


def _groups(items: int, size: int) -> int:
    """Return how many groups of a size hold a number of items."""
    return -(-items // size)
