"""A GPU made of host memory, for tests of whatever runs on a ``Device``.

Work is queued and done no earlier than somebody waits for it, so that a forgotten ``synchronize``
shows. Addresses are checked against what is allocated, when work is queued and again when it is
done. Everything alive is counted, every call recorded, and any call can be told to fail.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.errors import BackendError
from destseg_deploy.runtime.device_fake_stream import (
    BorrowedStream,
    FakeEvent,
    FakeKernel,
    FakeStream,
    HostKernel,
)

ALIGNMENT = 256
"""Bytes; what the real one aligns to."""


class FakeMemory:
    """See ``Buffer``."""

    def __init__(self, device: FakeDevice, size: int) -> None:
        """Take aligned host memory."""
        device.note("allocate", size)
        self._storage = np.full(size + ALIGNMENT, 0xAA, np.uint8)
        start = -self._storage.ctypes.data % ALIGNMENT
        self.pointer = int(self._storage.ctypes.data) + start
        self.size = size
        self._device = device
        device.live.append(self)

    def close(self) -> None:
        """See ``Buffer.close``."""
        self._device.forget("free", self)


class FakePinned:
    """See ``PinnedBuffer``."""

    def __init__(self, device: FakeDevice, size: int) -> None:
        """Take host memory."""
        device.note("allocate_pinned", size)
        self.array = np.full(size, 0xAA, np.uint8)
        self.pointer = int(self.array.ctypes.data)
        self.size = size
        self._device = device
        device.live.append(self)

    def close(self) -> None:
        """See ``PinnedBuffer.close``; whoever kept the array sees it spoilt."""
        self.array[:] = 0xDD
        self._device.forget("free_pinned", self)


@dataclass
class FakeDevice:
    """See ``Device``.

    Attributes:
        kernels: What ``compile`` finds by name.
        fail_at: The call, counted from 0, that fails with a ``BackendError``; None for no call.
        fail_on: Names of calls that always fail.
        calls: Every call so far: its name and its number, such as a size or a stream's number.
        done: Every piece of work that was done so far: its name and its stream's number.
        live: What was made and not closed.
    """

    name: str = "NVIDIA Fake GPU"
    sm: str = "sm_90"
    index: int = 0
    kernels: Mapping[str, HostKernel] = field(default_factory=dict)
    fail_at: int | None = None
    fail_on: set[str] = field(default_factory=set)
    calls: list[tuple[str, int]] = field(default_factory=list)
    done: list[tuple[str, int]] = field(default_factory=list)
    live: list[Any] = field(default_factory=list)
    closed: bool = False
    binding: str = "fake"

    def __post_init__(self) -> None:
        """Prepare what is no argument."""
        self._lock = threading.RLock()
        self._here = threading.local()
        self._time = 0
        self._streams: list[FakeStream] = []

    def activate(self) -> None:
        """See ``Device.activate``."""
        self._here.depth = self.depth() + 1

    @contextmanager
    def current(self) -> Iterator[None]:
        """See ``Device.current``."""
        self._here.depth = self.depth() + 1
        try:
            yield
        finally:
            self._here.depth -= 1

    def depth(self) -> int:
        """Return how often the context is current in the calling thread; 0 means it is not."""
        return int(getattr(self._here, "depth", 0))

    def allocate(self, size: int) -> FakeMemory:
        """See ``Device.allocate``."""
        return FakeMemory(self, size)

    def allocate_pinned(self, size: int) -> FakePinned:
        """See ``Device.allocate_pinned``."""
        return FakePinned(self, size)

    def stream(self) -> FakeStream:
        """See ``Device.stream``."""
        stream = FakeStream(self)
        self._streams.append(stream)
        return stream

    def foreign_stream(self, handle: int) -> BorrowedStream:
        """See ``Device.foreign_stream``; the handle must be one of this device's streams."""
        return BorrowedStream(self.stream_of(handle))

    def event(self, *, timing: bool = False) -> FakeEvent:
        """See ``Device.event``."""
        return FakeEvent(self, timing=timing)

    def compile(self, source: str, name: str, options: Sequence[str] = ()) -> FakeKernel:
        """See ``Device.compile``; the source is not read, the function comes from ``kernels``."""
        self.note("compile")
        if name not in self.kernels:
            raise BackendError(f"NVRTC: no function {name!r}")
        return FakeKernel(self, self.kernels[name])

    def holds(self, pointer: int) -> bool:
        """See ``Device.holds``."""
        return self._holder(pointer, 1, FakeMemory) is not None

    def close(self) -> None:
        """See ``Device.close``."""
        assert not self.live, f"closed before {self.live}"
        self.closed = True

    def note(self, name: str, number: int = 0) -> None:
        """Record a call; fail if it is its turn.

        Raises:
            BackendError: If it is.
        """
        with self._lock:
            assert not self.closed, f"{name} after close"
            self.calls.append((name, number))
            if len(self.calls) - 1 == self.fail_at or name in self.fail_on:
                raise BackendError(f"CUDA: {name} was told to fail")

    def forget(self, name: str, thing: object) -> None:
        """Record the end of something; a second end is no call. Ends never fail."""
        with self._lock:
            if thing in self.live:
                self.live.remove(thing)
                self.calls.append((name, 0))

    def tick(self) -> int:
        """Return a time that grows with each call."""
        with self._lock:
            self._time += 1
            return self._time

    def number(self, stream: FakeStream) -> int:
        """Return which of the streams made so far one is."""
        return self._streams.index(stream)

    def stream_of(self, handle: int) -> FakeStream:
        """Return the living stream of a handle."""
        found = [stream for stream in self._streams if stream.handle == handle]
        assert found, f"no stream has the handle {handle}"
        assert found[0] in self.live, f"the stream of handle {handle} is closed"
        return found[0]

    def pinned(self, array: NDArray[np.uint8]) -> int:
        """Return the address of an array, which must be contiguous and lie in pinned memory."""
        assert array.dtype == np.uint8
        assert array.flags.c_contiguous
        address = int(array.ctypes.data)
        assert self._holder(address, array.nbytes, FakePinned), "a copy from or to pageable memory"
        return address

    def check_address(self, pointer: int, size: int) -> None:
        """Make sure that so many bytes from an address on belong to one living buffer."""
        assert self._holder(pointer, size, FakeMemory), f"no buffer holds {size} bytes at {pointer}"

    def check_any(self, pointer: int, size: int) -> None:
        """Make sure that bytes belong to a living buffer or to living pinned memory."""
        assert self._holder(pointer, size, FakeMemory) or self._holder(pointer, size, FakePinned)

    def _holder(self, pointer: int, size: int, kind: type[FakeMemory | FakePinned]) -> object:
        """Return what is alive, of a kind, and holds so many bytes from an address on."""
        with self._lock:
            for thing in self.live:
                if isinstance(thing, kind):
                    end = thing.pointer + thing.size
                    if thing.pointer <= pointer and pointer + size <= end:
                        return thing
        return None
