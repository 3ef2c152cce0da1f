"""What competes for latency: each artifact in its back end, and PyTorch in several ways.

``origin`` says where the frames are when the clock starts. From ``host``, a call takes uint8 frames
in host memory at the artifact's input size and ends with map and score in host memory: copies,
preprocessing, networks and image score are inside; decoding and resizing are not, unless the resize
is in the graph. From ``device``, frames and answers stay on the GPU and the call ends when its work
is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from destseg_bench.timing import Call
from destseg_bench.torch_contenders import modes_for, open_device_arrays, open_torch
from destseg_deploy.errors import BackendError
from destseg_deploy.predictor import load
from destseg_deploy.runtime.base import Runtime
from destseg_deploy.spec import ModelSpec

Open = Callable[[NDArray[np.uint8]], AbstractContextManager[Call]]


@dataclass(frozen=True)
class Contender:
    """Something that scores a batch.

    Attributes:
        name: What to call it; unique.
        precision: What it computes in.
        origin: ``host`` or ``device``.
        size: Height and width of its frames.
        open: Given uint8 (N, H, W, 3) frames in host memory, gives a call that scores them and
            returns when the answer is there.
        concurrent: Whether calls may run at the same time; not where they share one buffer.
    """

    name: str
    precision: str
    origin: str
    size: tuple[int, int]
    open: Open
    concurrent: bool = True


def list_contenders(
    artifacts: Sequence[Path], *, device: str, threads: int = 0, compiled: bool = False
) -> list[Contender]:
    """Return the contenders that artifacts give rise to, in their order.

    Args:
        artifacts: ``.safetensors`` (each way in which PyTorch can run it), ``.onnx``, ``.engine``.
        device: ``cpu``, ``cuda`` or ``cuda:<index>``.
        threads: Threads within an operator, of the back ends that take it; 0 for their choice.
        compiled: Let torch.compile compete, too; it takes minutes to compile.

    Raises:
        BackendError: If an artifact is there twice.
        SpecError: If a spec is missing.
    """
    found: list[Contender] = []
    for path in artifacts:
        spec = ModelSpec.read(path)
        if path.suffix == ".safetensors":
            found += _torch_contenders(path, spec, device, compiled)
        else:
            found.append(_host_contender(path, spec, device, threads))
        if path.suffix == ".engine":
            found.append(_device_contender(path, spec, device))
    names = [one.name for one in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise BackendError(f"{min(twice)}: competes twice. Give each artifact once.")
    return found


def _torch_contenders(
    path: Path, spec: ModelSpec, device: str, compiled: bool
) -> Iterator[Contender]:
    for mode in modes_for(device, compiled=compiled):
        opened = partial(open_torch, path, mode, device)
        name, alone = f"PyTorch {mode.name}", mode.kind == "graph" or mode.origin == "device"
        yield Contender(name, mode.precision, mode.origin, spec.size, opened, not alone)


def _host_contender(path: Path, spec: ModelSpec, device: str, threads: int) -> Contender:
    @contextmanager
    def opened(frames: NDArray[np.uint8]) -> Iterator[Call]:
        with load(path, device=device, threads=threads) as predictor:
            yield lambda: predictor.runtime.infer(frames)

    return Contender(path.name, spec.precision, "host", spec.size, opened)


def _device_contender(path: Path, spec: ModelSpec, device: str) -> Contender:
    @contextmanager
    def opened(frames: NDArray[np.uint8]) -> Iterator[Call]:
        with load(path, device=device) as predictor:
            runtime: Runtime = predictor.runtime
            infer_into = getattr(runtime, "infer_into", None)
            if infer_into is None:
                raise BackendError(f"{path.name}: its runtime takes no frames on the device.")
            yield partial(infer_into, *open_device_arrays(frames, spec, device))

    name = f"{path.name}, on the GPU"
    return Contender(name, spec.precision, "device", spec.size, opened, concurrent=False)
