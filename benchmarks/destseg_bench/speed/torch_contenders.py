"""The ways in which PyTorch can run a checkpoint: what a user has before exporting anything.

``reference`` is the forward pass as the reference computes it: pixels normalised on the host, the
teacher run twice on the same image, both maps brought to the image's size. ``eager`` and
``compiled`` (torch.compile, anew for each batch size) run the served graph of ``models.inference``,
in half precision that of ``models.half``. On a GPU the runtime of ``TorchOptions(precision=...)``
competes, too: the same half graph, recorded as a CUDA graph.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from destseg_bench.timing import Call, Contender
from destseg_deploy.errors import BackendError
from destseg_deploy.models.destseg import DeSTSeg, upsample
from destseg_deploy.models.half import HALVES, half_graph
from destseg_deploy.models.inference import normalize_pixels, served_graph, top_k_mean
from destseg_deploy.models.weights import load_checkpoint
from destseg_deploy.options import TorchOptions
from destseg_deploy.runtime.base import Prediction
from destseg_deploy.spec import ModelSpec
from destseg_deploy.training.precision import pick_device, require_compiler

Graph = Callable[[Tensor], tuple[Tensor, Tensor]]


def ways_of_torch(checkpoint: Contender, *, compiled: bool) -> list[Contender]:
    """Return the ways in which PyTorch runs a checkpoint on its device; the reference comes first.

    Args:
        checkpoint: Artifact and device.
        compiled: Let torch.compile compete, too.
    """

    def way(name: str, precision: str, torch_way: str = "eager") -> Contender:
        name = f"PyTorch {name}"
        return replace(checkpoint, name=name, precision=precision, torch_way=torch_way)

    if checkpoint.device.startswith("cuda"):
        half = "fp16"
        ours = replace(
            way("CUDA graph fp16", half, ""),
            options=TorchOptions(precision="fp16"),
        )
        found = [
            way("reference", "tf32", "reference"),  # PyTorch's default for convolutions
            way("eager fp32", "fp32"),
            way("eager tf32", "tf32"),
            way("eager fp16", half),
            ours,
            replace(ours, name=f"{ours.name}, on the GPU", origin="device"),
        ]
    else:
        half = "bf16"
        found = [way("reference", "fp32", "reference"), way("eager fp32", "fp32")]
        if computes_bf16():
            found.append(way("eager bf16", half))
    if compiled:  # each takes half a minute for each batch size, so the fastest precision alone
        name = half if any(one.precision == half for one in found) else "fp32"
        found.append(way(f"compiled {name}", name, "compiled"))
    return found


def computes_bf16() -> bool:
    """Whether this CPU has instructions for bfloat16; without, PyTorch emulates it slowly."""
    return bool(torch.cpu._is_avx512_bf16_supported())  # torch offers no public way to ask


def torch_call(one: Contender, frames: NDArray[np.uint8]) -> Call:
    """Return a call that scores frames in one of PyTorch's ways and returns a ``Prediction``.

    Args:
        one: A contender with a ``torch_way``.
        frames: uint8 (N, H, W, 3) at the network's size.

    Raises:
        WeightsError, SpecError: If the checkpoint cannot be read.
        BackendError: If the device or the compiler is not there.
    """
    device = pick_device(one.device)
    model, spec = load_checkpoint(one.artifact)
    model = model.eval().to(device)
    if one.torch_way == "reference":
        _check_whole(spec)
        return _in_precision(one, lambda: _reference(model, spec, frames, device))
    graph = _served(model, spec, one, device)
    host = torch.from_numpy(frames)
    if device.type == "cuda":
        host = host.pin_memory()  # pageable memory is copied twice, and the host waits for it
    return _in_precision(one, lambda: _to_host(graph(host.to(device, non_blocking=True))))


def _check_whole(spec: ModelSpec) -> None:
    """Refuse tiles and regions, which the reference's forward pass does not have."""
    if not spec.takes_any_size:
        raise BackendError(
            f"{spec.artifact.file}: its frames are cut into tiles or a region, which the "
            "reference's forward pass does not do. Time a checkpoint without them beside it."
        )


def device_arrays(
    frames: NDArray[np.uint8], spec: ModelSpec, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return tensors on a GPU: the frames, and room for their maps and their scores."""
    images = torch.from_numpy(frames).to(device)
    maps = torch.empty((len(frames), *spec.map_size), device=device)
    return images, maps, torch.empty(len(frames), device=device)


def _in_precision(one: Contender, call: Call) -> Call:
    """Return the call with the contender's switches and without gradients."""
    switches = _Switches(tf32=one.precision == "tf32")

    def run() -> object:
        with torch.inference_mode(), switches.set():
            return call()

    return run


class _Switches:
    """What cuDNN is told for one contender's calls, which may overlap, and is put back behind them.

    The switches belong to the process. Contenders take turns in it, so the first of the calls at
    the same time sets them, and the last puts back what was there before.
    """

    def __init__(self, *, tf32: bool) -> None:
        self._tf32 = tf32
        self._lock = threading.Lock()
        self._calls = 0

    @contextmanager
    def set(self) -> Iterator[None]:
        """Compute so for a block."""
        with self._lock:
            if self._calls == 0:
                cudnn = torch.backends.cudnn
                self._flags = cudnn.flags(enabled=True, benchmark=True, allow_tf32=self._tf32)
                self._flags.__enter__()
            self._calls += 1
        try:
            yield
        finally:
            with self._lock:
                self._calls -= 1
                if self._calls == 0:
                    self._flags.__exit__(None, None, None)


def _reference(
    model: DeSTSeg, spec: ModelSpec, frames: NDArray[np.uint8], device: torch.device
) -> Prediction:
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float()  # (N, 3, H, W)
    image = normalize_pixels(pixels).to(device)
    maps = [upsample(part, torch.Size(spec.network_size)) for part in model(image, image.clone())]
    scores = [top_k_mean(part.squeeze(1), spec.output.top_k) for part in maps]
    # The student-teacher map comes to the host as well, as the reference's does.
    answer, _ = (_to_host((one.squeeze(1), score)) for one, score in zip(maps, scores, strict=True))
    return answer


def _served(model: DeSTSeg, spec: ModelSpec, one: Contender, device: torch.device) -> Graph:
    if one.precision in HALVES:
        graph = half_graph(model, spec, one.precision)
    else:
        graph = served_graph(model, spec)
    graph = graph.to(device)
    if one.torch_way == "compiled":
        require_compiler(device)
        # Not dynamic: Dynamo would give a second batch size a graph for any size, which is slower.
        torch._dynamo.reset()
        graph.compile(dynamic=False)
    return graph


def _to_host(parts: tuple[Tensor, Tensor]) -> Prediction:
    return Prediction(parts[0].cpu().numpy(), parts[1].cpu().numpy())
