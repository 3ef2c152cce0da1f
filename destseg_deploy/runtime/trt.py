"""TensorRT back end: runs ``.engine`` on the GPU it was built for, with TensorRT 10, 11 or RTX."""

from __future__ import annotations

import threading
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.errors import BackendError
from destseg_deploy.runtime.base import Prediction, Runtime, check_images, check_open
from destseg_deploy.runtime.device import Device
from destseg_deploy.runtime.device_array import check_arrays, read_array
from destseg_deploy.runtime.open_device import open_device
from destseg_deploy.runtime.trt_engine import TrtEngine, check_file, check_machine
from destseg_deploy.runtime.trt_library import load_library
from destseg_deploy.runtime.trt_plan import GraphPolicy
from destseg_deploy.runtime.trt_pool import SlotPool
from destseg_deploy.runtime.trt_refit import (
    RefitBudget,
    check_answers,
    expected_answers,
    infer_all,
    read_weights,
)
from destseg_deploy.runtime.trt_slot import Slot
from destseg_deploy.spec import ModelSpec

CONTEXTS = 2
"""Slots of a runtime unless told otherwise: what double buffering needs."""


@dataclass(frozen=True)
class _Lease:
    """A slot in use, and the pool it goes back to."""

    pool: SlotPool
    slot: Slot


class TrtRuntime:
    """An engine with several contexts, so that several cameras are served at once.

    Answers of ``infer`` and ``stream`` are copies that belong to the caller. Everything may be
    called from several threads, except ``close``.
    """

    def __init__(
        self,
        path: Path,
        device: str | Device = "cuda",
        *,
        binding: str = "auto",
        contexts: int = CONTEXTS,
        cuda_graph: bool = True,
    ) -> None:
        """Open an engine after checking that it is whole and was made for this machine.

        Args:
            path: The ``.engine`` file; its spec lies beside it.
            device: ``cuda``, ``cuda:<index>``, or an open device, which stays open.
            binding: How CUDA is reached, see ``open_device``; for a name as device only.
            contexts: Calls that run at the same time; each has its own stream and memory.
            cuda_graph: Record a CUDA graph per batch size. Where that fails, ``graph_refusal``
                says why and the engine runs without.

        Raises:
            SpecError: If the spec is missing or another file's, or the engine was made for another
                GPU or TensorRT.
            BackendError: If TensorRT, the GPU or its memory is not there.
        """
        if contexts < 1:
            raise BackendError(f"contexts: {contexts}, expected at least 1.")
        self.spec, record = check_file(path)
        self._path = path
        self._library = load_library(record.builder)
        self._graphs = GraphPolicy(wanted=cuda_graph)
        self._contexts = contexts
        self._refitting = threading.Lock()
        self._retired: list[SlotPool] = []
        with ExitStack() as stack:
            self.device = (
                open_device(device, binding=binding) if isinstance(device, str) else device
            )
            if isinstance(device, str):
                stack.callback(self.device.close)
            check_machine(self.spec, self._library, self.device)
            self._built = self.spec
            self._pool: SlotPool | None = self._open_pool(self._open_engine(self.spec))
            self._owned = stack.pop_all()

    @property
    def graph_refusal(self) -> str | None:
        """Why no CUDA graphs are used although they were wanted; None if they are."""
        return self._graphs.refusal

    def infer(self, images: NDArray[np.uint8]) -> Prediction:
        """Score images; see ``Runtime.infer``."""
        check_open(self._pool, self.spec)
        check_images(images, self.spec)
        return self._infer(self._wait(), images)

    def stream(self, batches: Iterable[NDArray[np.uint8]]) -> Iterator[Prediction]:
        """Score batches one after another, copying the next while the current one is computed.

        With one context there is nothing to overlap. An iterator that is not exhausted keeps a
        context busy until it is closed or collected.

        Args:
            batches: As ``infer`` takes them, each of its own N. One more than has been answered is
                taken from it.

        Yields:
            The answers, in order.

        Raises:
            ShapeError: If a batch is not what the artifact was made for.
            BackendError: If the runtime is closed or the GPU fails.
        """
        running: deque[_Lease] = deque()
        depth = min(2, self._contexts)
        try:
            for images in batches:
                check_open(self._pool, self.spec)
                check_images(images, self.spec)
                while (lease := self._take(wait=not running)) is None:
                    yield self._finish(running.popleft())
                running.append(lease)
                lease.slot.submit(images)
                if len(running) == depth:
                    yield self._finish(running.popleft())
            while running:
                yield self._finish(running.popleft())
        finally:
            for lease in running:
                self._return(lease)

    def infer_into(
        self, images: Any, anomaly_map: Any, score: Any, *, stream: int | None = None
    ) -> None:
        """Score images that lie on the GPU, into arrays there, without a copy; wait for the end.

        All three are objects with ``__dlpack__`` or ``__cuda_array_interface__`` (torch, CuPy,
        cuda.core and others), contiguous, and kept alive here until the call ends. Arrays that
        come back, such as a camera's ring of buffers, get CUDA graphs of their own.

        Args:
            images: uint8 (N, H, W, 3) RGB at ``spec.size``.
            anomaly_map: float32 (N, H, W) at ``spec.map_size``; written.
            score: float32 (N,); written.
            stream: A ``cudaStream_t`` whose work is done first, such as the copy of a frame
                grabber. DLPack's producers and arrays that name a stream need none.

        Raises:
            ShapeError: If an array is not what is expected, not contiguous, misaligned, or
                somewhere else.
            BackendError: If the runtime is closed or the GPU fails.
        """
        check_open(self._pool, self.spec)
        given = {"images": images, "anomaly_map": anomaly_map, "score": score}
        lease = self._wait()
        try:
            handle = lease.slot.stream.handle
            arrays = [read_array(a, name, self.device, handle) for name, a in given.items()]
            batch = check_arrays(arrays, self.spec)
            for foreign in (stream, *(array.stream for array in arrays)):
                if foreign is not None:
                    lease.slot.follow(self.device.foreign_stream(foreign))
            pointers = arrays[0].pointer, arrays[1].pointer, arrays[2].pointer
            lease.slot.run_at(batch, pointers)
        finally:
            self._return(lease)

    def refit(
        self,
        onnx: Path,
        frames: NDArray[np.uint8],
        expected: Prediction | Runtime,
        *,
        budget: RefitBudget | None = None,
    ) -> ModelSpec:
        """Swap another category's weights in, once they are shown to give the right answers.

        The engine is opened a second time and refitted beside the one in use, which goes on
        serving and stays if anything fails; so the memory of both is needed for a moment. Calls
        that run during the swap end with the old weights. The files are left as they are.

        Args:
            onnx: The other category's ``.onnx`` with its spec, exported with the same options.
            frames: uint8 (N, H, W, 3) RGB at ``spec.size``, N at least 2, that differ.
            expected: The answers to them, or a runtime that gives them, such as ``OrtRuntime``
                on that ``.onnx``.
            budget: Largest differences allowed; what the precision can keep, unless given.

        Returns:
            The new spec: category, threshold and checkpoint are the other's.

        Raises:
            SpecError: If the file is no fitting ONNX artifact, or the engine's file has changed.
            BackendError: If the engine was not built for it, or TensorRT or the memory fails.
            ParityError: If the answers differ.
        """
        with self._refitting:
            check_open(self._pool, self.spec)
            content, spec = read_weights(onnx, self.spec)
            wanted = expected_answers(expected, frames, onnx.name)
            self._built.check_artifact(self._path)
            pool = self._open_pool(self._open_engine(spec, content))
            try:
                found = infer_all(partial(self._try, pool), spec, frames)
                limits = budget or RefitBudget.of(spec.precision)
                parity = check_answers(found, wanted, limits, onnx.name)
                spec = replace(spec, parity=parity)
            except BaseException as error:
                traceback.clear_frames(error.__traceback__)  # they keep contexts of the pool
                pool.close()
                raise
            self._swap(pool, spec)
            return spec

    def close(self) -> None:
        """Wait for the GPU and release everything; a second call does nothing."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        with self._owned as stack:
            for each in (*self._retired, pool):
                stack.callback(each.close)

    def _open_engine(self, spec: ModelSpec, weights: bytes | None = None) -> TrtEngine:
        engine = TrtEngine(self._library, self._path.read_bytes(), spec, self.device)
        if weights is not None:
            with self.device.current():
                try:
                    engine.refit(weights)
                except BaseException:
                    engine.close()
                    raise
        return engine

    def _open_pool(self, engine: TrtEngine) -> SlotPool:
        return SlotPool(engine, self.device, self._contexts, self._graphs)

    def _swap(self, pool: SlotPool, spec: ModelSpec) -> None:
        old, self._pool = self._pool, pool
        self.spec = spec
        if old is not None:
            self._retired = [each for each in (*self._retired, old) if not each.ended]
            old.retire()

    def _take(self, *, wait: bool = True) -> _Lease | None:
        """Take a slot of the engine in use, also when it is replaced meanwhile."""
        while True:
            pool = self._pool
            check_open(pool, self.spec)
            assert pool is not None
            slot = pool.take(wait=wait)
            if slot is not None:
                return _Lease(pool, slot)
            if not pool.retired:
                return None

    def _wait(self) -> _Lease:
        lease = self._take()
        assert lease is not None, "waiting always ends with a slot"
        return lease

    def _try(self, pool: SlotPool, images: NDArray[np.uint8]) -> Prediction:
        """Score images with a pool that is not in use yet."""
        check_images(images, self.spec)
        slot = pool.take()
        assert slot is not None, "nobody else takes slots of it"
        return self._infer(_Lease(pool, slot), images)

    def _infer(self, lease: _Lease, images: NDArray[np.uint8]) -> Prediction:
        try:
            lease.slot.submit(images)
            return lease.slot.collect()
        finally:
            self._return(lease)

    def _finish(self, lease: _Lease) -> Prediction:
        try:
            return lease.slot.collect()
        finally:
            self._return(lease)

    @staticmethod
    def _return(lease: _Lease) -> None:
        lease.slot.settle()
        lease.pool.give_back(lease.slot)
