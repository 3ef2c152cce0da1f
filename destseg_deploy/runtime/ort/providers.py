"""What ONNX Runtime is asked for: a provider, its options, and a folder for TensorRT's engines.

Names and values are those of onnxruntime-gpu 1.31, read from its libraries. TF32 is off unless
asked for: it keeps 10 bits of a float32 product, and both the scores and the resize inside a graph
with ``--input-size`` need all of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from destseg_deploy.device import Device
from destseg_deploy.errors import BackendError
from destseg_deploy.files import make_cache_folder
from destseg_deploy.options import OrtOptions
from destseg_deploy.spec import ModelSpec

CPU, CUDA, TENSORRT = (
    "CPUExecutionProvider",
    "CUDAExecutionProvider",
    "TensorrtExecutionProvider",
)
CACHE = ".trt-cache"
"""Folder beside an artifact that holds the engines TensorRT built of it."""

OVERRIDE = "NVIDIA_TF32_OVERRIDE"
"""Environment variable; 0 stops NVIDIA's libraries from using TF32. TensorRT uses TF32 by default,
and ONNX Runtime has no option to turn it off."""

Providers = list[tuple[str, dict[str, str]]]


def choose_provider(device: Device, options: OrtOptions) -> str:
    """Return the name of the provider that must run the graph."""
    if device.kind == "cpu":
        return CPU
    return TENSORRT if options.tensorrt else CUDA


def check_tf32(
    spec: ModelSpec, options: OrtOptions, environment: Mapping[str, str] = os.environ
) -> None:
    """Refuse TF32 where it would change pixels, and TensorRT where it would use it unasked.

    Raises:
        BackendError: With what to change.
    """
    name = spec.artifact.file
    if options.tf32 and spec.size != spec.working_size:
        raise BackendError(
            f"{name}: tf32 would change the pixels, because the graph resizes {spec.size[1]}x"
            f"{spec.size[0]} frames by matrix products that need all bits of float32. Drop tf32."
        )
    if options.tensorrt and not options.tf32 and environment.get(OVERRIDE) != "0":
        raise BackendError(
            f"{name}: TensorRT computes float32 in TF32, and ONNX Runtime has no option against "
            f"it. Set {OVERRIDE}=0 before the program starts, or drop tensorrt, or build an "
            ".engine."
        )


def provider_options(
    device: Device,
    spec: ModelSpec,
    options: OrtOptions,
    cache: Path | None = None,
    *,
    stream: int = 0,
) -> Providers:
    """Return the providers for ``InferenceSession``, first choice first, with their options.

    The CPU provider is not listed for a GPU; ONNX Runtime adds it for what computes shapes.

    Args:
        device: Where the graph is to run.
        spec: Of the artifact; its batch range becomes TensorRT's profile.
        options: See ``OrtOptions``.
        cache: Where TensorRT keeps engines and timings.
        stream: The ``cudaStream_t`` of all runs; 0 for one that ONNX Runtime makes.
    """
    provider = choose_provider(device, options)
    if provider == CPU:
        return [(CPU, {})]
    place = {"device_id": str(device.index)}
    if stream:
        place["user_compute_stream"] = str(stream)
    cuda = {**place, "use_tf32": _flag(options.tf32)}
    if provider == CUDA:
        graph = {"enable_cuda_graph": _flag(options.cuda_graph)}
        return [(CUDA, {**cuda, **graph, "prefer_nhwc": _flag(options.prefer_nhwc)})]
    tensorrt = {
        **place,
        "trt_cuda_graph_enable": _flag(options.cuda_graph),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(cache),
        **_profile(spec),
    }
    return [(TENSORRT, tensorrt), (CUDA, cuda)]


def engine_cache(path: Path, spec: ModelSpec, options: OrtOptions, version: str) -> Path:
    """Make the folder for an artifact's engines; whatever changes the engines changes its name.

    Args:
        path: The artifact.
        spec: Its spec, which holds its hash.
        options: See ``OrtOptions``.
        version: Of ONNX Runtime, which decides the version of TensorRT.

    Raises:
        BackendError: If it cannot be made or written.
    """
    base = options.cache or path.parent / CACHE
    folder = base / f"{spec.artifact.sha256[:12]}-ort{version}{'-tf32' * options.tf32}"
    make_cache_folder(folder, "TensorRT's engines")
    return folder.resolve()


def _profile(spec: ModelSpec) -> dict[str, str]:
    """Return TensorRT's optimization profile: the spec's batch range at the spec's size."""
    height, width = spec.size
    batch = spec.input.batch
    return {
        f"trt_profile_{which}_shapes": f"{spec.input.name}:{images}x{height}x{width}x3"
        for which, images in (("min", batch.min), ("opt", batch.opt), ("max", batch.max))
    }


def _flag(value: bool) -> str:
    return "1" if value else "0"
