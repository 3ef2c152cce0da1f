"""Streams, events, graphs and kernels of the CUDA driver: ``Stream`` and its kin of ``device``.

They take handles and make the context current for each call, so any thread may use them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.errors import BackendError, ShapeError
from destseg_deploy.runtime.cuda_driver import Driver
from destseg_deploy.runtime.device import Event, Graph, Kernel

NON_BLOCKING = 1
"""Flag of a stream: it does not wait for the default stream, nor that for it."""
NO_TIMING = 2
"""Flag of an event: it is cheaper and tells no time."""
THREAD_LOCAL = 1
"""Mode of a capture: what other threads do at the same time, such as allocate, spoils nothing."""


@dataclass(frozen=True)
class Place:
    """Where the driver's calls go: a driver, and how a context is made current."""

    driver: Driver
    current: Callable[[], AbstractContextManager[None]]

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the driver within the context."""
        with self.current():
            self.driver.call(name, *arguments)

    def get(self, name: str, *arguments: Any) -> int:
        """Call one that returns a handle within the context."""
        with self.current():
            return self.driver.get(name, *arguments)


class Handle:
    """One thing of the driver's, destroyed once."""

    def __init__(self, place: Place, handle: int, destroy: str) -> None:
        """Own a handle and know the function that destroys it."""
        self.place = place
        self._handle: int | None = handle
        self._destroy = destroy

    @property
    def value(self) -> int:
        """The handle.

        Raises:
            BackendError: If it was closed.
        """
        if self._handle is None:
            raise BackendError(f"CUDA: used after {self._destroy}. Close things last.")
        return self._handle

    def close(self) -> None:
        """Destroy it; a second call does nothing."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self.place.call(self._destroy, handle)


class DriverEvent(Handle):
    """See ``Event``."""

    def __init__(self, place: Place, *, timing: bool) -> None:
        """Make one."""
        handle = place.get("cuEventCreate", 0 if timing else NO_TIMING)
        super().__init__(place, handle, "cuEventDestroy_v2")

    def synchronize(self) -> None:
        """See ``Event.synchronize``."""
        self.place.call("cuEventSynchronize", self.value)

    def milliseconds_since(self, earlier: Event) -> float:
        """See ``Event.milliseconds_since``."""
        assert isinstance(earlier, DriverEvent)
        found = ctypes.c_float()
        self.place.call("cuEventElapsedTime", ctypes.byref(found), earlier.value, self.value)
        return found.value


class DriverGraph(Handle):
    """See ``Graph``."""

    def __init__(self, place: Place, recorded: int) -> None:
        """Make what was recorded ready to be launched; the recording itself is destroyed."""
        try:
            handle = place.get("cuGraphInstantiateWithFlags", recorded, 0)
        finally:
            place.call("cuGraphDestroy", recorded)
        super().__init__(place, handle, "cuGraphExecDestroy")


class DriverKernel(Handle):
    """See ``Kernel``."""

    def __init__(self, place: Place, image: bytes, name: str) -> None:
        """Load a cubin and find one function in it."""
        super().__init__(place, place.get("cuModuleLoadData", image), "cuModuleUnload")
        try:
            self.function = place.get("cuModuleGetFunction", self.value, name.encode())
        except BackendError:
            self.close()
            raise


class DriverStream:
    """See ``Stream``."""

    def __init__(self, place: Place, handle: int | None = None) -> None:
        """Make a stream, or stand for somebody else's, which is never destroyed here."""
        self._place = place
        self._own: Handle | None = None
        if handle is None:
            handle = place.get("cuStreamCreate", NON_BLOCKING)
            self._own = Handle(place, handle, "cuStreamDestroy_v2")
        self.handle = handle

    def copy_in(self, pointer: int, source: NDArray[np.uint8]) -> None:
        """See ``Stream.copy_in``."""
        address = _address(source)
        self._place.call("cuMemcpyHtoDAsync_v2", pointer, address, source.nbytes, self.handle)

    def copy_out(self, target: NDArray[np.uint8], pointer: int) -> None:
        """See ``Stream.copy_out``."""
        address = _address(target)
        self._place.call("cuMemcpyDtoHAsync_v2", address, pointer, target.nbytes, self.handle)

    def copy(self, target: int, source: int, size: int) -> None:
        """See ``Stream.copy``."""
        self._place.call("cuMemcpyDtoDAsync_v2", target, source, size, self.handle)

    def launch(
        self,
        kernel: Kernel,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Sequence[Any],
    ) -> None:
        """See ``Stream.launch``."""
        assert isinstance(kernel, DriverKernel)
        values = list(arguments)  # must live until the driver has read them
        addresses = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        shared_memory = 0
        self._place.call(
            "cuLaunchKernel",
            kernel.function,
            *grid,
            *block,
            shared_memory,
            self.handle,
            addresses,
            None,
        )

    def record(self, event: Event) -> None:
        """See ``Stream.record``."""
        assert isinstance(event, DriverEvent)
        self._place.call("cuEventRecord", event.value, self.handle)

    def wait(self, event: Event) -> None:
        """See ``Stream.wait``."""
        assert isinstance(event, DriverEvent)
        self._place.call("cuStreamWaitEvent", self.handle, event.value, 0)

    def synchronize(self) -> None:
        """See ``Stream.synchronize``."""
        self._place.call("cuStreamSynchronize", self.handle)

    def begin_capture(self) -> None:
        """See ``Stream.begin_capture``."""
        self._place.call("cuStreamBeginCapture_v2", self.handle, THREAD_LOCAL)

    def end_capture(self) -> Graph:
        """See ``Stream.end_capture``."""
        recorded = ctypes.c_void_p(0)
        self._place.call("cuStreamEndCapture", self.handle, ctypes.byref(recorded))
        return DriverGraph(self._place, recorded.value or 0)

    def launch_graph(self, graph: Graph) -> None:
        """See ``Stream.launch_graph``."""
        assert isinstance(graph, DriverGraph)
        self._place.call("cuGraphLaunch", graph.value, self.handle)

    def close(self) -> None:
        """See ``Stream.close``."""
        own, self._own = self._own, None
        if own is None:
            return
        try:
            self.synchronize()
        finally:
            own.close()


def _address(array: NDArray[np.uint8]) -> int:
    if array.dtype != np.uint8 or not array.flags.c_contiguous:
        raise ShapeError(
            f"copy: expected contiguous uint8, got {array.dtype} with strides {array.strides}. "
            "Pass a slice of a PinnedBuffer's array."
        )
    return int(array.ctypes.data)
