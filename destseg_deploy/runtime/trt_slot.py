"""One of a runtime's places to work: a stream, its buffers, and a plan per batch size.

A slot serves one call at a time. Its memory is for the largest batch, allocated once:

    pinned input ──copy_in──► input ──network──► score | map ──copy_out──► pinned output

Score and map lie in one buffer, so that both come back in one copy.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from contextlib import ExitStack, suppress
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.errors import BackendError
from destseg_deploy.runtime.base import Prediction
from destseg_deploy.runtime.device import Device, Stream
from destseg_deploy.runtime.device_array import ALIGNMENT
from destseg_deploy.runtime.trt_engine import TrtEngine
from destseg_deploy.runtime.trt_plan import GraphPolicy, Plan

KEPT_GRAPHS = 4
"""Graphs kept for callers' own addresses: a camera's ring of a few buffers."""

Addresses = tuple[int, int, int]
"""Where images, map and score lie."""


class Slot:
    """Runs one batch at a time: ``submit``, then ``collect``; or ``run_at`` for callers' memory."""

    def __init__(self, engine: TrtEngine, device: Device, graphs: GraphPolicy) -> None:
        """Allocate everything for the largest batch.

        Raises:
            BackendError: If there is not enough memory; nothing stays allocated then.
        """
        spec = engine.spec
        self._engine, self._device, self._graphs, self._spec = engine, device, graphs, spec
        self._image_bytes = spec.size[0] * spec.size[1] * 3
        self._map_bytes = spec.map_size[0] * spec.map_size[1] * 4
        self._map_offset = -(-spec.max_batch * 4 // ALIGNMENT) * ALIGNMENT
        self._plans: dict[int, Plan] = {}
        self._loose: dict[int, Plan] = {}
        self._fixed: OrderedDict[tuple[int, Addresses], Plan] = OrderedDict()
        self._seen: deque[tuple[int, Addresses]] = deque(maxlen=2 * KEPT_GRAPHS)
        self._batch = 0
        self._pending = False
        with ExitStack() as stack:
            self.stream = _own(stack, device.stream())
            self._input = _own(stack, device.allocate(spec.max_batch * self._image_bytes))
            self._output = _own(stack, device.allocate(self._output_bytes(spec.max_batch)))
            self._scratch = _own(stack, device.allocate(engine.scratch_size))
            self._staged = _own(stack, device.allocate_pinned(self._input.size))
            self._answer = _own(stack, device.allocate_pinned(self._output.size))
            stack.callback(self._close_plans)
            stack.callback(self.settle)
            self._owned: ExitStack | None = stack.pop_all()

    def submit(self, images: NDArray[np.uint8]) -> None:
        """Queue a batch: uint8 (N, H, W, 3), already checked. Nothing is waited for.

        Raises:
            BackendError: If the slot is closed or the GPU refuses.
        """
        self._check_open()
        self._batch = len(images)
        self._pending = True
        size = self._batch * self._image_bytes
        np.copyto(self._staged.array[:size].reshape(images.shape), images)
        with self._device.current():
            if self._batch not in self._plans:
                self._plans[self._batch] = self._make_plan(self._batch)
            plan = self._plans[self._batch]
            plan.launch(lambda: self._queue(plan, self._batch))

    def collect(self) -> Prediction:
        """Wait for what was submitted and return copies of the answers.

        Raises:
            BackendError: If the slot is closed or the GPU failed.
        """
        self._check_open()
        self.stream.synchronize()
        self._pending = False
        height, width = self._spec.map_size
        answer = self._answer.array[: self._output_bytes(self._batch)]
        score = answer[: self._batch * 4].view(np.float32)
        maps = answer[self._map_offset :].view(np.float32).reshape(self._batch, height, width)
        return Prediction(maps.copy(), score.copy())

    def run_at(self, batch: int, addresses: Addresses) -> None:
        """Run a batch that lies on the GPU, into memory there, and wait for it.

        Addresses that come back are recorded as a graph of their own, the latest few of them.

        Raises:
            BackendError: If the slot is closed or the GPU fails.
        """
        self._check_open()
        self._pending = True
        tensors = self._tensors(addresses)
        with self._device.current():
            plan = self._plan_at(batch, addresses)
            plan.launch(lambda: plan.execute(tensors))
        self.stream.synchronize()
        self._pending = False

    def follow(self, stream: Stream) -> None:
        """Let what is queued from now on wait for what another stream has queued so far."""
        event = self._device.event()
        try:
            stream.record(event)
            self.stream.wait(event)
        finally:
            event.close()

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
            with self._device.current():
                owned.close()

    def _queue(self, plan: Plan, batch: int) -> None:
        size, back = batch * self._image_bytes, self._output_bytes(batch)
        base = self._output.pointer
        addresses = (self._input.pointer, base + self._map_offset, base)
        self.stream.copy_in(self._input.pointer, self._staged.array[:size])
        plan.execute(self._tensors(addresses))
        self.stream.copy_out(self._answer.array[:back], base)

    def _plan_at(self, batch: int, addresses: Addresses) -> Plan:
        """Return the plan of these addresses, or one for any addresses that is never recorded."""
        key = batch, addresses
        if key in self._fixed:
            self._fixed.move_to_end(key)
        elif self._graphs.wanted and key in self._seen:
            self._fixed[key] = self._make_plan(batch)
            if len(self._fixed) > KEPT_GRAPHS:
                self._fixed.popitem(last=False)[1].close()
        else:
            self._seen.append(key)
            if batch not in self._loose:
                self._loose[batch] = self._make_plan(batch, GraphPolicy(wanted=False))
            return self._loose[batch]
        return self._fixed[key]

    def _make_plan(self, batch: int, graphs: GraphPolicy | None = None) -> Plan:
        return Plan(self._engine, batch, self.stream, self._scratch, graphs or self._graphs)

    def _tensors(self, addresses: Addresses) -> dict[str, int]:
        names = self._spec.input.name, self._spec.output.map_name, self._spec.output.score_name
        return dict(zip(names, addresses, strict=True))

    def _output_bytes(self, batch: int) -> int:
        return self._map_offset + batch * self._map_bytes

    def _close_plans(self) -> None:
        for plan in (*self._plans.values(), *self._loose.values(), *self._fixed.values()):
            plan.close()
        self._plans.clear()
        self._loose.clear()
        self._fixed.clear()

    def _check_open(self) -> None:
        if self._owned is None:
            raise BackendError(
                f"{self._spec.artifact.file}: the runtime is closed. Load the artifact again."
            )


class _Closable(Protocol):
    def close(self) -> None: ...


C = TypeVar("C", bound=_Closable)


def _own(stack: ExitStack, thing: C) -> C:
    stack.callback(thing.close)
    return thing
