"""Memory of the GPU and page-locked memory of the host, each with what frees it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.runtime.cuda.protocols import Buffer, PinnedBuffer


class Memory:
    """See ``Buffer``: an address, and what frees it."""

    def __init__(self, pointer: int, size: int, free: Callable[[], None]) -> None:
        """Own memory that ``free`` gives back."""
        self.pointer = pointer
        self.size = size
        self._free: Callable[[], None] | None = free

    def close(self) -> None:
        """See ``Buffer.close``."""
        free, self._free = self._free, None
        if free is not None:
            free()


class PinnedMemory(Memory):
    """See ``PinnedBuffer``: the same in the host's memory, seen as an array."""

    def __init__(self, array: NDArray[np.uint8], free: Callable[[], None]) -> None:
        """Own memory that ``free`` gives back."""
        super().__init__(array.ctypes.data, array.nbytes, free)
        self.array = array

    def close(self) -> None:
        """See ``PinnedBuffer.close``."""
        self.array = np.empty(0, np.uint8)  # else a binding's memory lives as long as this array
        super().close()


M = TypeVar("M", Buffer, PinnedBuffer)


class Growing(Generic[M]):
    """Memory that is allocated anew whenever more of it is asked for."""

    def __init__(self, allocate: Callable[[int], M]) -> None:
        """Start without memory; ``allocate`` returns some of a size in bytes."""
        self._allocate: Callable[[int], M] = allocate
        self._memory: M | None = None
        self.size = 0

    def at_least(self, size: int) -> M:
        """Return memory of this many bytes or more; the GPU must have finished with the last one.

        Raises:
            BackendError: If there is not enough memory; the old memory is gone then, too.
        """
        if self._memory is None or self.size < size:
            self.close()  # first, so that both need not fit at the same time
            self._memory = self._allocate(size)
            self.size = size
        return self._memory

    def close(self) -> None:
        """Free it; it can be used again afterwards."""
        memory, self._memory, self.size = self._memory, None, 0
        if memory is not None:
            memory.close()


def array_at(address: int, size: int) -> NDArray[np.uint8]:
    """Return memory of the host as uint8 (size,); its owner must live longer than the array."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
