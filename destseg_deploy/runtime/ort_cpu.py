"""ONNX Runtime on a CPU: threads, pinning, memory, and INT8 sums that are right.

Names and values are those of onnxruntime 1.32, read from its library and its errors.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from destseg_deploy.errors import BackendError
from destseg_deploy.runtime.cpu_options import OrtCpuOptions
from destseg_deploy.runtime.int8_kernels import EXACT, ort_saturates, warn_of_scheme
from destseg_deploy.runtime.ort_options import OrtOptions, Place
from destseg_deploy.spec import ModelSpec

SPINNING = "session.intra_op.allow_spinning"
PINNED = "session.intra_op_thread_affinities"


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
    ort: Any, place: Place, spec: ModelSpec, options: OrtOptions
) -> SessionSettings:
    """Return what a session is told, after checking that it makes sense here.

    Args:
        ort: The module ``onnxruntime``.
        place: Where the graph is to run.
        spec: Of the artifact.
        options: See ``OrtOptions``.

    Raises:
        BackendError: If threads or cores are out of range or contradict each other, or CPU options
            are given for a GPU.
    """
    if options.threads < 0:
        raise BackendError(f"threads: {options.threads}, expected 0 or more.")
    if place.kind != "cpu":
        if options.cpu is not None:
            raise BackendError(
                f"{spec.artifact.file}: ort_cpu options are for device 'cpu', not '{place}'. Drop "
                "them."
            )
        return SessionSettings(options.threads)
    chosen = options.cpu or OrtCpuOptions()
    cores = chosen.worker_cores
    check_cores(cores, options.threads, allowed_cores())
    entries = {} if chosen.spinning else {SPINNING: "0"}
    if cores:
        entries[PINNED] = ";".join(str(core + 1) for core in cores)  # counted from 1 there
    if spec.precision == "int8":
        warn_of_scheme(spec)
        if ort_saturates(ort):
            entries[EXACT] = "1"
    return SessionSettings(len(cores) + 1 if cores else options.threads, chosen.arena, entries)


def check_cores(cores: Sequence[int], threads: int, allowed: Sequence[int]) -> None:
    """Refuse cores that threads cannot be pinned to; ONNX Runtime only prints that it could not.

    Args:
        cores: ``OrtCpuOptions.worker_cores``.
        threads: Threads asked for; 0 for as many as the cores need.
        allowed: Logical processors that this process may use.

    Raises:
        BackendError: If a core is not among them or named twice, or the threads are not one more.
    """
    if missing := [core for core in cores if core not in allowed]:
        raise BackendError(
            f"worker_cores {tuple(cores)}: this process may not run on {missing[0]}, expected some "
            f"of {', '.join(map(str, allowed))}."
        )
    if len(set(cores)) < len(cores):
        raise BackendError(
            f"worker_cores {tuple(cores)}: one is named twice, expected each at most once. Two "
            "threads on one core wait for each other."
        )
    if cores and threads not in (0, len(cores) + 1):
        raise BackendError(
            f"threads: {threads}, expected {len(cores) + 1} with {len(cores)} worker_cores: the "
            "calling thread is one more. Drop threads, or name other cores."
        )


def allowed_cores() -> list[int]:
    """Return the logical processors that this process may run on, counted from 0."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
