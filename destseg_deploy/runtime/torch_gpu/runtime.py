"""PyTorch in half precision on a GPU, in the slots that TensorRT's runtime uses.

What a user has before the first engine: the half network of ``models.fused`` with channels last,
one CUDA graph for each batch size, pinned memory, and two calls on their way at a time.
Frames are resized on the GPU.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from destseg_deploy.device import CUDA, Device
from destseg_deploy.errors import BackendError
from destseg_deploy.models.fused import FusedDeSTSeg, PlainLayers
from destseg_deploy.models.half import HALVES, to_half
from destseg_deploy.models.inference import InferenceGraph, served_graph
from destseg_deploy.models.weights import load_checkpoint
from destseg_deploy.options import TorchOptions
from destseg_deploy.runtime.base import Runtime
from destseg_deploy.runtime.cuda.device import open_device
from destseg_deploy.runtime.cuda.protocols import Buffer, Gpu, Stream
from destseg_deploy.runtime.cuda.runtime import GpuRuntime
from destseg_deploy.runtime.cuda.slots import Addresses, GraphPolicy
from destseg_deploy.runtime.parity import check_runtime, parity_frames
from destseg_deploy.runtime.torch_gpu.layers import GpuLayers
from destseg_deploy.runtime.torch_runtime import PyTorchRuntime, open_checkpoint, switched
from destseg_deploy.spec import ModelSpec

logger = logging.getLogger(__name__)

SLOTS = 2
"""Calls on their way at the same time: what double buffering needs."""

WARMUP = 3
"""Calls before a graph is recorded: they allocate, and cuDNN measures its algorithms."""

Work = Callable[[], None]


class Place(Protocol):
    """Where PyTorch runs: a GPU, or in tests the host."""

    device: torch.device

    def tensor(self, pointer: int, shape: tuple[int, ...], kind: str) -> Tensor:
        """Return memory as a tensor, without a copy; ``kind`` is NumPy's, such as ``|u1``."""

    def layers(self, gpu: Gpu, kind: torch.dtype) -> GpuLayers | PlainLayers:
        """Return what computes between the convolutions in a half type."""

    def run(self, stream: Stream, work: Work) -> None:
        """Queue work on a stream."""

    def record(self, stream: Stream, work: Work) -> tuple[Work, Work]:
        """Record work; return what replays it on the stream, and what frees it.

        Raises:
            BackendError: If it cannot be recorded; the stream then takes plain work again.
        """


class TorchNetwork:
    """The half network; see ``Network``."""

    scratch_size = 0
    """torch allocates what lies between layers, for a graph from a pool of its own."""

    def __init__(
        self, graph: InferenceGraph, spec: ModelSpec, place: Place, options: TorchOptions
    ) -> None:
        """Take a network that lies where it runs."""
        self.spec = spec
        self.policy = GraphPolicy(wanted=options.cuda_graph)
        self.place = place
        self._graph: InferenceGraph | None = graph
        self._tf32 = options.tf32
        # torch's switches belong to the process, and two captures must not overlap.
        self._turn = threading.Lock()

    @property
    def graphs(self) -> bool:
        """See ``Network.graphs``."""
        return self.policy.wanted

    def plan(
        self, batch: int, stream: Stream, scratch: Buffer | None, *, recorded: bool
    ) -> TorchPlan:
        """See ``Network.plan``."""
        return TorchPlan(self, batch, stream, recorded=recorded)

    def work(self, batch: int, addresses: Addresses) -> Work:
        """Return what reads the images of a batch and writes its answers."""
        spec, place, graph = self.spec, self.place, self._graph
        assert graph is not None
        images = place.tensor(addresses.images, (batch, *spec.size, 3), "|u1")
        maps = place.tensor(addresses.anomaly_map, (batch, *spec.map_size), "<f4")
        scores = place.tensor(addresses.score, (batch,), "<f4")

        def work() -> None:
            with torch.inference_mode():
                anomaly_map, score = graph(images)
                maps.copy_(anomaly_map)
                scores.copy_(score)

        return work

    def queue(self, stream: Stream, work: Work) -> None:
        """Queue work, with torch's switches as this network needs them."""
        with self._turn, switched(self.place.device, tf32=self._tf32, benchmark=True):
            self.place.run(stream, work)

    def record(self, stream: Stream, work: Work) -> tuple[Work, Work]:
        """Record work after running it, since first calls allocate and choose algorithms.

        Raises:
            BackendError: As ``Place.record``.
        """
        with self._turn, switched(self.place.device, tf32=self._tf32, benchmark=True):
            for _ in range(WARMUP):
                self.place.run(stream, work)
            stream.synchronize()
            return self.place.record(stream, work)

    def close(self) -> None:
        """Drop the weights."""
        self._graph = None


class TorchPlan:
    """See ``Plan``; a recorded one records at its first launch, when it knows its addresses.

    Where that is refused once, all plans of the network are run plainly from then on.
    """

    def __init__(
        self, network: TorchNetwork, batch: int, stream: Stream, *, recorded: bool
    ) -> None:
        """Prepare nothing yet."""
        self._network = network
        self._batch = batch
        self._stream = stream
        self._recorded = recorded
        self._replay: Work | None = None
        self._free: Work = lambda: None

    def launch(self, addresses: Addresses) -> None:
        """See ``Plan.launch``."""
        if self._replay is None:
            work = self._network.work(self._batch, addresses)
            if self._recorded and self._network.policy.refusal is None:
                self._record(work)
            if self._replay is None:
                self._network.queue(self._stream, work)
                return
        self._replay()

    def _record(self, work: Work) -> None:
        try:
            self._replay, self._free = self._network.record(self._stream, work)
        except BackendError as error:
            self._network.policy.refuse(str(error))

    def close(self) -> None:
        """Free the graph."""
        self._free()
        self._replay, self._free = None, lambda: None


class _Foreign:
    """Memory as torch takes it over without a copy."""

    def __init__(self, pointer: int, shape: tuple[int, ...], kind: str) -> None:
        self.__cuda_array_interface__ = {
            "version": 3,
            "shape": shape,
            "typestr": kind,
            "data": (pointer, False),
            "strides": None,
        }


class CudaPlace:
    """See ``Place``: torch on a GPU."""

    def __init__(self, index: int) -> None:
        """Take a GPU by its number."""
        self.device = torch.device("cuda", index)

    def tensor(self, pointer: int, shape: tuple[int, ...], kind: str) -> Tensor:
        """See ``Place.tensor``."""
        return torch.as_tensor(_Foreign(pointer, shape, kind), device=self.device)

    def layers(self, gpu: Gpu, kind: torch.dtype) -> GpuLayers | PlainLayers:
        """See ``Place.layers``; PyTorch's own, with a warning, without a kernel compiler."""

        def current() -> Stream:
            return gpu.foreign_stream(torch.cuda.current_stream(self.device).cuda_stream)

        try:
            return GpuLayers(gpu, kind, current, self.device)
        except BackendError as error:
            logger.warning("PyTorch's own kernels are used, which costs time: %s", error)
            return PlainLayers(kind)

    def run(self, stream: Stream, work: Work) -> None:
        """See ``Place.run``."""
        with torch.cuda.stream(self._stream(stream)):
            work()

    def record(self, stream: Stream, work: Work) -> tuple[Work, Work]:
        """See ``Place.record``."""
        queue, graph = self._stream(stream), torch.cuda.CUDAGraph()
        # thread_local: what other threads allocate at the same time does not spoil the recording.
        recording = torch.cuda.graph(graph, stream=queue, capture_error_mode="thread_local")
        try:
            # Where its end fails, a recording keeps the stream current; the outer block does not.
            with torch.cuda.stream(queue), recording:
                work()
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise BackendError(f"PyTorch cannot record the network ({reason}).") from None

        def replay() -> None:
            with torch.cuda.stream(queue):
                graph.replay()

        return replay, graph.reset

    def _stream(self, stream: Stream) -> Any:
        return torch.cuda.ExternalStream(stream.handle, device=self.device)  # type: ignore[no-untyped-call]  # torch leaves it untyped


class PyTorchGpuRuntime(GpuRuntime):
    """A checkpoint in half precision on a GPU."""

    def __init__(
        self, path: Path, device: Device = CUDA, options: TorchOptions | None = None
    ) -> None:
        """Open a checkpoint, and compare its answers with float32's before it is used.

        Args:
            path: The checkpoint.
            device: A CUDA GPU.
            options: See ``TorchOptions``; its precision is ``fp16`` or ``bf16``.

        Raises:
            WeightsError, SpecError: If the file cannot be read, or half cannot hold its weights.
            ParityError: If half's answers are too far from float32's.
            BackendError: If the GPU is not there.
        """
        options = options or TorchOptions(precision="fp16")
        model, spec = load_checkpoint(path)
        reference = PyTorchRuntime(model, spec, device)
        frames = parity_frames(spec, options.verify_images)
        with ExitStack() as owned:
            gpu = open_device(device, binding="torch")
            owned.callback(gpu.close)
            place = CudaPlace(device.index)
            half = to_half(model, options.precision)
            layers = place.layers(gpu, HALVES[options.precision])
            owned.callback(layers.close)
            graph = served_graph(FusedDeSTSeg(half, layers), spec).to(place.device)
            graph.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch declares no overload with memory_format
            network = TorchNetwork(
                graph, replace(spec, precision=options.precision), place, options
            )
            super().__init__(network, gpu, SLOTS, owned.pop_all())
        try:
            check_runtime(reference, self, frames)
        except BaseException:
            self.close()
            raise
        finally:
            reference.close()


def open_on_gpu(path: Path, device: Device, options: TorchOptions) -> Runtime:
    """Open a checkpoint: in half precision with our kernels, in float32 as it was trained.

    Raises:
        WeightsError, SpecError, ParityError, BackendError: As the runtime that runs it.
    """
    if options.precision == "fp32":
        return open_checkpoint(path, device, options)
    return PyTorchGpuRuntime(path, device, options)
