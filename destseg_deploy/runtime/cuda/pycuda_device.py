"""A GPU through ``pycuda``, for a process that uses it already: memory from ``mem_alloc``.

pycuda keeps a stack of contexts for each thread beside the driver's, aborts the process when a
thread ends with something on it, and frees nothing from a thread whose top is another context.
So its primary context is pushed for each call and popped again; ``pycuda.autoinit``, which makes a
context of its own, is never imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pycuda.driver as pycuda

from destseg_deploy.runtime.cuda.device import DriverGpu
from destseg_deploy.runtime.cuda.driver import Driver
from destseg_deploy.runtime.cuda.memory import Memory, PinnedMemory


class PyCudaGpu(DriverGpu):
    """See ``Gpu``."""

    binding = "pycuda"

    def __init__(self, index: int = 0, driver: Driver | None = None) -> None:
        """Open a GPU; see ``DriverGpu``."""
        super().__init__(index, driver)
        with self._starting():
            pycuda.init()
            self._pycuda: Any = pycuda.Device(index).retain_primary_context()

    @contextmanager
    def current(self) -> Iterator[None]:
        """See ``Gpu.current``."""
        with super().current():
            self._pycuda.push()
            try:
                yield
            finally:
                pycuda.Context.pop()

    def close(self) -> None:
        """See ``Gpu.close``."""
        if self._context is not None:
            # pycuda lets go only of a context that is current, whichever thread this is, and
            # leaves one too many on the driver's stack when it does.
            with self.driver.within(self._context):
                self._pycuda.push()
                self._pycuda.detach()
                self.driver.get("cuCtxPopCurrent_v2")
        super().close()

    def _take(self, size: int) -> Memory:
        memory = pycuda.mem_alloc(size)
        return Memory(int(memory), size, lambda: self._give_back(memory))

    def _take_pinned(self, size: int) -> PinnedMemory:
        array = pycuda.pagelocked_empty(size, np.uint8)
        return PinnedMemory(array, lambda: self._give_back(array.base))

    def _give_back(self, memory: Any) -> None:
        with self.current():
            memory.free()
