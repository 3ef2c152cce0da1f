"""What ONNX Runtime is asked for: a provider, its options, and a folder for TensorRT's engines.

Names and values are those of onnxruntime-gpu 1.31, read from its libraries. TF32 is off unless
asked for: it keeps 10 bits of a float32 product, and both the scores and the resize inside a graph
with ``--input-size`` need all of them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from destseg_deploy.errors import BackendError
from destseg_deploy.runtime.cache_folder import make_cache_folder
from destseg_deploy.runtime.cpu_options import OrtCpuOptions
from destseg_deploy.spec import ModelSpec

CPU, CUDA, TENSORRT = (
    "CPUExecutionProvider",
    "CUDAExecutionProvider",
    "TensorrtExecutionProvider",
)
PROVIDERS = {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT}
"""What a user calls a device -> ONNX Runtime's provider."""

CACHE = ".trt-cache"
"""Folder beside an artifact that holds the engines TensorRT built of it."""

OVERRIDE = "NVIDIA_TF32_OVERRIDE"
"""Environment variable; with 0, NVIDIA's libraries never use TF32. TensorRT has it on otherwise,
and ONNX Runtime has no option to turn it off there."""

Providers = list[tuple[str, dict[str, str]]]


@dataclass(frozen=True)
class Place:
    """Where a graph is to run.

    Attributes:
        kind: ``cpu``, ``cuda`` or ``tensorrt``.
        index: Which of the GPUs that the process sees; 0 for the CPU.
    """

    kind: str
    index: int = 0

    @classmethod
    def parse(cls, device: str) -> Place:
        """Read ``cpu``, ``cuda``, ``cuda:<index>``, ``tensorrt`` or ``tensorrt:<index>``.

        Raises:
            BackendError: If it is none of them.
        """
        found = re.fullmatch(r"(cpu|(?:cuda|tensorrt)(?::(\d+))?)", device)
        if found is None:
            raise BackendError(
                f"device {device!r}: expected cpu, cuda or cuda:<index>, tensorrt or "
                "tensorrt:<index>."
            )
        return cls(device.partition(":")[0], int(found[2] or 0))

    @property
    def provider(self) -> str:
        """Name of ONNX Runtime's provider."""
        return PROVIDERS[self.kind]

    @property
    def memory(self) -> str:
        """What ONNX Runtime calls the memory that a graph reads and writes there."""
        return "cpu" if self.kind == "cpu" else "cuda"

    def __str__(self) -> str:
        """Return how a user would write it."""
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.index}"


@dataclass(frozen=True)
class OrtOptions:
    """How a graph is run.

    Attributes:
        threads: Threads within an operator on the CPU; 0 leaves the choice to ONNX Runtime.
        cuda_graph: Record a CUDA graph for each batch size and replay it.
        tf32: Let a GPU round float32 factors to TF32.
        cache: Folder for TensorRT's engines; ``CACHE`` beside the artifact unless given.
        cpu: How the CPU is used, where the graph runs there; defaults unless given.
    """

    threads: int = 0
    cuda_graph: bool = False
    tf32: bool = False
    cache: Path | None = None
    cpu: OrtCpuOptions | None = None


def check_options(
    place: Place,
    spec: ModelSpec,
    options: OrtOptions,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Refuse what cannot be had at a place, or would change the answers.

    Raises:
        BackendError: If an option does not belong to the place, or TF32 cannot be what was asked.
    """
    name = spec.artifact.file
    for option, given in (("cuda_graph", options.cuda_graph), ("tf32", options.tf32)):
        if given and place.kind == "cpu":
            raise BackendError(f"{name}: {option} needs a GPU, device 'cpu' has none. Drop it.")
    if options.cache is not None and place.kind != "tensorrt":
        raise BackendError(
            f"{name}: cache {options.cache} is for TensorRT's engines, device '{place}' builds "
            "none. Drop it, or pass device 'tensorrt'."
        )
    if options.tf32 and spec.size != spec.network_size:
        raise BackendError(
            f"{name}: tf32 would change the pixels, because it resizes {spec.size[1]}x"
            f"{spec.size[0]} frames by products that need all bits of float32. Drop tf32."
        )
    overridden = environment.get(OVERRIDE) == "0"
    if place.kind == "tensorrt" and not options.tf32 and not overridden:
        raise BackendError(
            f"{name}: TensorRT computes float32 in TF32 and ONNX Runtime cannot tell it not to. "
            f"Set {OVERRIDE}=0 before the program starts, or use device 'cuda' or an .engine."
        )


def provider_options(
    place: Place, spec: ModelSpec, options: OrtOptions, cache: Path | None = None
) -> Providers:
    """Return the providers for ``InferenceSession``, first choice first, with their options.

    The CPU provider is not listed for a GPU; ONNX Runtime adds it for what computes shapes.

    Args:
        place: Where the graph is to run.
        spec: Of the artifact; its batch range becomes TensorRT's profile.
        options: See ``OrtOptions``.
        cache: Where TensorRT keeps engines and timings.
    """
    if place.kind == "cpu":
        return [(CPU, {})]
    cuda = {"device_id": str(place.index), "use_tf32": _flag(options.tf32)}
    if place.kind == "cuda":
        return [(CUDA, {**cuda, "enable_cuda_graph": _flag(options.cuda_graph)})]
    tensorrt = {
        "device_id": str(place.index),
        "trt_cuda_graph_enable": _flag(options.cuda_graph),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(cache),
        **_profile(spec),
    }
    return [(TENSORRT, tensorrt), (CUDA, cuda)]


def engine_cache(path: Path, spec: ModelSpec, options: OrtOptions, version: str) -> Path:
    """Make the folder for the engines of an artifact, of its own for all that changes them.

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
