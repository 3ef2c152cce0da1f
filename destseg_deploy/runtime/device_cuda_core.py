"""A GPU through ``cuda.core``, NVIDIA's own binding: memory from its stream-ordered pool.

The pool keeps freed memory for the next allocation, so that opening and closing runtimes does not
stall the GPU. ``pip install cuda-core`` brings wheels and needs no compiler.
"""

from __future__ import annotations

from typing import Any

from cuda.core import Device as CoreDevice
from cuda.core import LegacyPinnedMemoryResource

from destseg_deploy.errors import BackendError
from destseg_deploy.runtime.cuda_driver import NOT_THERE, Driver
from destseg_deploy.runtime.device import Buffer, PinnedBuffer
from destseg_deploy.runtime.device_driver import DriverDevice, Memory, PinnedMemory, array_at


class CudaCoreDevice(DriverDevice):
    """See ``Device``."""

    binding = "cuda.core"

    def __init__(self, index: int = 0, driver: Driver | None = None) -> None:
        """Open a GPU; see ``DriverDevice``.

        Raises:
            BackendError: If there is no driver or no such GPU.
        """
        super().__init__(index, driver)
        try:
            with self.driver.within(self.context):
                self._core = CoreDevice(index)
                self._core.set_current()
                self._order = self._core.create_stream()
                self._pinned = LegacyPinnedMemoryResource()
        except Exception as error:  # its errors share no base class
            super().close()
            reason = " ".join(str(error).split())[:200]
            raise BackendError(NOT_THERE.format(device=f"cuda:{index}", reason=reason)) from error

    def allocate(self, size: int) -> Buffer:
        """See ``Device.allocate``."""
        with self.current():
            buffer = _take(size, lambda: self._core.allocate(size, stream=self._order))
            self._order.sync()  # from here on it is there for every stream
        return Memory(int(buffer.handle), size, lambda: self._give_back(buffer))

    def allocate_pinned(self, size: int) -> PinnedBuffer:
        """See ``Device.allocate_pinned``."""
        with self.current():
            buffer = _take(size, lambda: self._pinned.allocate(size))
        return PinnedMemory(array_at(int(buffer.handle), size), lambda: self._give_back(buffer))

    def close(self) -> None:
        """See ``Device.close``."""
        if self._context is not None:
            with self.current():
                self._order.sync()
                self._order.close()
        super().close()

    def _give_back(self, buffer: Any) -> None:
        with self.current():
            buffer.close(self._order)  # else the default stream is waited for


def _take(size: int, allocate: Any) -> Any:
    try:
        return allocate()
    except Exception as error:  # its errors share no base class
        reason = " ".join(str(error).split())[:200]
        raise BackendError(
            f"CUDA: cuda.core gives no {size} bytes ({reason}). Free memory on the GPU, or use a "
            "smaller batch or fewer contexts."
        ) from error
