"""The ways in which PyTorch can run a checkpoint: what a user has before exporting anything.

``reference`` is the forward pass as the reference computes it: pixels normalised on the host, the
teacher run twice on the same image, both maps brought to the image's size. All others are the
served graph (``models.inference``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from destseg_bench.timing import Call
from destseg_deploy.models.destseg import DeSTSeg, upsample
from destseg_deploy.models.inference import InferenceGraph, normalize_pixels, top_k_mean
from destseg_deploy.models.weights import load_checkpoint
from destseg_deploy.spec import ModelSpec
from destseg_deploy.training.compiling import require_compiler
from destseg_deploy.training.place import pick_device

HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Mode:
    """One way to run a checkpoint.

    Attributes:
        name: What to call it.
        precision: ``fp32``, ``tf32``, ``fp16`` or ``bf16``; halves by autocast, channels last.
        origin: See ``contenders``.
        kind: ``reference``, ``eager``, ``compiled`` (torch.compile) or ``graph`` (a CUDA graph).
    """

    name: str
    precision: str
    origin: str = "host"
    kind: str = "eager"


def modes_for(device: str, *, compiled: bool) -> list[Mode]:
    """Return the ways that a device has; the reference comes first."""
    if device.startswith("cuda"):
        modes = [
            Mode("reference", "tf32", kind="reference"),  # PyTorch's default for convolutions
            Mode("eager fp32", "fp32"),
            Mode("eager tf32", "tf32"),
            Mode("eager fp16", "fp16"),
            Mode("CUDA graph fp16", "fp16", kind="graph"),
            Mode("CUDA graph fp16, on the GPU", "fp16", "device", "graph"),
        ]
        half = "fp16"
    else:
        modes = [Mode("reference", "fp32", kind="reference"), Mode("eager fp32", "fp32")]
        half = "bf16"
        if torch.cpu._is_avx512_bf16_supported():  # torch offers no public way to ask
            modes.append(Mode("eager bf16", half))
    if compiled:
        modes.append(Mode("compiled fp32", "fp32", kind="compiled"))
        if any(mode.precision == half for mode in modes):
            modes.append(Mode(f"compiled {half}", half, kind="compiled"))
    return modes


@contextmanager
def open_torch(path: Path, mode: Mode, device: str, frames: NDArray[np.uint8]) -> Iterator[Call]:
    """Give a call that scores frames in one of the ways.

    Args:
        path: The checkpoint.
        mode: How to run it.
        device: Where.
        frames: uint8 (N, H, W, 3) at the network's size.

    Raises:
        WeightsError, SpecError: If the checkpoint cannot be read.
        BackendError: If the device or the compiler is not there.
    """
    place = pick_device(device)
    model, spec = load_checkpoint(path)
    model = model.eval().to(place)
    if mode.kind == "reference":
        yield _guarded(mode, place, lambda: _reference(model, spec, frames, place))
        return
    graph: Callable[[Tensor], tuple[Tensor, Tensor]] = _served(model, spec, mode, place)
    host = torch.from_numpy(frames)
    if mode.kind == "graph":
        graph = _captured(graph, host.to(place), mode, place)
    if mode.origin == "device":
        there = host.to(place)
        yield _guarded(mode, place, lambda: _wait(graph(there), place))
    else:
        yield _guarded(mode, place, lambda: _to_host(graph(host.to(place))))


def open_device_arrays(
    frames: NDArray[np.uint8], spec: ModelSpec, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return frames, and room for maps and scores, as tensors on a GPU."""
    place = pick_device(device)
    images = torch.from_numpy(frames).to(place)
    maps = torch.empty((len(frames), *spec.map_size), device=place)
    return images, maps, torch.empty(len(frames), device=place)


def _served(
    model: DeSTSeg, spec: ModelSpec, mode: Mode, place: torch.device
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    graph = InferenceGraph(model, network_size=spec.network_size, top_k=spec.output.top_k)
    graph = graph.to(place)
    if mode.precision in HALVES:
        graph = graph.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its stub
    if mode.kind == "compiled":
        require_compiler(place)
        graph.compile()
    return graph


def _guarded(mode: Mode, place: torch.device, call: Call) -> Call:
    """Return the call in its precision, without gradients, whatever was set before."""
    half = HALVES.get(mode.precision)
    tf32 = mode.precision == "tf32"

    def run() -> object:
        with (
            torch.inference_mode(),
            torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=tf32),
            torch.autocast(place.type, half, enabled=half is not None),
        ):
            return call()

    return run


def _reference(
    model: DeSTSeg, spec: ModelSpec, frames: NDArray[np.uint8], place: torch.device
) -> Any:
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    image = normalize_pixels(pixels).to(place)
    maps = [upsample(part, torch.Size(spec.network_size)) for part in model(image, image.clone())]
    scores = [top_k_mean(part.squeeze(1), spec.output.top_k) for part in maps]
    return _to_host((*maps, *scores))


def _captured(
    graph: Callable[[Tensor], tuple[Tensor, Tensor]],
    static: Tensor,
    mode: Mode,
    place: torch.device,
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Record the work of a batch as a CUDA graph; replaying it reads ``static``."""
    run = _guarded(mode, place, lambda: graph(static))
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        answer: Any = run()

    def replay(images: Tensor) -> tuple[Tensor, Tensor]:
        static.copy_(images)
        recorded.replay()
        return answer[0], answer[1]

    return replay


def _to_host(parts: tuple[Tensor, ...]) -> list[Tensor]:
    return [part.cpu() for part in parts]


def _wait(parts: tuple[Tensor, ...], place: torch.device) -> tuple[Tensor, ...]:
    torch.cuda.synchronize(place)
    return parts
