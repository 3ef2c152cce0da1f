"""Streams, events, graphs and kernels of the CUDA driver; see ``protocols``.

Each call makes the context current first, so any thread may use them.
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
from destseg_deploy.runtime.cuda.driver import THREAD_LOCAL, Driver
from destseg_deploy.runtime.cuda.protocols import Event, Graph, Kernel

NON_BLOCKING = 1
"""Flag of a stream: it does not wait for the default stream, nor that for it."""
NO_TIMING = 2
"""Flag of an event: it is cheaper and tells no time."""


@dataclass(frozen=True)
class ContextCalls:
    """Calls of the driver, each within one context."""

    driver: Driver
    current: Callable[[], AbstractContextManager[None]]

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function; see ``Driver.call``."""
        with self.current():
            self.driver.call(name, *arguments)

    def get(self, name: str, *arguments: Any) -> int:
        """Call a function that returns a handle; see ``Driver.get``."""
        with self.current():
            return self.driver.get(name, *arguments)


class Handle:
    """One thing that the driver made, destroyed once."""

    def __init__(self, calls: ContextCalls, handle: int, destroy: str) -> None:
        """Own a handle and know the function that destroys it."""
        self.calls = calls
        self._handle: int | None = handle
        self._destroy = destroy

    @property
    def value(self) -> int:
        """The handle.

        Raises:
            BackendError: If it was closed.
        """
        if self._handle is None:
            raise BackendError(f"CUDA: used after {self._destroy}. Close it after its last use.")
        return self._handle

    def close(self) -> None:
        """Destroy it; a second call does nothing."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self.calls.call(self._destroy, handle)


class DriverEvent(Handle):
    """See ``Event``."""

    def __init__(self, calls: ContextCalls) -> None:
        """Make one."""
        super().__init__(calls, calls.get("cuEventCreate", NO_TIMING), "cuEventDestroy_v2")

    def synchronize(self) -> None:
        """See ``Event.synchronize``."""
        self.calls.call("cuEventSynchronize", self.value)


class DriverGraph(Handle):
    """See ``Graph``."""

    def __init__(self, calls: ContextCalls, recorded: int) -> None:
        """Make what was recorded ready to be launched; the recording itself is destroyed."""
        try:
            handle = calls.get("cuGraphInstantiateWithFlags", recorded, 0)
        finally:
            calls.call("cuGraphDestroy", recorded)
        super().__init__(calls, handle, "cuGraphExecDestroy")


class DriverKernel(Handle):
    """See ``Kernel``."""

    def __init__(self, calls: ContextCalls, image: bytes, name: str) -> None:
        """Load a cubin and find one function in it."""
        super().__init__(calls, calls.get("cuModuleLoadData", image), "cuModuleUnload")
        try:
            self.function = calls.get("cuModuleGetFunction", self.value, name.encode())
        except BackendError:
            self.close()
            raise


class DriverStream:
    """See ``Stream``."""

    def __init__(self, calls: ContextCalls, handle: int | None = None) -> None:
        """Make a stream, or stand for one that someone else made, which is never destroyed here."""
        self._calls = calls
        self._own: Handle | None = None
        if handle is None:
            handle = calls.get("cuStreamCreate", NON_BLOCKING)
            self._own = Handle(calls, handle, "cuStreamDestroy_v2")
        self.handle = handle

    def copy_in(self, pointer: int, source: NDArray[np.uint8]) -> None:
        """See ``Stream.copy_in``."""
        address = _address(source)
        self._calls.call("cuMemcpyHtoDAsync_v2", pointer, address, source.nbytes, self.handle)

    def copy_out(self, target: NDArray[np.uint8], pointer: int) -> None:
        """See ``Stream.copy_out``."""
        address = _address(target)
        self._calls.call("cuMemcpyDtoHAsync_v2", address, pointer, target.nbytes, self.handle)

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
        self._calls.call(
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
        self._calls.call("cuEventRecord", event.value, self.handle)

    def wait(self, event: Event) -> None:
        """See ``Stream.wait``."""
        assert isinstance(event, DriverEvent)
        self._calls.call("cuStreamWaitEvent", self.handle, event.value, 0)

    def synchronize(self) -> None:
        """See ``Stream.synchronize``."""
        self._calls.call("cuStreamSynchronize", self.handle)

    def begin_capture(self) -> None:
        """See ``Stream.begin_capture``."""
        self._calls.call("cuStreamBeginCapture_v2", self.handle, THREAD_LOCAL)

    def end_capture(self) -> Graph:
        """See ``Stream.end_capture``."""
        recorded = ctypes.c_void_p(0)
        self._calls.call("cuStreamEndCapture", self.handle, ctypes.byref(recorded))
        return DriverGraph(self._calls, recorded.value or 0)

    def launch_graph(self, graph: Graph) -> None:
        """See ``Stream.launch_graph``."""
        assert isinstance(graph, DriverGraph)
        self._calls.call("cuGraphLaunch", graph.value, self.handle)

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
