"""Weights of a resize along one axis, as the kernels read them: short bands instead of matrices.

A row of a resize matrix is zero except for a few neighbouring pixels. So an axis is kept as the
first source pixel of each band, and the weights of the band.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.data.resize import SCALE, resize_matrix
from destseg_deploy.runtime.cuda.protocols import Gpu, Stream

KEPT = 16
"""Axes kept on the GPU. A size of frame needs two, so eight sizes may take turns."""


@dataclass(frozen=True, eq=False)
class Bands:
    """How one axis is resized.

    Attributes:
        starts: int32 (target,): the first source pixel of each target pixel's band, never falling.
        weights: uint32 or float32 (taps, target). All bands are as long as the longest and lie
            within the source; weights that a target pixel does not need are 0.
    """

    starts: NDArray[np.int32]
    weights: NDArray[np.uint32] | NDArray[np.float32]

    @property
    def taps(self) -> int:
        """Source pixels of each band."""
        return len(self.weights)


def frame_bands(source: int, target: int) -> Bands:
    """Return the rows of ``data.resize.resize_matrix``; weights are whole 65536ths, uint32.

    Raises:
        ShapeError: If a number of pixels is below 1.
    """
    matrix = resize_matrix(source, target)
    used = matrix > 0
    first = used.argmax(axis=1)
    last = source - 1 - used[:, ::-1].argmax(axis=1)
    taps = int((last - first).max()) + 1
    starts = np.minimum(first, source - taps)
    columns = starts[:, None] + np.arange(taps)
    banded = np.take_along_axis(matrix, columns, axis=1) * np.float32(SCALE)
    return Bands(starts.astype(np.int32), np.ascontiguousarray(banded.T).astype(np.uint32))


def map_bands(source: int, target: int) -> Bands:
    """Return the weights of ``cv2.resize`` with ``INTER_LINEAR``, float32 (1 or 2, target).

    Pixel centres lie at half pixels, and the border pixel is repeated.
    """
    step = 1.0 / (target / source)
    position = (np.arange(target) + 0.5) * step - 0.5
    left = np.floor(position)
    fraction = np.where((left < 0) | (left >= source - 1), 0.0, position - left)
    left = left.clip(0, source - 1).astype(np.int32)
    if source == 1:
        return Bands(left, np.ones((1, target), np.float32))
    starts = np.minimum(left, source - 2)
    # The last source pixel has no right neighbour: it is the second of its band, with all weight.
    fraction = np.where(left == source - 1, 1.0, fraction).astype(np.float32)
    return Bands(starts, np.stack([np.float32(1) - fraction, fraction]))


class GpuBands:
    """One axis on the GPU: the addresses of what ``Bands`` holds, in one buffer."""

    def __init__(self, bands: Bands, gpu: Gpu, stream: Stream) -> None:
        """Upload; waits for the stream, because the pinned memory is given back at once.

        Raises:
            BackendError: If there is not enough memory.
        """
        self.taps = bands.taps
        content = bands.starts.tobytes() + bands.weights.tobytes()
        self._buffer = gpu.allocate(len(content))
        self.starts = self._buffer.pointer
        self.weights = self.starts + bands.starts.nbytes
        try:
            pinned = gpu.allocate_pinned(len(content))
            try:
                pinned.array[:] = np.frombuffer(content, np.uint8)
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

    def __init__(self, make: Callable[[int, int], Bands], gpu: Gpu, stream: Stream) -> None:
        """Hold at most ``KEPT`` axes of ``make(source, target)``."""
        self._make = make
        self._gpu = gpu
        self._stream = stream
        self._axes: OrderedDict[tuple[int, int], GpuBands] = OrderedDict()

    def get(self, source: int, target: int) -> GpuBands:
        """Return an axis, uploading it when it is new; then the stream is waited for.

        The two axes got last stay valid.

        Raises:
            ShapeError: If a number of pixels is below 1.
            BackendError: If there is not enough memory.
        """
        key = (source, target)
        if key not in self._axes:
            self._axes[key] = GpuBands(self._make(*key), self._gpu, self._stream)
            # The upload has waited for the stream, so nothing there reads the oldest any more.
            while len(self._axes) > KEPT:
                self._axes.popitem(last=False)[1].close()
        self._axes.move_to_end(key)
        return self._axes[key]

    def close(self) -> None:
        """Free all; the GPU must have finished with them."""
        while self._axes:
            self._axes.popitem()[1].close()
