"""One GPU, through whichever CUDA binding is there: memory, streams, events, graphs, kernels.

The slots, the runtimes and the resize kernels are written against these protocols. ``DriverGpu``
implements them with NVIDIA's driver alone; ``torch_device``, ``cuda_core_device`` and
``pycuda_device`` only take the memory from what the process uses already. All work in the GPU's
primary context, so that they share it with whatever else the process does there. ``open_device``
picks one.

Addresses are plain integers. Whoever makes a thing closes it, when the GPU no longer works on it;
closing twice does nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Buffer(Protocol):
    """Memory on the GPU."""

    pointer: int
    size: int
    """In bytes."""

    def close(self) -> None:
        """Free it."""


class PinnedBuffer(Protocol):
    """Page-locked memory of the host, which the GPU copies from and to without waiting."""

    array: NDArray[np.uint8]
    """uint8 (size,), the memory itself; not to be used after ``close``."""

    def close(self) -> None:
        """Free it."""


class Event(Protocol):
    """A moment on a stream."""

    def synchronize(self) -> None:
        """Wait until the moment has come."""

    def close(self) -> None:
        """Free it."""


class Kernel(Protocol):
    """A compiled function of the GPU."""

    def close(self) -> None:
        """Unload it."""


class Graph(Protocol):
    """Work of a stream, recorded to be launched at once."""

    def close(self) -> None:
        """Free it."""


class Stream(Protocol):
    """A queue of work. Nothing here waits but ``synchronize`` and ``close``."""

    handle: int
    """The ``cudaStream_t``, for TensorRT and others."""

    def copy_in(self, pointer: int, source: NDArray[np.uint8]) -> None:
        """Copy a contiguous pinned array of bytes to the GPU."""

    def copy_out(self, target: NDArray[np.uint8], pointer: int) -> None:
        """Copy from the GPU into a contiguous pinned array of bytes."""

    def launch(
        self,
        kernel: Kernel,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Sequence[Any],
    ) -> None:
        """Run a kernel; arguments are ``ctypes`` values (``c_void_p`` for pointers)."""

    def record(self, event: Event) -> None:
        """Let an event stand for what is queued so far."""

    def wait(self, event: Event) -> None:
        """Let what is queued from now on wait for an event."""

    def synchronize(self) -> None:
        """Wait until everything queued is done.

        Raises:
            BackendError: If any of it failed.
        """

    def begin_capture(self) -> None:
        """Record what is queued from now on instead of running it."""

    def end_capture(self) -> Graph:
        """Return what was recorded.

        Raises:
            BackendError: If something queued cannot be recorded.
        """

    def launch_graph(self, graph: Graph) -> None:
        """Queue a recorded graph."""

    def close(self) -> None:
        """Free it, after waiting for its work."""


class Gpu(Protocol):
    """A GPU and its primary context."""

    binding: str
    """``torch``, ``cuda.core``, ``pycuda`` or ``driver``."""
    index: int
    """Its number among the GPUs that the process sees."""
    name: str
    """For example ``NVIDIA H100 80GB HBM3``."""
    sm: str
    """Compute capability, for example ``sm_90``."""

    def current(self) -> AbstractContextManager[None]:
        """Make the context current for a block, then give the thread back its own.

        For the block, graphs that other threads record restrict this thread in nothing.
        Every method here and of what is made here does this itself; TensorRT's calls do not.
        """

    def allocate(self, size: int) -> Buffer:
        """Return memory of a size in bytes, at an address that is a multiple of 256.

        Raises:
            BackendError: If there is not enough.
        """

    def allocate_pinned(self, size: int) -> PinnedBuffer:
        """Return page-locked memory of a size in bytes."""

    def stream(self) -> Stream:
        """Return a new stream that does not wait for the default one."""

    def foreign_stream(self, handle: int) -> Stream:
        """Return a stream that someone else made, a ``cudaStream_t``; it is never freed here."""

    def event(self) -> Event:
        """Return a new event."""

    def compile(self, source: str, name: str, options: Sequence[str] = ()) -> Kernel:
        """Compile CUDA C++ with NVRTC and return its ``extern "C"`` function of that name.

        Raises:
            BackendError: If NVRTC is not there or refuses the source, with its message.
        """

    def holds(self, pointer: int) -> bool:
        """Return whether an address lies in this GPU's memory."""

    def close(self) -> None:
        """Release the context; buffers, streams and events must be closed before."""
