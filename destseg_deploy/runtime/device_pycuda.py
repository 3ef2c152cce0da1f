"""A GPU through ``pycuda``, for a process that uses it already: memory from ``mem_alloc``.

pycuda keeps a stack of contexts for each thread beside the driver's, aborts the process when a
thread ends with something on it, and frees nothing from a thread whose top is another context.
So its primary context is pushed for each call and popped again; ``pycuda.autoinit``, which makes a
context of its own, is never imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import pycuda.driver as pycuda

from destseg_deploy.errors import BackendError
from destseg_deploy.runtime.cuda_driver import NOT_THERE, Driver
from destseg_deploy.runtime.device import Buffer, PinnedBuffer
from destseg_deploy.runtime.device_driver import DriverDevice, Memory, PinnedMemory


class PyCudaDevice(DriverDevice):
    """See ``Device``."""

    binding = "pycuda"

    def __init__(self, index: int = 0, driver: Driver | None = None) -> None:
        """Open a GPU; see ``DriverDevice``.

        Raises:
            BackendError: If there is no driver or no such GPU.
        """
        super().__init__(index, driver)
        try:
            pycuda.init()
            self._pycuda: Any = pycuda.Device(index).retain_primary_context()
        except pycuda.Error as error:
            super().close()
            raise BackendError(NOT_THERE.format(device=f"cuda:{index}", reason=error)) from error

    def allocate(self, size: int) -> Buffer:
        """See ``Device.allocate``."""
        with self.current():
            memory = _take(size, lambda: pycuda.mem_alloc(size))
        return Memory(int(memory), size, lambda: self._free(memory))

    def allocate_pinned(self, size: int) -> PinnedBuffer:
        """See ``Device.allocate_pinned``."""
        with self.current():
            array = _take(size, lambda: pycuda.pagelocked_empty(size, np.uint8))
        return PinnedMemory(array, lambda: self._free(array.base))

    def close(self) -> None:
        """See ``Device.close``."""
        if self._context is not None:
            self._release()
        super().close()

    def _free(self, memory: Any) -> None:
        with self.current():
            memory.free()

    def _scope(self) -> AbstractContextManager[None]:
        return self._pushed()

    @contextmanager
    def _pushed(self) -> Iterator[None]:
        self._pycuda.push()
        try:
            yield
        finally:
            pycuda.Context.pop()

    def _release(self) -> None:
        """Give pycuda's hold on the primary context back, whichever thread this is.

        pycuda lets go only of a context that is current, and leaves one too many on the driver's
        stack when it does.
        """
        with self.driver.within(self.context):
            self._pycuda.push()
            self._pycuda.detach()
            self.driver.get("cuCtxPopCurrent_v2")


def _take(size: int, allocate: Any) -> Any:
    try:
        return allocate()
    except pycuda.Error as error:
        raise BackendError(
            f"CUDA: pycuda gives no {size} bytes ({error}). Free memory on the GPU, or use a "
            "smaller batch or fewer contexts."
        ) from error
