"""Opens a session of ONNX Runtime that runs where it was asked to, or says why it cannot.

ONNX Runtime falls back to the CPU silently in three ways:

- It replaces a provider whose libraries do not load by the CPU, with one line on stderr. We compare
  the session's providers with what was asked for.
- Its Python class tries again without a provider that refuses. We switch that off.
- An operator that the provider has no kernel for runs on the CPU. We read where each node was
  placed, which ONNX Runtime tells since 1.24.1.

Its own switch, ``session.disable_cpu_ep_fallback``, is not used: it also refuses the nodes that
compute shapes, which belong on the CPU, and with them all graphs of this project.

Names and values of the options are those of onnxruntime 1.32, read from its library and its errors.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from destseg_deploy.device import Device
from destseg_deploy.environment import allowed_cores
from destseg_deploy.errors import BackendError
from destseg_deploy.memory import refuse_shortage
from destseg_deploy.options import OrtOptions, check_device
from destseg_deploy.runtime.cuda.nvrtc import package_folders
from destseg_deploy.runtime.cuda.slots import Addresses
from destseg_deploy.runtime.int8_kernels import EXACT, ort_saturates, warn_of_scheme
from destseg_deploy.runtime.offline import import_onnxruntime
from destseg_deploy.runtime.ort.providers import (
    CPU,
    TENSORRT,
    check_tf32,
    choose_provider,
    engine_cache,
    provider_options,
)
from destseg_deploy.spec import ModelSpec
from destseg_deploy.text import is_encodable

SPINNING = "session.intra_op.allow_spinning"
PINNED = "session.intra_op_thread_affinities"
RECORD = "session.record_ep_graph_assignment_info"

SHAPE_OPERATORS = frozenset({"Shape", "Size", "Gather", "Slice", "Concat", "Squeeze", "Unsqueeze"})
"""What may run on the CPU beside a GPU: computing the size of something."""

WORK = frozenset({"Conv", "MatMul"})
"""What TensorRT must run itself; CUDA may run the rest beside it."""

TENSORRT_10 = (
    "onnxruntime-gpu of PyPI is linked to TensorRT 10 (libnvinfer.so.10) and loads no TensorRT 11: "
    "put TensorRT 10's libraries on the loader's path, drop tensorrt, or use an .engine"
)


@dataclass(frozen=True)
class SessionSettings:
    """What a session is told besides its provider.

    Attributes:
        threads: Threads within an operator; 0 leaves the choice to ONNX Runtime.
        arena: Whether memory is kept between calls.
        entries: Options of the session by their names.
    """

    threads: int = 0
    arena: bool = True
    entries: dict[str, str] = field(default_factory=dict)


def session_settings(
    ort: Any, device: Device, spec: ModelSpec, options: OrtOptions
) -> SessionSettings:
    """Return what a session is told, after checking that it makes sense here.

    Args:
        ort: The module ``onnxruntime``.
        device: Where the graph is to run.
        spec: Of the artifact.
        options: See ``OrtOptions``.

    Raises:
        BackendError: If this process may not run on a core that is named, or CPUs lack the
            precision.
    """
    if device.kind != "cpu":
        return SessionSettings(options.threads)
    if spec.precision == "bf16":
        raise BackendError(
            f"{spec.artifact.file}: bf16, and ONNX Runtime's CPU provider has no bf16 convolution. "
            "Run it on an NVIDIA GPU (--device cuda, or an .engine), or export in fp32 for CPUs."
        )
    cores = options.worker_cores
    check_cores(cores, allowed_cores())
    entries = {} if options.spinning else {SPINNING: "0"}
    if cores:
        entries[PINNED] = ";".join(str(core + 1) for core in cores)  # counted from 1 there
    if spec.precision == "int8":
        warn_of_scheme(spec)
        if ort_saturates(ort):
            entries[EXACT] = "1"
    return SessionSettings(len(cores) + 1 if cores else options.threads, options.arena, entries)


def check_cores(cores: Sequence[int], allowed: Sequence[int]) -> None:
    """Refuse cores that threads cannot be pinned to; ONNX Runtime only prints that it could not.

    Args:
        cores: ``OrtOptions.worker_cores``.
        allowed: Logical processors that this process may use.

    Raises:
        BackendError: If a core is not among them.
    """
    if missing := [core for core in cores if core not in allowed]:
        raise BackendError(
            f"worker_cores {tuple(cores)}: this process may not run on {missing[0]}, expected some "
            f"of {', '.join(map(str, allowed))}."
        )


class Node(NamedTuple):
    """Where an operator of the graph runs."""

    provider: str
    operator: str
    name: str


def check_available(ort: Any, device: Device, options: OrtOptions) -> None:
    """Refuse a provider that the installed ONNX Runtime was not built for.

    Raises:
        BackendError: If it was not.
    """
    provider, available = choose_provider(device, options), ort.get_available_providers()
    if provider not in available:
        raise BackendError(
            f"device '{device}': this ONNX Runtime ({ort.__version__}) has no {provider}, "
            f"only {', '.join(available)}. Install onnxruntime-gpu, or use 'cpu'."
        )


def check_artifact(path: Path, device: Device, options: OrtOptions) -> tuple[Any, ModelSpec]:
    """Check an artifact, its spec and what is asked for, before anything is opened.

    Args:
        path: The ``.onnx`` file; its spec lies beside it.
        device: The CPU, or a CUDA GPU.
        options: See ``OrtOptions``.

    Returns:
        The module ``onnxruntime``, and the spec.

    Raises:
        SpecError: If the spec is missing or was written for another file.
        BackendError: If ONNX Runtime or its provider is not there, or an option does not fit the
            device or the artifact.
    """
    spec = ModelSpec.read(path)
    if not path.is_file():
        raise BackendError(f"{path}: no such file. Run destseg-export --category NAME to make it.")
    spec.check_artifact(path)
    ort = _import(path)
    check_device(options, device)
    check_available(ort, device, options)
    check_tf32(spec, options)
    return ort, spec


def open_session(
    ort: Any,
    path: Path,
    spec: ModelSpec,
    device: Device,
    options: OrtOptions,
    *,
    stream: int = 0,
    profile: Path | None = None,
) -> Any:
    """Open a graph where it was asked for.

    Args:
        ort: The module ``onnxruntime``.
        path: The ``.onnx`` file, which ``check_artifact`` found fit.
        spec: Its spec.
        device: Where it must run.
        options: See ``OrtOptions``.
        stream: On a GPU, the ``cudaStream_t`` that all runs are queued on.
        profile: Beginning of the file that ``end_profiling`` of the session writes; None for none.

    Returns:
        An ``InferenceSession``.

    Raises:
        BackendError: If the provider does not start or leaves work to another, the file cannot be
            opened, or this process may not run on a core that is named.
    """
    cache = engine_cache(path, spec, options, ort.__version__) if options.tensorrt else None
    providers = provider_options(device, spec, options, cache, stream=stream)
    settings = session_settings(ort, device, spec, options)
    wanted = providers[0][0]
    missing = _preload(ort) if device.kind != "cpu" else ""
    given = ort.SessionOptions()
    given.intra_op_num_threads = settings.threads
    given.enable_cpu_mem_arena = settings.arena
    given.log_severity_level = 3
    if profile is not None:
        given.enable_profiling, given.profile_file_prefix = True, str(profile)
    for name, value in {RECORD: "1", **settings.entries}.items():
        given.add_session_config_entry(name, value)
    model = str(path) if is_encodable(path) else path.read_bytes()
    try:
        session = ort.InferenceSession(model, given, providers=providers, enable_fallback=0)
    except Exception as error:  # its errors share no base class
        refuse_shortage(error, str(path))
        raise BackendError(_refusal(path, device, wanted, one_line(error))) from error
    session.disable_fallback()
    _check_started(session, device, wanted, missing)
    check_placement(path, device, wanted, placed_nodes(session))
    return session


def bind(
    session: Any, spec: ModelSpec, batch: int, addresses: Addresses, memory: tuple[str, int]
) -> Any:
    """Return an IO binding of a session to memory, which must stay until the run is over.

    Args:
        session: An ``InferenceSession``.
        spec: Of its artifact.
        batch: Images per call.
        addresses: Of the three tensors.
        memory: ``cpu`` or ``cuda``, and the index of the GPU.
    """
    binding, output = session.io_binding(), spec.output
    images = (batch, *spec.size, 3)
    maps = (batch, *spec.map_size)
    binding.bind_input(spec.input.name, *memory, np.uint8, images, addresses.images)
    binding.bind_output(output.map_name, *memory, np.float32, maps, addresses.anomaly_map)
    binding.bind_output(output.score_name, *memory, np.float32, (batch,), addresses.score)
    return binding


def placed_nodes(session: Any) -> list[Node] | None:
    """Return where each operator runs, or None where ONNX Runtime is too old to tell."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    return [
        Node(part.ep_name, node.op_type, node.name)
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    ]


def check_placement(path: Path, device: Device, wanted: str, nodes: Sequence[Node] | None) -> None:
    """Refuse a session that leaves work to another provider than the one asked for.

    Raises:
        BackendError: If the CPU runs more than shapes beside a GPU, or convolutions are not run by
            TensorRT where that was asked for.
    """
    if device.kind == "cpu" or nodes is None:
        return
    stray = [node for node in nodes if _is_stray(node, wanted)]
    if not stray:
        return
    shown = ", ".join(f"{node.operator} {node.name} ({node.provider})" for node in stray[:3])
    raise BackendError(
        f"{path}: {wanted} on device '{device}' does not run {len(stray)} of {len(nodes)} "
        f"operators: {shown}{' ...' * (len(stray) > 3)}. Use another ONNX Runtime, or "
        f"{'drop tensorrt' if wanted == TENSORRT else 'pass device cpu'}."
    )


def one_line(error: BaseException, length: int = 200) -> str:
    """Return the start of an error's message, without line breaks and the place in C++."""
    return re.sub(r"^/\S+\.cc:\d+ .*?\) (?=\S)", "", " ".join(str(error).split()))[:length]


def _is_stray(node: Node, wanted: str) -> bool:
    if node.provider == CPU:
        return node.operator not in SHAPE_OPERATORS
    return node.provider != wanted and node.operator in WORK


def _preload(ort: Any) -> str:
    """Load CUDA's libraries from PyPI's packages; return what was printed of missing ones."""
    if not hasattr(ort, "preload_dlls"):
        return ""
    # By itself it looks beside its own folder. On a host without an installation ONNX Runtime lies
    # in one folder and CUDA's packages in another; what is loaded once is found by its name.
    with redirect_stdout(io.StringIO()):
        for folder in cuda_folders():
            ort.preload_dlls(directory=str(folder))
    printed = io.StringIO()
    with redirect_stdout(printed):  # it prints, and stdout belongs to a command's result
        ort.preload_dlls()
    lines = [line for line in printed.getvalue().splitlines() if line.startswith("Failed")]
    return " ".join(lines[0].split())[:160] if lines else ""


def cuda_folders() -> list[Path]:
    """Return the folders with CUDA's libraries among the packages of this process."""
    patterns = ("nvidia/*/lib", "nvidia/*/bin")
    packages = package_folders()
    return [found for one in packages for each in patterns for found in sorted(one.glob(each))]


def _check_started(session: Any, device: Device, wanted: str, missing: str) -> None:
    started = session.get_providers()
    if started[0] == wanted:
        return
    advice = TENSORRT_10 if wanted == TENSORRT else "check the driver, CUDA and cuDNN"
    raise BackendError(
        f"device '{device}': {wanted} did not start and ONNX Runtime fell back to "
        f"{started[0]}{f' ({missing})' * bool(missing)}. ONNX Runtime's message is on stderr; "
        f"{advice}."
    )


def _refusal(path: Path, device: Device, wanted: str, reason: str) -> str:
    if device.kind == "cpu":
        return f"{path}: ONNX Runtime cannot open it ({reason}). Export it again."
    advice = f"; {TENSORRT_10}" * (wanted == TENSORRT)
    return (
        f"{path}: ONNX Runtime cannot open it on device '{device}' ({reason}). Try device 'cpu', "
        f"which shows whether the file is at fault{advice}."
    )


def _import(path: Path) -> Any:
    try:
        return import_onnxruntime()
    except ImportError as error:
        raise BackendError(
            f"{path}: ONNX Runtime is not installed. pip install 'destseg-deploy[onnxruntime]', or "
            "[gpu] for CUDA."
        ) from error
