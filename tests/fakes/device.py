"""A GPU made of host memory, for tests of all code that runs on a ``Gpu``.

Work is queued, and done only when someone waits for it, so that a forgotten ``synchronize`` shows.
Addresses are checked against what is allocated, when work is queued and again when it is done.
Memory is noise between guards, which are checked when it is freed; freed memory is spoilt and kept
until the GPU is closed, to see that no one writes to it. Everything alive is counted, every call
recorded, and any call can be told to fail.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.errors import BackendError
from destseg_deploy.runtime.cuda.memory import array_at
from destseg_deploy.runtime.cuda.protocols import Event, Graph, Kernel

Grid = tuple[int, int, int]
HostKernel = Callable[[Grid, Grid, Sequence[Any]], None]
"""Called with grid, block and the arguments, which are ``ctypes`` values."""
Compiler = Callable[[str, str, Sequence[str]], HostKernel]
"""Called with source, name and options."""


class FakeKernel:
    """See ``Kernel``."""

    def __init__(self, device: FakeDevice, name: str, function: HostKernel) -> None:
        """Stand for a function of the host."""
        self.name, self.function = name, function
        self._device = device
        device.live.append(self)

    def close(self) -> None:
        """See ``Kernel.close``."""
        self._device.forget("unload", self)


class FakeEvent:
    """See ``Event``."""

    def __init__(self, device: FakeDevice) -> None:
        """Not recorded yet."""
        device.note("event")
        self._device = device
        self.moment: tuple[FakeStream, int] | None = None
        device.live.append(self)

    def synchronize(self) -> None:
        """See ``Event.synchronize``."""
        self._device.note("event.synchronize")
        if self.moment:
            stream, position = self.moment
            stream.run(position)

    def close(self) -> None:
        """See ``Event.close``."""
        self._device.forget("event.close", self)


@dataclass(frozen=True)
class Work:
    """One piece of queued work: its name, and what does it."""

    name: str
    do: Callable[[], None]


class FakeGraph:
    """See ``Graph``."""

    def __init__(self, device: FakeDevice, work: Sequence[Work]) -> None:
        """Hold recorded work."""
        self.work = tuple(work)
        self._device = device
        device.live.append(self)

    def close(self) -> None:
        """See ``Graph.close``."""
        self._device.forget("graph.close", self)


class FakeStream:
    """See ``Stream``."""

    def __init__(self, device: FakeDevice) -> None:
        """Start empty."""
        device.note("stream")
        self._device = device
        self._queue: list[Work] = []
        self._done = 0
        self._capture: list[Work] | None = None
        self.handle = id(self)
        self.launches: list[tuple[str, Grid, Grid]] = []
        device.live.append(self)

    def copy_in(self, pointer: int, source: NDArray[np.uint8]) -> None:
        """See ``Stream.copy_in``."""
        self._copy("copy_in", pointer, self._device.pinned(source), source.nbytes)

    def copy_out(self, target: NDArray[np.uint8], pointer: int) -> None:
        """See ``Stream.copy_out``."""
        self._copy("copy_out", self._device.pinned(target), pointer, target.nbytes)

    def grab(self, target: int, source: int, size: int) -> None:
        """Copy within the GPU, as a frame grabber that fills an array there."""
        self._copy("grab", target, source, size)

    def launch(
        self,
        kernel: Kernel,
        grid: Grid,
        block: Grid,
        arguments: Sequence[Any],
    ) -> None:
        """See ``Stream.launch``."""
        assert isinstance(kernel, FakeKernel)
        assert kernel in self._device.live, "launched after close"
        assert 1 <= grid[0] < 2**31
        assert all(1 <= side <= 65535 for side in grid[1:])
        assert np.prod(block) <= 1024
        kept = list(arguments)
        self.launches.append((kernel.name, grid, block))
        self.queue("launch", lambda: kernel.function(grid, block, kept))

    def record(self, event: Event) -> None:
        """See ``Stream.record``."""
        assert isinstance(event, FakeEvent)
        self.queue("record", lambda: None)
        event.moment = self, self._done + len(self._queue)

    def wait(self, event: Event) -> None:
        """See ``Stream.wait``."""
        assert isinstance(event, FakeEvent)
        moment = event.moment
        self.queue("wait", lambda: moment[0].run(moment[1]) if moment else None)

    def synchronize(self) -> None:
        """See ``Stream.synchronize``."""
        self._device.note("synchronize", self._device.number(self))
        self._refuse_while_recording()
        self.run(self._done + len(self._queue))

    def begin_capture(self) -> None:
        """See ``Stream.begin_capture``."""
        self._device.note("begin_capture")
        self._refuse_while_recording()
        self._capture = []

    def end_capture(self) -> Graph:
        """See ``Stream.end_capture``."""
        work, self._capture = self._capture, None
        self._device.note("end_capture")
        if work is None:
            raise BackendError("CUDA: end_capture without begin_capture.")
        return FakeGraph(self._device, work)

    def launch_graph(self, graph: Graph) -> None:
        """See ``Stream.launch_graph``."""
        assert isinstance(graph, FakeGraph)
        assert graph in self._device.live, "a closed graph is launched"

        def replay() -> None:
            for work in graph.work:
                work.do()

        self.queue("launch_graph", replay)

    def close(self) -> None:
        """See ``Stream.close``."""
        if self in self._device.live:
            self.run(self._done + len(self._queue))
            self._device.forget("stream.close", self)

    def queue(self, name: str, do: Callable[[], None]) -> None:
        """Queue a piece of work under a name, or record it."""
        self._device.note(name, self._device.number(self))
        assert self in self._device.live, f"{name} on a closed stream"
        if self._capture is not None:
            self._capture.append(Work(name, do))
        else:
            self._queue.append(Work(name, do))

    @property
    def pending(self) -> int:
        """Return how many pieces of work nobody has waited for."""
        return len(self._queue)

    def run(self, position: int) -> None:
        """Do what is queued up to a position counted from the stream's first piece of work."""
        with self._device.lock:  # else a second thread would go on before the first has finished
            while self._queue and self._done < position:
                work = self._queue.pop(0)
                self._done += 1
                self._device.done.append((work.name, self._device.number(self)))
                work.do()

    def _copy(self, name: str, target: int, source: int, size: int) -> None:
        device = self._device
        if name != "copy_in":
            device.check_address(source, size)
        if name != "copy_out":
            device.check_address(target, size)

        def do() -> None:
            device.check_any(target, size)
            device.check_any(source, size)
            array_at(target, size)[:] = array_at(source, size)

        self.queue(name, do)

    def _refuse_while_recording(self) -> None:
        if self._capture is not None:
            self._capture = None
            raise BackendError("CUDA: operation not permitted when stream is capturing")


class BorrowedStream:
    """See ``Gpu.foreign_stream``: everything of the stream's but its end."""

    def __init__(self, stream: FakeStream) -> None:
        """Stand for a stream."""
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        """Return what the stream has."""
        return getattr(self._stream, name)

    def close(self) -> None:
        """Leave it open."""


ALIGNMENT = 256
"""Bytes; what the real one aligns to."""
GUARD = 8192
NOISE = 0xA5


class FakeMemory:
    """See ``Buffer``."""

    noted = "allocate", "free"

    def __init__(self, device: FakeDevice, size: int) -> None:
        """Take host memory, aligned between guards, or as it comes where there are none."""
        device.note(self.noted[0], size)
        guard = device.guard
        self._storage = np.full(size + 2 * guard + (ALIGNMENT if guard else 0), NOISE, np.uint8)
        start = -(self._storage.ctypes.data + guard) % ALIGNMENT + guard if guard else 0
        self.array = self._storage[start : start + size]
        self.pointer = int(self._storage.ctypes.data) + start
        self.size = size
        self._device = device
        device.live.append(self)

    def close(self) -> None:
        """See ``Buffer.close``: spoil it, each piece in its own way, and keep it aside."""
        if self in self._device.live:
            self.array = np.empty(0, np.uint8)
            self._inside()[:] = NOISE
            assert (self._storage == NOISE).all(), (
                f"written outside of a buffer of {self.size} bytes"
            )
            self._device.freed.append(self)
            self._spoilt = 1 + len(self._device.freed) % 150
            self._storage[:] = self._spoilt
            self._device.forget(self.noted[1], self)

    def untouched(self) -> bool:
        """Whether no one has written to it since it was freed."""
        return bool((self._storage == self._spoilt).all())

    def _inside(self) -> NDArray[np.uint8]:
        return array_at(self.pointer, self.size)


class FakePinned(FakeMemory):
    """See ``PinnedBuffer``."""

    noted = "allocate_pinned", "free_pinned"


@dataclass
class FakeDevice:
    """See ``Gpu``.

    Attributes:
        compiler: What ``compile`` calls; without one, no kernel compiles.
        guard: Bytes before and after each piece of memory; 0 for an address sanitizer.
        fail_at: The call, counted from 0, that fails with a ``BackendError``; None for no call.
        fail_on: Names of calls that always fail.
        calls: Every call so far: its name and its number, such as a size or a stream's number.
        done: Every piece of work that was done so far: its name and its stream's number.
        live: What was made and not closed.
        freed: Memory that was made and closed.
    """

    name: str = "NVIDIA Fake GPU"
    sm: str = "sm_90"
    index: int = 0
    compiler: Compiler | None = None
    guard: int = GUARD
    fail_at: int | None = None
    fail_on: set[str] = field(default_factory=set)
    calls: list[tuple[str, int]] = field(default_factory=list)
    done: list[tuple[str, int]] = field(default_factory=list)
    live: list[Any] = field(default_factory=list)
    freed: list[FakeMemory] = field(default_factory=list)
    closed: bool = False
    binding: str = "fake"

    def __post_init__(self) -> None:
        """Prepare what is no argument."""
        self.lock = threading.RLock()
        self._here = threading.local()
        self._streams: list[FakeStream] = []

    @contextmanager
    def current(self) -> Iterator[None]:
        """See ``Gpu.current``."""
        self._here.depth = self.depth() + 1
        try:
            yield
        finally:
            self._here.depth -= 1

    def depth(self) -> int:
        """Return how often the context is current in the calling thread; 0 means it is not."""
        return int(getattr(self._here, "depth", 0))

    def allocate(self, size: int) -> FakeMemory:
        """See ``Gpu.allocate``."""
        return FakeMemory(self, size)

    def allocate_pinned(self, size: int) -> FakePinned:
        """See ``Gpu.allocate_pinned``."""
        return FakePinned(self, size)

    def stream(self) -> FakeStream:
        """See ``Gpu.stream``."""
        stream = FakeStream(self)
        self._streams.append(stream)
        return stream

    def foreign_stream(self, handle: int) -> BorrowedStream:
        """See ``Gpu.foreign_stream``; the handle must be one of this device's streams."""
        return BorrowedStream(self.stream_of(handle))

    def event(self) -> FakeEvent:
        """See ``Gpu.event``."""
        return FakeEvent(self)

    def compile(self, source: str, name: str, options: Sequence[str] = ()) -> FakeKernel:
        """See ``Gpu.compile``."""
        self.note("compile")
        if self.compiler is None:
            raise BackendError("NVRTC: the library is not on this machine.")
        return FakeKernel(self, name, self.compiler(source, name, options))

    def holds(self, pointer: int) -> bool:
        """See ``Gpu.holds``."""
        return self._holder(pointer, 1) is not None

    def close(self) -> None:
        """See ``Gpu.close``."""
        assert not self.live, f"closed before {self.live}"
        assert all(memory.untouched() for memory in self.freed), "written to after it was freed"
        self.freed.clear()
        self.closed = True

    def note(self, name: str, number: int = 0) -> None:
        """Record a call; fail if it is its turn.

        Raises:
            BackendError: If it is.
        """
        with self.lock:
            assert not self.closed, f"{name} after close"
            self.calls.append((name, number))
            if len(self.calls) - 1 == self.fail_at or name in self.fail_on:
                raise BackendError(f"CUDA: {name} was told to fail")

    def forget(self, name: str, thing: object) -> None:
        """Record the end of something; a second end is no call. Ends never fail."""
        with self.lock:
            if thing in self.live:
                self.live.remove(thing)
                self.calls.append((name, 0))

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
        assert self._holder(address, array.nbytes, pinned=True), "a copy from or to pageable memory"
        return address

    def check_address(self, pointer: int, size: int) -> None:
        """Make sure that so many bytes from an address on belong to one living buffer."""
        assert self._holder(pointer, size), f"no buffer holds {size} bytes at {pointer}"

    def check_any(self, pointer: int, size: int) -> None:
        """Make sure that bytes belong to a living buffer or to living pinned memory."""
        assert self._holder(pointer, size) or self._holder(pointer, size, pinned=True)

    def _holder(self, pointer: int, size: int, *, pinned: bool = False) -> object:
        """Return what is alive and holds this many bytes from an address on."""
        with self.lock:
            for thing in self.live:
                if isinstance(thing, FakeMemory) and isinstance(thing, FakePinned) == pinned:
                    end = thing.pointer + thing.size
                    if thing.pointer <= pointer and pointer + size <= end:
                        return thing
        return None
