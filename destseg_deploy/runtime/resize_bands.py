"""The weights of THE resize as a GPU kernel reads them: short bands instead of matrices.

A row of ``data.resize.resize_matrix`` is zero but for a few neighbouring pixels. Each axis is kept
as the first pixel of every band and the weights of the band, in whole 65536ths.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.data.resize import SCALE, resize_matrix
from destseg_deploy.runtime.device import Buffer, Device, Stream

KEPT = 16
"""Axes kept on the GPU: two for each size of frame, so eight sizes may take turns."""


@dataclass(frozen=True)
class Bands:
    """How one axis is resized.

    Attributes:
        starts: int32 (target,): the first source pixel of each target pixel's band, never falling.
        weights: uint32 (taps, target): whole 65536ths; the columns sum to 65536. All bands are as
            long as the longest and lie within the source, padded with zeros.
    """

    starts: NDArray[np.int32]
    weights: NDArray[np.uint32]

    @classmethod
    def between(cls, source: int, target: int) -> Bands:
        """Return the bands that resize ``source`` pixels to ``target``.

        Raises:
            ShapeError: If a number is below 1.
        """
        matrix = resize_matrix(source, target)
        used = matrix > 0
        first = used.argmax(axis=1)
        last = source - 1 - used[:, ::-1].argmax(axis=1)
        taps = int((last - first).max()) + 1
        starts = np.minimum(first, source - taps)
        columns = starts[:, None] + np.arange(taps)
        banded = np.take_along_axis(matrix, columns, axis=1) * np.float32(SCALE)
        return cls(starts.astype(np.int32), np.ascontiguousarray(banded.T).astype(np.uint32))

    @property
    def taps(self) -> int:
        """Source pixels of each band."""
        return len(self.weights)


class DeviceBands:
    """One axis on the GPU; addresses of what ``Bands`` holds, in one buffer."""

    def __init__(self, bands: Bands, device: Device, stream: Stream) -> None:
        """Upload; waits for the stream, because the pinned memory is given back at once.

        Raises:
            BackendError: If there is not enough memory.
        """
        self.taps = bands.taps
        parts = (bands.starts.tobytes(), bands.weights.tobytes())
        self._buffer: Buffer = device.allocate(sum(map(len, parts)))
        self.starts = self._buffer.pointer
        self.weights = self.starts + len(parts[0])
        try:
            pinned = device.allocate_pinned(self._buffer.size)
            try:
                pinned.array[:] = np.frombuffer(b"".join(parts), np.uint8)
                stream.copy_in(self.starts, pinned.array)
                stream.synchronize()
            finally:
                pinned.close()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Free it; the GPU must have finished with it."""
        self._buffer.close()


class BandCache:
    """The axes used last, on the GPU, for work on one stream."""

    def __init__(self, device: Device, stream: Stream, kept: int = KEPT) -> None:
        """Hold at most ``kept`` axes, at least the two of one frame."""
        self._device = device
        self._stream = stream
        self._kept = max(kept, 2)
        self._axes: OrderedDict[tuple[int, int], DeviceBands] = OrderedDict()

    def get(self, source: int, target: int) -> DeviceBands:
        """Return an axis, uploading it when it is new; then the stream is waited for.

        The two axes got last stay valid.

        Raises:
            ShapeError: If a number is below 1.
            BackendError: If there is not enough memory.
        """
        key = (source, target)
        if key not in self._axes:
            self._axes[key] = DeviceBands(Bands.between(*key), self._device, self._stream)
            # The upload has waited for the stream, so nothing there reads the oldest any more.
            while len(self._axes) > self._kept:
                self._axes.popitem(last=False)[1].close()
        self._axes.move_to_end(key)
        return self._axes[key]

    def __len__(self) -> int:
        """Return how many axes are held."""
        return len(self._axes)

    def close(self) -> None:
        """Free all; the GPU must have finished with them."""
        while self._axes:
            self._axes.popitem()[1].close()
