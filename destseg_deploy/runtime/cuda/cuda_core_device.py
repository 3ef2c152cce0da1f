"""A GPU through ``cuda.core``, NVIDIA's own binding: memory from its stream-ordered pool.

The pool keeps freed memory for the next allocation, so that opening and closing runtimes does not
stall the GPU. ``pip install cuda-core`` brings wheels and needs no compiler.
"""

from __future__ import annotations

from typing import Any

from cuda.core import Device as CoreDevice
from cuda.core import LegacyPinnedMemoryResource

from destseg_deploy.runtime.cuda.device import DriverGpu
from destseg_deploy.runtime.cuda.driver import Driver
from destseg_deploy.runtime.cuda.memory import Memory, PinnedMemory, array_at


class CudaCoreGpu(DriverGpu):
    """See ``Gpu``."""

    binding = "cuda.core"

    def __init__(self, index: int = 0, driver: Driver | None = None) -> None:
        """Open a GPU; see ``DriverGpu``."""
        super().__init__(index, driver)
        with self._starting():
            self._core = CoreDevice(index)
            self._core.set_current()
            self._order = self._core.create_stream()
            self._pinned = LegacyPinnedMemoryResource()

    def close(self) -> None:
        """See ``Gpu.close``."""
        if self._context is not None:
            with self.current():
                self._order.sync()
                self._order.close()
        super().close()

    def _take(self, size: int) -> Memory:
        buffer = self._core.allocate(size, stream=self._order)
        self._order.sync()  # from here on the memory is there for every stream
        return Memory(int(buffer.handle), size, lambda: self._give_back(buffer))

    def _take_pinned(self, size: int) -> PinnedMemory:
        buffer = self._pinned.allocate(size)
        return PinnedMemory(array_at(int(buffer.handle), size), lambda: self._give_back(buffer))

    def _give_back(self, buffer: Any) -> None:
        with self.current():
            buffer.close(self._order)  # without a stream of ours, the default one is waited for
