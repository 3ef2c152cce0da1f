"""A session of ONNX Runtime that runs where it was asked to, or an error that says why not.

ONNX Runtime falls back silently in three ways. A provider whose libraries do not load is replaced
by the CPU with no more than a line on stderr: seen in the session's providers. Its Python class
tries again without a provider that refuses: switched off. Operators without a kernel on the
provider go to the CPU one by one: seen in the placement of the nodes, which ONNX Runtime tells
since 1.24.1. Its own switch against that, ``session.disable_cpu_ep_fallback``, refuses this
project's graphs because of the nodes that compute shapes, which belong on the CPU; it is not used.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from destseg_deploy.errors import BackendError
from destseg_deploy.runtime.ort_cpu import SessionSettings
from destseg_deploy.runtime.ort_options import CPU, Place, Providers

RECORD = "session.record_ep_graph_assignment_info"

SHAPE_OPERATORS = frozenset({"Shape", "Size", "Gather", "Slice", "Concat", "Squeeze", "Unsqueeze"})
"""What may run on the CPU beside a GPU: computing the size of something."""

WORK = frozenset({"Conv", "MatMul"})
"""What TensorRT must run itself; CUDA may run the rest beside it."""

TENSORRT_10 = (
    "onnxruntime-gpu of PyPI is linked to TensorRT 10 (libnvinfer.so.10) and loads no TensorRT 11: "
    "put TensorRT 10's libraries on the loader's path, or use device 'cuda' or an .engine"
)


class Node(NamedTuple):
    """Where an operator of the graph runs."""

    provider: str
    operator: str
    name: str


def check_available(ort: Any, place: Place) -> None:
    """Refuse a place that the installed ONNX Runtime was not built for.

    Raises:
        BackendError: If it was not.
    """
    available = ort.get_available_providers()
    if place.provider not in available:
        raise BackendError(
            f"device '{place}': this ONNX Runtime ({ort.__version__}) has no {place.provider}, "
            f"only {', '.join(available)}. Install onnxruntime-gpu, or use 'cpu'."
        )


def open_session(
    ort: Any, path: Path, place: Place, providers: Providers, settings: SessionSettings
) -> Any:
    """Open a graph where it was asked for.

    Args:
        ort: The module ``onnxruntime``.
        path: The ``.onnx`` file.
        place: Where it must run.
        providers: ``provider_options`` of the place.
        settings: ``session_settings`` of the place.

    Raises:
        BackendError: If the provider does not start or leaves work to another, or the file cannot
            be opened.
    """
    missing = _preload(ort) if place.kind != "cpu" else ""
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.enable_cpu_mem_arena = settings.arena
    options.log_severity_level = 3
    for name, value in {RECORD: "1", **settings.entries}.items():
        options.add_session_config_entry(name, value)
    try:
        session = ort.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
    except Exception as error:  # its errors share no base class
        raise BackendError(_refusal(path, place, one_line(error))) from error
    session.disable_fallback()
    _check_started(session, place, missing)
    check_placement(path, place, placed_nodes(session))
    return session


def placed_nodes(session: Any) -> list[Node] | None:
    """Return where each operator runs, or None where ONNX Runtime is too old to tell."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    return [
        Node(part.ep_name, node.op_type, node.name)
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    ]


def count_nodes(nodes: Sequence[Node] | None) -> dict[str, int] | None:
    """Return how many operators each provider runs."""
    return None if nodes is None else dict(Counter(node.provider for node in nodes))


def check_placement(path: Path, place: Place, nodes: Sequence[Node] | None) -> None:
    """Refuse a session that leaves work to another provider than the one asked for.

    Raises:
        BackendError: If the CPU runs more than shapes beside a GPU, or convolutions are not run by
            TensorRT where that was asked for.
    """
    if place.kind == "cpu" or nodes is None:
        return
    stray = [node for node in nodes if _is_stray(node, place)]
    if not stray:
        return
    shown = ", ".join(f"{node.operator} {node.name} ({node.provider})" for node in stray[:3])
    raise BackendError(
        f"{path}: device '{place}' does not run {len(stray)} of {len(nodes)} operators: {shown}"
        f"{' ...' * (len(stray) > 3)}. Use another ONNX Runtime, or device "
        f"'{'cuda' if place.kind == 'tensorrt' else 'cpu'}'."
    )


def one_line(error: BaseException, length: int = 200) -> str:
    """Return the start of an error's message, without line breaks and the place in C++."""
    return re.sub(r"^/\S+\.cc:\d+ .*?\) (?=\S)", "", " ".join(str(error).split()))[:length]


def _is_stray(node: Node, place: Place) -> bool:
    if node.provider == CPU:
        return node.operator not in SHAPE_OPERATORS
    return node.provider != place.provider and node.operator in WORK


def _preload(ort: Any) -> str:
    """Load CUDA's libraries from PyPI's packages; return what was printed of missing ones."""
    if not hasattr(ort, "preload_dlls"):
        return ""
    printed = io.StringIO()
    with redirect_stdout(printed):  # it prints, and stdout belongs to a command's result
        ort.preload_dlls()
    lines = [line for line in printed.getvalue().splitlines() if line.startswith("Failed")]
    return " ".join(lines[0].split())[:160] if lines else ""


def _check_started(session: Any, place: Place, missing: str) -> None:
    started = session.get_providers()
    if started[0] == place.provider:
        return
    advice = TENSORRT_10 if place.kind == "tensorrt" else "check the driver, CUDA and cuDNN"
    raise BackendError(
        f"device '{place}': {place.provider} did not start and ONNX Runtime fell back to "
        f"{started[0]}{f' ({missing})' * bool(missing)}. ONNX Runtime's message is on stderr; "
        f"{advice}."
    )


def _refusal(path: Path, place: Place, reason: str) -> str:
    if place.kind == "cpu":
        return f"{path}: ONNX Runtime cannot open it ({reason}). Export it again."
    advice = f"; {TENSORRT_10}" * (place.kind == "tensorrt")
    return (
        f"{path}: ONNX Runtime cannot open it on device '{place}' ({reason}). Try device 'cpu', "
        f"which shows whether the file is at fault{advice}."
    )
