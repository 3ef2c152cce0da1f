"""What competes in a speed table: a contender is a row of settings, and one function opens it.

``origin`` says where the frames are when the clock starts. From ``host``, a call takes uint8 frames
in host memory at the artifact's input size and ends with map and score in host memory. Copies,
preprocessing, networks and image score are inside; decoding and resizing are not, unless the resize
is in the graph. From ``device``, frames and answers stay on the GPU, and the call ends when the GPU
has finished.

This module and what it imports are free of torch: a cold start opens contenders by it, and must not
pay for a library that its back end does not need.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from destseg_bench.timing import Call, Contender
from destseg_deploy.errors import BackendError
from destseg_deploy.loading import load
from destseg_deploy.options import OpenVinoOptions, Options, OrtOptions, TorchOptions
from destseg_deploy.predictor import Predictor
from destseg_deploy.spec import ModelSpec

CPU_BACK_ENDS: dict[str, Options] = {
    "pytorch": TorchOptions(),
    "onnxruntime": OrtOptions(),
    "openvino": OpenVinoOptions(),
    "openvino-bf16": OpenVinoOptions(precision="bf16"),
}
"""What the CPU study calls a back end with its precision -> the options that open it."""


def list_contenders(
    artifacts: Sequence[Path], *, device: str, threads: int = 0, compiled: bool = False
) -> list[Contender]:
    """Return the contenders that artifacts give rise to, in their order.

    Args:
        artifacts: ``.safetensors`` (once for each way in which PyTorch can run it), ``.onnx``, and
            ``.engine`` (from the host and from the device).
        device: ``cpu``, ``cuda`` or ``cuda:<index>``.
        threads: See ``Contender``.
        compiled: Let torch.compile compete, too; it takes minutes to compile.

    Raises:
        BackendError: If an artifact is there twice.
        SpecError: If a spec is missing.
    """
    found: list[Contender] = []
    for path in artifacts:
        spec = ModelSpec.read(path)
        name = _name(path, artifacts)
        one = Contender(name, path, spec.precision, spec.size, device=device, threads=threads)
        if path.suffix.lower() == ".safetensors":
            from destseg_bench.speed.torch_contenders import ways_of_torch

            found += ways_of_torch(one, compiled=compiled)
            continue
        found += _ways_of_artifact(one)
    names = [one.name for one in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise BackendError(f"{min(twice)}: competes twice. Give each artifact once.")
    return found


def list_runtimes(
    artifacts: Sequence[Path],
    *,
    device: str,
    threads: int = 0,
    half: Literal["", "fp16", "bf16"] = "",
) -> list[Contender]:
    """Return each artifact in its runtime, as a user opens it.

    Args:
        artifacts: ``.safetensors``, ``.onnx`` or ``.engine``.
        device: ``cpu``, ``cuda`` or ``cuda:<index>``.
        threads: See ``Contender``.
        half: ``fp16`` or ``bf16`` to run each checkpoint in PyTorch's half precision, too.

    Raises:
        SpecError: If a spec is missing.
    """
    found = []
    for path in artifacts:
        spec = ModelSpec.read(path)
        name = _name(path, artifacts)
        one = Contender(name, path, spec.precision, spec.size, device=device, threads=threads)
        found.append(one)
        if half and path.suffix.lower() == ".safetensors":
            name = f"{name}, PyTorch {half}"
            found.append(
                replace(one, name=name, precision=half, options=TorchOptions(precision=half))
            )
    return found


def _name(path: Path, artifacts: Sequence[Path]) -> str:
    """Return an artifact's file name, or its path where two have that name."""
    names = [other.name for other in artifacts]
    return path.name if names.count(path.name) == 1 else path.as_posix()


def _ways_of_artifact(one: Contender) -> list[Contender]:
    """Return an artifact as it is run by default, and on a GPU in the ways that may be faster."""
    found, on_gpu = [one], one.device.startswith("cuda")
    if one.artifact.suffix.lower() == ".onnx" and on_gpu:
        # Not both: with NHWC, ONNX Runtime leaves nodes to the CPU and refuses to record.
        ways = {"CUDA graph": OrtOptions(cuda_graph=True), "NHWC": OrtOptions(prefer_nhwc=True)}
        found += [replace(one, name=f"{one.name}, {k}", options=v) for k, v in ways.items()]
    if on_gpu:
        last = (
            found[-1] if one.artifact.suffix.lower() == ".engine" else found[min(1, len(found) - 1)]
        )
        found.append(replace(last, name=f"{last.name}, on the GPU", origin="device"))
    return found


@contextmanager
def open_contender(one: Contender, frames: NDArray[np.uint8]) -> Iterator[Call]:
    """Give a call that scores frames and returns when the answer is there.

    Args:
        one: What runs.
        frames: uint8 (N, H, W, 3) in host memory, at the contender's size.

    Raises:
        BackendError: If the back end, the device or the compiler is not there.
        SpecError, WeightsError: If the artifact cannot be read.
    """
    if one.torch_way:
        from destseg_bench.speed.torch_contenders import torch_call

        yield torch_call(one, frames)
        return
    with open_runtime(one) as predictor:
        if one.origin == "host":
            yield partial(predictor.runtime.infer, frames)
            return
        infer_into = getattr(predictor.runtime, "infer_into", None)
        if infer_into is None:
            raise BackendError(f"{one.name}: its runtime takes no frames on the device.")
        from destseg_bench.speed.torch_contenders import device_arrays

        yield partial(infer_into, *device_arrays(frames, predictor.spec, one.device))


def open_runtime(one: Contender) -> Predictor:
    """Open a contender's artifact in its runtime; errors are ``open_artifact``'s."""
    options = one.options or options_of(one.artifact, one.back_end, one.threads)
    return load(one.artifact, device=one.device, options=options)


def open_artifact(
    path: Path, back_end: str = "", *, device: str = "cpu", threads: int = 0
) -> Predictor:
    """Open an artifact; every measurement but PyTorch's own ways opens through this function.

    Args:
        path: The file.
        back_end: Key of ``CPU_BACK_ENDS``; empty for the one that the suffix names.
        device: ``cpu``, ``cuda`` or ``cuda:<index>``.
        threads: CPU threads of ONNX Runtime or OpenVINO; 0 for its choice.

    Raises:
        BackendError: If the back end is unknown or not installed, does not run such a file, or the
            device is not there.
        SpecError, WeightsError: If the artifact cannot be read.
    """
    return load(path, device=device, options=options_of(path, back_end, threads))


def options_of(path: Path, back_end: str, threads: int) -> Options | None:
    """Return the options that open an artifact; None for the defaults. See ``open_artifact``."""
    if back_end and back_end not in CPU_BACK_ENDS:
        raise BackendError(f"{back_end}: no back end. Expected one of {', '.join(CPU_BACK_ENDS)}.")
    options = CPU_BACK_ENDS.get(back_end, OrtOptions() if path.suffix.lower() == ".onnx" else None)
    if isinstance(options, OrtOptions | OpenVinoOptions):
        options = replace(options, threads=threads)
    return options
