"""THE resize on a GPU, for frames whose size was not baked into the graph: launches ``resize.cu``.

The result is what ``data.resize.resize_image`` gives, to the bit. RGB, BGR and grey frames of 8
bits are taken as they lie on the GPU, padded rows included. **Not run on a GPU yet**: the tests run
the same source and the same launches as host code.
"""

from __future__ import annotations

import ctypes
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.resources import files

from destseg_deploy.errors import BackendError, ShapeError
from destseg_deploy.runtime.device import Buffer, Device, Stream
from destseg_deploy.runtime.resize_bands import BandCache, DeviceBands

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
class DeviceFrames:
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


class GpuResize:
    """Resizes frames on the GPU to the size of an artifact's input, on one stream.

    Everything is queued on that stream, which alone keeps calls in order: use one object for each
    stream, from one thread at a time. Close it before the stream and the device.
    """

    def __init__(self, device: Device, stream: Stream, size: tuple[int, int]) -> None:
        """Compile the kernels.

        Args:
            device: Where the frames lie.
            stream: Where the work is queued.
            size: Height and width wanted, ``ModelSpec.size``.

        Raises:
            ShapeError: If the size is impossible.
            BackendError: If NVRTC is not there or refuses the kernels.
        """
        if not all(1 <= side <= LARGEST for side in size):
            raise ShapeError(f"size: {size}, expected 1 to {LARGEST} pixels on each side.")
        self.size = size
        self._device = device
        self._stream = stream
        self._between: Buffer | None = None
        source = files("destseg_deploy.runtime").joinpath("resize.cu").read_text("utf-8")
        with ExitStack() as owned:
            self._along_width = device.compile(source, "resize_rows", OPTIONS)
            owned.callback(self._along_width.close)
            self._along_height = device.compile(source, "resize_columns", OPTIONS)
            owned.callback(self._along_height.close)
            self._bands = BandCache(device, stream)
            owned.callback(self._bands.close)
            owned.callback(self._free_intermediate)
            self._owned: ExitStack | None = owned.pop_all()

    def prepare(self, frames: DeviceFrames) -> None:
        """Make the tables and memory that such frames need, waiting for the stream where needed.

        ``__call__`` does it by itself. Before recording a CUDA graph, which cannot wait, call it;
        the graph stays valid until frames of another size are prepared.

        Raises:
            BackendError: If closed, or there is not enough memory.
        """
        self._axes(frames)
        self._intermediate(frames)

    def __call__(self, frames: DeviceFrames, target: int) -> None:
        """Queue the resize of a batch.

        Args:
            frames: The frames; their memory must stay as it is until the stream has come by.
            target: Address for uint8 (count, height, width, 3) RGB, without padding.

        Raises:
            BackendError: If closed, or the GPU refuses.
        """
        vertical, horizontal = self._axes(frames)
        between = self._intermediate(frames)
        self._launch_rows(frames, horizontal, between)
        self._launch_columns(frames, vertical, between, target)

    def close(self) -> None:
        """Wait for the stream and free everything; a second call does nothing."""
        owned, self._owned = self._owned, None
        if owned is not None:
            with owned:
                self._stream.synchronize()

    def _axes(self, frames: DeviceFrames) -> tuple[DeviceBands, DeviceBands]:
        """Return the bands along the height and along the width."""
        if self._owned is None:
            raise BackendError("GpuResize: used after close. Make another.")
        vertical = self._bands.get(frames.height, self.size[0])
        return vertical, self._bands.get(frames.width, self.size[1])

    def _intermediate(self, frames: DeviceFrames) -> int:
        """Return the address of uint8 (count, frame height, width wanted, channels)."""
        size = frames.count * frames.height * self.size[1] * frames.channels
        if self._between is None or self._between.size < size:
            if self._between is not None:
                self._stream.synchronize()  # earlier calls may still use it
            self._free_intermediate()
            self._between = self._device.allocate(size)
        return self._between.pointer

    def _free_intermediate(self) -> None:
        between, self._between = self._between, None
        if between is not None:
            between.close()

    def _launch_rows(self, frames: DeviceFrames, bands: DeviceBands, between: int) -> None:
        channels, width = frames.channels, self.size[1]
        self._stream.launch(
            self._along_width,
            (_groups(width, BLOCK // channels), _groups(frames.height, ROWS), frames.count),
            (BLOCK, 1, 1),
            [
                ctypes.c_void_p(frames.pointer),
                ctypes.c_ulonglong(frames.step),
                ctypes.c_ulonglong(frames.stride),
                ctypes.c_int(frames.height),
                ctypes.c_int(channels),
                ctypes.c_void_p(bands.starts),
                ctypes.c_void_p(bands.weights),
                ctypes.c_int(bands.taps),
                ctypes.c_int(width),
                ctypes.c_void_p(between),
            ],
        )

    def _launch_columns(
        self, frames: DeviceFrames, bands: DeviceBands, between: int, target: int
    ) -> None:
        channels, (height, width) = frames.channels, self.size
        self._stream.launch(
            self._along_height,
            (_groups(width * channels, BLOCK), height, frames.count),
            (BLOCK, 1, 1),
            [
                ctypes.c_void_p(between),
                ctypes.c_int(frames.height),
                ctypes.c_int(width),
                ctypes.c_int(channels),
                ctypes.c_int(frames.order == "BGR"),
                ctypes.c_void_p(bands.starts),
                ctypes.c_void_p(bands.weights),
                ctypes.c_int(bands.taps),
                ctypes.c_int(height),
                ctypes.c_void_p(target),
            ],
        )


def _groups(items: int, size: int) -> int:
    """Return how many groups of a size hold so many items."""
    return -(-items // size)
