"""One batch size at fixed addresses: an execution context and, once warm, its CUDA graph.

Both belong together. A graph replays what its context did, and changing that context afterwards,
be it a shape or an address, makes the replay undefined; so NVIDIA advises one context per captured
graph, all of them sharing their scratch memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from destseg_deploy.errors import BackendError
from destseg_deploy.runtime.device import Buffer, Graph, Stream
from destseg_deploy.runtime.trt_engine import TrtEngine

logger = logging.getLogger(__name__)


class GraphPolicy:
    """Whether CUDA graphs are recorded, and why one could not be."""

    def __init__(self, *, wanted: bool) -> None:
        """Start without a refusal."""
        self.wanted = wanted
        self.refusal: str | None = None

    def refuse(self, reason: str) -> None:
        """Keep the first reason and say it once; plain launches give the same answers, slower."""
        if self.refusal is None:
            self.refusal = reason
            logger.warning("CUDA graphs are not used, which costs some latency: %s", reason)


class Plan:
    """A context and its graph. The device must be current, and the stream idle, for every call."""

    def __init__(
        self, engine: TrtEngine, batch: int, stream: Stream, scratch: Buffer, graphs: GraphPolicy
    ) -> None:
        """Make the context; see ``TrtEngine.context``."""
        self._engine = engine
        self._stream = stream
        self._graphs = graphs
        self._context: Any = engine.context(batch, stream, scratch, own_graphs=graphs.wanted)
        self._addresses: dict[str, int] = {}
        self._graph: Graph | None = None
        self._warm = False

    def execute(self, addresses: Mapping[str, int]) -> None:
        """Queue the network alone."""
        if self._addresses != addresses:
            assert self._graph is None, "the addresses of a recorded plan are fixed"
            self._engine.set_addresses(self._context, addresses)
            self._addresses = dict(addresses)
        self._engine.execute(self._context, self._stream)

    def launch(self, work: Callable[[], None]) -> None:
        """Queue work that calls ``execute``: plainly at first, from the second time on as a graph.

        The first run lets TensorRT finish what it postpones, which must not be recorded. Work must
        be the same each time.
        """
        if self._warm and self._graph is None and self._records():
            self._warm = self._record(work)
        if self._graph is not None:
            self._stream.launch_graph(self._graph)
            return
        work()
        self._warm = True

    def close(self) -> None:
        """Free the graph, then the context."""
        graph, self._graph = self._graph, None
        self._context = None
        if graph is not None:
            graph.close()

    def _records(self) -> bool:
        policy = self._graphs
        return policy.wanted and policy.refusal is None and not self._engine.records_itself

    def _record(self, work: Callable[[], None]) -> bool:
        """Try to record; return whether the context is still warm."""
        try:
            self._graph = record(self._stream, work)
        except BackendError as error:
            self._graphs.refuse(str(error))
            return False
        return True


def record(stream: Stream, work: Callable[[], None]) -> Graph:
    """Record what some work queues on a stream, instead of running it.

    Raises:
        BackendError: If it cannot be recorded; the stream then takes plain work again.
    """
    stream.begin_capture()
    try:
        work()
    except BaseException:
        with suppress(BackendError):
            stream.end_capture().close()
        raise
    return stream.end_capture()
