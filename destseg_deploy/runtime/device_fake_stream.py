"""Streams, events, graphs and kernels of the fake GPU: work waits until somebody waits for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.errors import BackendError
from destseg_deploy.runtime.device import Event, Graph, Kernel
from destseg_deploy.runtime.device_driver import array_at

if TYPE_CHECKING:
    from destseg_deploy.runtime.device_fake import FakeDevice

HostKernel = Callable[..., None]
"""Called with grid, block and the values of the arguments, addresses as integers."""


class FakeKernel:
    """See ``Kernel``."""

    def __init__(self, device: FakeDevice, function: HostKernel) -> None:
        """Stand for a function of the host."""
        self.function = function
        self._device = device
        device.live.append(self)

    def close(self) -> None:
        """See ``Kernel.close``."""
        self._device.forget("unload", self)


class FakeEvent:
    """See ``Event``; time is counted in pieces of work, one a millisecond."""

    def __init__(self, device: FakeDevice, *, timing: bool) -> None:
        """Not recorded yet."""
        device.note("event")
        self._device = device
        self._timing = timing
        self.moment: tuple[FakeStream, int] | None = None
        self.time = 0
        device.live.append(self)

    def synchronize(self) -> None:
        """See ``Event.synchronize``."""
        self._device.note("event.synchronize")
        if self.moment:
            stream, position = self.moment
            stream.run(position)

    def milliseconds_since(self, earlier: Event) -> float:
        """See ``Event.milliseconds_since``."""
        assert isinstance(earlier, FakeEvent)
        if not (self._timing and earlier._timing):
            raise BackendError("CUDA: an event made without timing tells no time.")
        return float(self.time - earlier.time)

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
        device.live.append(self)

    def copy_in(self, pointer: int, source: NDArray[np.uint8]) -> None:
        """See ``Stream.copy_in``."""
        self._copy("copy_in", pointer, self._device.pinned(source), source.nbytes)

    def copy_out(self, target: NDArray[np.uint8], pointer: int) -> None:
        """See ``Stream.copy_out``."""
        self._copy("copy_out", self._device.pinned(target), pointer, target.nbytes)

    def copy(self, target: int, source: int, size: int) -> None:
        """See ``Stream.copy``."""
        self._copy("copy", target, source, size)

    def launch(
        self,
        kernel: Kernel,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Sequence[Any],
    ) -> None:
        """See ``Stream.launch``."""
        assert isinstance(kernel, FakeKernel)
        assert kernel in self._device.live
        values = [argument.value for argument in arguments]
        self.queue("launch", lambda: kernel.function(grid, block, *values))

    def record(self, event: Event) -> None:
        """See ``Stream.record``."""
        assert isinstance(event, FakeEvent)
        self.queue("record", lambda: setattr(event, "time", self._device.tick()))
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

    def run(self, position: int) -> None:
        """Do what is queued up to a position counted from the stream's first piece of work."""
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
    """See ``Device.foreign_stream``: everything of the stream's but its end."""

    def __init__(self, stream: FakeStream) -> None:
        """Stand for a stream."""
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        """Return what the stream has."""
        return getattr(self._stream, name)

    def close(self) -> None:
        """Leave it open."""
