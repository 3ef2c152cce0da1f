"""A GPU through the driver alone: no package is needed, and the other bindings build on it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.errors import BackendError
from destseg_deploy.runtime.cuda_driver import Driver
from destseg_deploy.runtime.cuda_queue import DriverEvent, DriverKernel, DriverStream, Place
from destseg_deploy.runtime.device import Buffer, Event, Kernel, PinnedBuffer, Stream
from destseg_deploy.runtime.nvrtc import Nvrtc


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


class PinnedMemory:
    """See ``PinnedBuffer``: an array, and what frees it."""

    def __init__(self, array: NDArray[np.uint8], free: Callable[[], None]) -> None:
        """Own memory that ``free`` gives back."""
        self.array = array
        self._free: Callable[[], None] | None = free

    def close(self) -> None:
        """See ``PinnedBuffer.close``."""
        free, self._free = self._free, None
        if free is not None:
            self.array = np.empty(0, np.uint8)
            free()


class DriverDevice:
    """See ``Device``. Subclasses take memory from another binding and change nothing else."""

    binding = "driver"

    def __init__(self, index: int = 0, driver: Driver | None = None) -> None:
        """Open a GPU's primary context.

        Args:
            index: Which of the GPUs that the process sees.
            driver: The driver's library; that of this machine unless given.

        Raises:
            BackendError: If there is no driver or no such GPU.
        """
        self.driver = driver or Driver.open(f"cuda:{index}")
        if not index < (count := self.driver.count()):
            raise BackendError(
                f"device 'cuda:{index}': the driver sees {count} GPU{'s' * (count != 1)}, numbered "
                "from 0. See nvidia-smi, and CUDA_VISIBLE_DEVICES."
            )
        self.index = index
        self._ordinal = self.driver.get("cuDeviceGet", index)
        self.name = self.driver.name(self._ordinal)
        self.sm = self.driver.sm(self._ordinal)
        self._context: int | None = self.driver.get("cuDevicePrimaryCtxRetain", self._ordinal)
        self.place = Place(self.driver, self.current)

    def activate(self) -> None:
        """See ``Device.activate``."""
        self.driver.call("cuCtxSetCurrent", self.context)

    @property
    def context(self) -> int:
        """The primary context's handle.

        Raises:
            BackendError: If the device is closed.
        """
        if self._context is None:
            raise BackendError(f"device 'cuda:{self.index}': closed. Open it again.")
        return self._context

    @contextmanager
    def current(self) -> Iterator[None]:
        """See ``Device.current``."""
        with self.driver.within(self.context), self._scope():
            yield

    def allocate(self, size: int) -> Buffer:
        """See ``Device.allocate``."""
        pointer = self.place.get("cuMemAlloc_v2", size)
        return Memory(pointer, size, lambda: self.place.call("cuMemFree_v2", pointer))

    def allocate_pinned(self, size: int) -> PinnedBuffer:
        """See ``Device.allocate_pinned``."""
        address = self.place.get("cuMemAllocHost_v2", size)
        array = array_at(address, size)
        return PinnedMemory(array, lambda: self.place.call("cuMemFreeHost", address))

    def stream(self) -> Stream:
        """See ``Device.stream``."""
        return DriverStream(self.place)

    def foreign_stream(self, handle: int) -> Stream:
        """See ``Device.foreign_stream``."""
        return DriverStream(self.place, handle)

    def event(self, *, timing: bool = False) -> Event:
        """See ``Device.event``."""
        return DriverEvent(self.place, timing=timing)

    def compile(self, source: str, name: str, options: Sequence[str] = ()) -> Kernel:
        """See ``Device.compile``."""
        image = Nvrtc.open().compile(source, self.sm, options)
        return DriverKernel(self.place, image, name)

    def holds(self, pointer: int) -> bool:
        """See ``Device.holds``."""
        with self.current():
            return self.driver.owner(pointer) == self._ordinal

    def close(self) -> None:
        """See ``Device.close``."""
        context, self._context = self._context, None
        if context is not None:
            self.driver.call("cuDevicePrimaryCtxRelease_v2", self._ordinal)

    def _scope(self) -> AbstractContextManager[None]:
        """Return what else must hold while the context is current, for a binding with a stack."""
        return nullcontext()


def array_at(address: int, size: int) -> NDArray[np.uint8]:
    """Return memory of the host as uint8 (size,); whoever owns it must outlive the array."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
