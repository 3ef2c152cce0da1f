"""Arrays that lie on the GPU already, for ONNX Runtime: checked, and their work waited for.

ONNX Runtime runs on a stream of its own that waits for nobody, so what makes the images must be
done before it starts. (TensorRT's runtime lets its stream wait instead.)
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from destseg_deploy.runtime.device_array import DeviceArray, check_arrays, read_array
from destseg_deploy.runtime.open_device import open_device
from destseg_deploy.runtime.ort_binding import Pointers
from destseg_deploy.spec import ModelSpec


class GpuArrays:
    """Reads arrays on one GPU."""

    def __init__(self, index: int, spec: ModelSpec) -> None:
        """Open the GPU's primary context, which ONNX Runtime uses, too.

        Raises:
            BackendError: If there is no such GPU.
        """
        self._spec = spec
        with ExitStack() as owned:
            self._device = open_device(f"cuda:{index}")
            owned.callback(self._device.close)
            self._stream = self._device.stream()
            owned.callback(self._stream.close)
            self._owned = owned.pop_all()

    def read(
        self, images: Any, anomaly_map: Any, score: Any, stream: int | None
    ) -> tuple[int, Pointers, list[DeviceArray]]:
        """Check three arrays and wait for what is queued on them.

        Returns:
            Number of images, addresses, and what keeps the memory alive.

        Raises:
            ShapeError: If an array is not what the spec says, not contiguous, or somewhere else.
        """
        given = {"images": images, "anomaly_map": anomaly_map, "score": score}
        arrays = [
            read_array(array, name, self._device, self._stream.handle)
            for name, array in given.items()
        ]
        batch = check_arrays(arrays, self._spec)
        for handle in {stream, *(array.stream for array in arrays)}:
            if handle is not None:
                self._device.foreign_stream(handle).synchronize()
        self._stream.synchronize()  # DLPack's producers let it wait for theirs
        pointers = arrays[0].pointer, arrays[1].pointer, arrays[2].pointer
        return batch, pointers, arrays

    def close(self) -> None:
        """Release the context."""
        self._owned.close()
