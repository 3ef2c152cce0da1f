"""Tensors of a graph bound to memory: addresses of the caller's, or lanes kept on the GPU.

ONNX Runtime's Python hands out no pinned memory for a built-in provider, so ``Lane.load`` copies
from pageable memory. For large frames, upload through ``gpu_frames`` and use ``infer_into``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.errors import BackendError
from destseg_deploy.runtime.base import Prediction
from destseg_deploy.runtime.ort_options import Place
from destseg_deploy.spec import ModelSpec

Pointers = tuple[int, int, int]
"""Addresses of images, maps and scores."""

GRAPH_ID = "gpu_graph_id"
"""Run option that tells CUDA graphs apart; ONNX Runtime keeps 0 for itself, -1 records none."""

MAX_GRAPHS = 64
"""CUDA graphs kept at most; each holds memory on the GPU until ``close``."""


class Bindings:
    """Binds the tensors of one session."""

    def __init__(self, ort: Any, session: Any, spec: ModelSpec, place: Place) -> None:
        """Take an open session of the module ``onnxruntime`` and what is known of its graph."""
        self.ort = ort
        self.place = place
        self._session = session
        self._spec = spec

    def tensors(self, batch: int) -> list[tuple[str, type[np.generic], tuple[int, ...]]]:
        """Return name, type and shape of images, maps and scores."""
        output = self._spec.output
        return [
            (self._spec.input.name, np.uint8, (batch, *self._spec.size, 3)),
            (output.map_name, np.float32, (batch, *self._spec.map_size)),
            (output.score_name, np.float32, (batch,)),
        ]

    def at(self, batch: int, pointers: Pointers) -> Any:
        """Bind memory of the caller's, which must stay until the run is over."""
        binding = self._session.io_binding()
        memory = self.place.memory, self.place.index
        bind = (binding.bind_input, binding.bind_output, binding.bind_output)
        for call, (name, dtype, shape), pointer in zip(
            bind, self.tensors(batch), pointers, strict=True
        ):
            call(name, *memory, dtype, shape, pointer)
        return binding

    def lane(self, batch: int) -> Lane:
        """Take memory for a batch on the place's device, and bind it."""
        memory = self.place.memory, self.place.index
        values = [
            self.ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, *memory)
            for _, dtype, shape in self.tensors(batch)
        ]
        binding = self._session.io_binding()
        names = [name for name, _, _ in self.tensors(batch)]
        binding.bind_ortvalue_input(names[0], values[0])
        binding.bind_ortvalue_output(names[1], values[1])
        binding.bind_ortvalue_output(names[2], values[2])
        return Lane(binding, *values)


class Lane:
    """Memory on the GPU for batches of one size, bound once."""

    def __init__(self, binding: Any, images: Any, anomaly_map: Any, score: Any) -> None:
        """Keep a binding and the values that it binds."""
        self.binding = binding
        self._images = images
        self._map = anomaly_map
        self._score = score

    def load(self, images: NDArray[np.uint8]) -> None:
        """Copy images there; they may be reused at once."""
        self._images.update_inplace(np.ascontiguousarray(images))

    def read(self) -> Prediction:
        """Copy the answers back, into arrays of the caller's."""
        return Prediction(np.array(self._map.numpy()), np.array(self._score.numpy()))


class LanePool:
    """Lends lanes, one to each call; there come to be as many as calls at the same time."""

    def __init__(self, bindings: Bindings) -> None:
        """Start without lanes; they are made as batches come."""
        self._bindings = bindings
        self._idle: dict[int, list[Lane]] = {}
        self._lock = threading.Lock()

    @contextmanager
    def lend(self, batch: int) -> Iterator[Lane]:
        """Lend a lane; one whose call failed is not used again."""
        with self._lock:
            idle = self._idle.setdefault(batch, [])
            lane = idle.pop() if idle else None
        lane = lane or self._bindings.lane(batch)
        yield lane
        with self._lock:
            idle.append(lane)


class CudaGraphs:
    """Numbers for CUDA graphs: one for each binding's memory, since a graph replays addresses.

    Not for calls at the same time: a session that records graphs runs one call after the other.
    """

    def __init__(self, ort: Any) -> None:
        """Start without graphs; ONNX Runtime records one at the first run of each number."""
        self._ort = ort
        self._numbers = count(1)
        self._options: dict[object, Any] = {}

    def run_options(self, memory: object) -> Any:
        """Return the options for a run in some memory: a lane, or batch and addresses.

        Raises:
            BackendError: If there are ``MAX_GRAPHS`` already.
        """
        if memory not in self._options:
            if len(self._options) == MAX_GRAPHS:
                raise BackendError(
                    f"cuda_graph: {MAX_GRAPHS} graphs are recorded, one for each set of arrays. "
                    "Reuse the arrays that you pass, or open the artifact without cuda_graph."
                )
            options = self._ort.RunOptions()
            options.add_run_config_entry(GRAPH_ID, str(next(self._numbers)))
            self._options[memory] = options
        return self._options[memory]
