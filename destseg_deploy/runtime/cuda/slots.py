"""Slots: where a batch is run. A stream, its memory, and a plan for each batch size.

TensorRT and ONNX Runtime share them: each is a ``Network`` that makes plans. A slot serves one call
at a time. Its memory is for the largest batch, allocated once:

    pinned input ──copy_in──► input ──plan──► score | map ──copy_out──► pinned output

Score and map lie in one buffer, so that both come back in one copy. Frames of other sizes take the
way through ``frames.SlotFrames`` into the same input.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.environment import allowed_cores
from destseg_deploy.errors import BackendError
from destseg_deploy.runtime.base import Prediction, check_open
from destseg_deploy.runtime.cuda.arrays import ALIGNMENT
from destseg_deploy.runtime.cuda.protocols import Buffer, Gpu, Stream
from destseg_deploy.runtime.tracebacks import letting_go
from destseg_deploy.spec import ModelSpec

logger = logging.getLogger(__name__)

KEPT_GRAPHS = 4
"""Graphs kept for callers' own addresses: a camera's ring of a few buffers."""

LARGE = 2**21
"""Bytes from which several threads copy: one alone would take as long as the GPU computes."""
COPIERS = 4

Images = NDArray[np.uint8] | Sequence[NDArray[np.uint8]]
"""uint8 (N, H, W, 3), or a sequence of (H, W, 3)."""


class Addresses(NamedTuple):
    """Where the three tensors of a call lie on the GPU."""

    images: int
    anomaly_map: int
    score: int


class Plan(Protocol):
    """One batch size, ready to run as often as wanted."""

    def launch(self, addresses: Addresses) -> None:
        """Queue the network on the slot's stream; the GPU is current and the stream idle before it.

        Args:
            addresses: Always the same ones for a plan that is recorded.

        Raises:
            BackendError: If the GPU refuses.
        """

    def close(self) -> None:
        """Free it; nothing of it may be queued any more."""


class Network(Protocol):
    """An opened artifact: a TensorRT engine or a session of ONNX Runtime."""

    @property
    def spec(self) -> ModelSpec:
        """The artifact's contract."""

    @property
    def graphs(self) -> bool:
        """Whether CUDA graphs are wanted."""

    @property
    def scratch_size(self) -> int:
        """Bytes of GPU memory that a slot lends to its plans; 0 if they bring their own."""

    def plan(self, batch: int, stream: Stream, scratch: Buffer | None, *, recorded: bool) -> Plan:
        """Make a plan; the GPU is current and the stream idle.

        Args:
            batch: Images per call.
            stream: The slot's, where the plan queues its work.
            scratch: The slot's memory for what lies between layers. Plans of a slot share it,
                because no two of them run at the same time.
            recorded: Record a CUDA graph and replay it. Its addresses never change then.

        Raises:
            BackendError: If it cannot be made.
        """

    def close(self) -> None:
        """Release it, after all plans; the GPU is current."""


class GraphPolicy:
    """Whether CUDA graphs are recorded, and why one could not be."""

    def __init__(self, *, wanted: bool) -> None:
        """Start without a refusal."""
        self.wanted = wanted
        self.refusal: str | None = None

    def refuse(self, reason: str) -> None:
        """Keep the first reason and log it once; plain launches give the same answers, slower."""
        if self.refusal is None:
            self.refusal = reason
            logger.warning("CUDA graphs are not used, which costs some latency: %s", reason)


class Slot:
    """Runs one batch at a time: ``submit``, then ``collect``; or ``run_at`` for callers' memory."""

    def __init__(self, network: Network, gpu: Gpu, copiers: Executor | None = None) -> None:
        """Allocate everything for the largest batch.

        Args:
            network: What is run.
            gpu: Where it runs.
            copiers: Copies large batches in the host's memory; this thread alone unless given.

        Raises:
            BackendError: If there is not enough memory; nothing stays allocated then.
        """
        self._network, self._gpu, self._spec = network, gpu, network.spec
        self._copiers = copiers
        spec = network.spec
        self._image_bytes = spec.size[0] * spec.size[1] * 3
        self._map_bytes = spec.map_size[0] * spec.map_size[1] * 4
        self._map_offset = -(-spec.max_batch * 4 // ALIGNMENT) * ALIGNMENT
        self._plans: OrderedDict[tuple[int, Addresses | None], Plan] = OrderedDict()
        self._seen: deque[tuple[int, Addresses]] = deque(maxlen=2 * KEPT_GRAPHS)
        self._pending = False
        with ExitStack() as stack:
            self.stream = _own(stack, gpu.stream())
            self._input = _own(stack, gpu.allocate(spec.max_batch * self._image_bytes))
            self._output = _own(stack, gpu.allocate(self._output_bytes(spec.max_batch)))
            self._scratch = (
                _own(stack, gpu.allocate(network.scratch_size)) if network.scratch_size else None
            )
            self._staged = _own(stack, gpu.allocate_pinned(self._input.size))
            self._answer = _own(stack, gpu.allocate_pinned(self._output.size))
            stack.callback(self._close_plans)
            stack.callback(self.settle)
            self._owned: ExitStack | None = stack.pop_all()
        base = self._output.pointer
        self.addresses = Addresses(self._input.pointer, base + self._map_offset, base)

    def submit(self, images: Images) -> None:
        """Queue a batch: uint8 (N, H, W, 3), already checked. Nothing is waited for.

        Raises:
            BackendError: If the slot is closed or the GPU refuses.
        """
        self.begin()
        self.stage(images)
        self.launch(len(images))
        self.fetch(len(images))

    def collect(self, batch: int) -> Prediction:
        """Wait for the batch that was submitted and return copies of the answers.

        Raises:
            BackendError: If the slot is closed or the GPU failed.
        """
        height, width = self._spec.map_size
        score = self.wait(batch)
        answer = self._answer.array[self._map_offset : self._output_bytes(batch)]
        maps = answer.view(np.float32).reshape(batch, height, width)
        copied = np.empty_like(maps)
        self._copy(copied, maps)
        return Prediction(copied, score)

    def begin(self) -> None:
        """Note that work is queued from now on, so that ``settle`` waits for it."""
        check_open(self._owned, self._spec)
        self._pending = True

    def stage(self, images: Images) -> None:
        """Copy images of the input's size to pinned memory and queue their copy to the input."""
        size = len(images) * self._image_bytes
        staged = self._staged.array[:size].reshape(len(images), *self._spec.size, 3)
        self._copy(staged, images)
        self.stream.copy_in(self.addresses.images, self._staged.array[:size])

    def launch(self, batch: int, addresses: Addresses | None = None) -> None:
        """Queue the network on a batch, at the slot's own addresses unless others are given."""
        where = addresses or self.addresses
        with self._gpu.current(), letting_go():
            self._plan(batch, where).launch(where)

    def fetch(self, batch: int, *, maps: bool = True) -> None:
        """Queue the copy of the answers to pinned memory: scores, and the maps unless unwanted."""
        size = self._output_bytes(batch) if maps else batch * 4
        self.stream.copy_out(self._answer.array[:size], self.addresses.score)

    def wait(self, batch: int) -> NDArray[np.float32]:
        """Wait for all that is queued; return a copy of the scores, float32 (N,).

        Raises:
            BackendError: If the slot is closed or the GPU failed.
        """
        check_open(self._owned, self._spec)
        self.stream.synchronize()
        self._pending = False
        return self._answer.array[: batch * 4].view(np.float32).copy()

    def run_at(self, batch: int, addresses: Addresses) -> None:
        """Run a batch that lies on the GPU, into memory there, and wait for it.

        Addresses that come back are recorded as a graph of their own, the latest few of them.

        Raises:
            BackendError: If the slot is closed or the GPU fails.
        """
        self.begin()
        self.launch(batch, addresses)
        self.stream.synchronize()
        self._pending = False

    def settle(self) -> None:
        """Wait for what an interrupted call has left queued, without caring how it ends."""
        if self._pending:
            with suppress(BackendError):
                self.stream.synchronize()
        self._pending = False

    def close(self) -> None:
        """Wait, then free everything; a second call does nothing."""
        owned, self._owned = self._owned, None
        if owned is not None:
            with self._gpu.current():
                owned.close()

    def _copy(self, target: NDArray[Any], source: Any) -> None:
        """Copy a batch in the host's memory, image by image."""
        together = self._copiers if target.nbytes >= LARGE else None
        for _ in (map if together is None else together.map)(np.copyto, target, source):
            pass

    def _plan(self, batch: int, addresses: Addresses) -> Plan:
        """Return the plan of these addresses, or one for any addresses that is never recorded.

        Foreign addresses are recorded when they come a second time: what comes once would pay for
        a graph and never use it.
        """
        key: tuple[int, Addresses | None] = batch, addresses
        recorded = self._network.graphs and (
            addresses == self.addresses or key in self._plans or key in self._seen
        )
        if not recorded:
            self._seen.append((batch, addresses))
            key = batch, None
        if key not in self._plans:
            self._plans[key] = self._network.plan(
                batch, self.stream, self._scratch, recorded=recorded
            )
            self._drop_oldest()
        self._plans.move_to_end(key)
        return self._plans[key]

    def _drop_oldest(self) -> None:
        """Close the plan of foreign addresses that was used longest ago, if there are too many."""
        foreign = [key for key in self._plans if key[1] not in (None, self.addresses)]
        if len(foreign) > KEPT_GRAPHS:
            self._plans.pop(foreign[0]).close()

    def _output_bytes(self, batch: int) -> int:
        return self._map_offset + batch * self._map_bytes

    def _close_plans(self) -> None:
        while self._plans:
            self._plans.popitem()[1].close()


class SlotPool:
    """Lends slots, one to each call; as many calls run at the same time as there are slots."""

    def __init__(self, network: Network, gpu: Gpu, count: int) -> None:
        """Make the slots.

        Raises:
            BackendError: If there is not enough memory; nothing stays allocated then.
        """
        self._spec = network.spec
        self._process = os.getpid()  # of the threads that copy, and of the GPU's context
        self._changed = threading.Condition()
        with ExitStack() as stack:
            copiers = None
            if (threads := min(COPIERS, len(allowed_cores()))) > 1:
                copiers = stack.enter_context(ThreadPoolExecutor(threads, "copy"))
            self.slots = [_own(stack, Slot(network, gpu, copiers)) for _ in range(count)]
            self._owned: ExitStack | None = stack.pop_all()
        self._idle = list(self.slots)

    def take(self) -> Slot:
        """Wait for a slot and lend it: the one used last if it is free, whose graphs are warm.

        Raises:
            BackendError: If the pool is closed, or was opened before a fork.
        """
        check_open(self._owned, self._spec, self._process)
        with self._changed:
            while not self._idle:
                self._changed.wait()
            return self._idle.pop()

    def take_idle(self) -> Slot | None:
        """Lend a slot, or return None if none is free.

        Raises:
            BackendError: If the pool is closed, or was opened before a fork.
        """
        check_open(self._owned, self._spec, self._process)
        with self._changed:
            return self._idle.pop() if self._idle else None

    def give_back(self, slot: Slot) -> None:
        """Take a slot back, after waiting for what an interrupted call has left on it."""
        slot.settle()
        with self._changed:
            self._idle.append(slot)
            self._changed.notify()

    def close(self) -> None:
        """Free all slots, lent or not; a second call does nothing."""
        owned, self._owned = self._owned, None
        if owned is not None:
            owned.close()


def follow(gpu: Gpu, stream: Stream, other: Stream) -> None:
    """Let what a stream gets from now on wait for what another one has queued so far."""
    event = gpu.event()
    try:
        other.record(event)
        stream.wait(event)
    finally:
        event.close()  # the driver keeps it until the wait is over


class _Closable(Protocol):
    def close(self) -> None: ...


C = TypeVar("C", bound=_Closable)


def _own(stack: ExitStack, thing: C) -> C:
    stack.callback(thing.close)
    return thing
