"""Imports the back ends that report to their makers, with the reports switched off.

A PC on a production line talks to nobody. Left alone, ONNX Runtime looks up a host of its maker and
keeps an identity of the PC in the user's cache; OpenVINO and NNCF look up another and write into
the home folder. So this is the only file that imports them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

ORT_SWITCH = "ORT_DISABLE_TELEMETRY"
"""Read by ONNX Runtime when its library is loaded; its own disable_telemetry_events is too late."""

REPORTER = "openvino_telemetry"
"""OpenVINO and NNCF do without this package where it is not installed."""


def import_onnxruntime() -> Any:
    """Return the module ``onnxruntime``.

    Raises:
        ImportError: If it is not installed.
    """
    os.environ[ORT_SWITCH] = "1"
    import onnxruntime

    return onnxruntime


def import_openvino() -> Any:
    """Return the module ``openvino``.

    Raises:
        ImportError: If it is not installed.
    """
    with _hidden(REPORTER):
        import openvino

    return openvino


def openvino_core() -> Any:
    """Return OpenVINO's core, one for the whole process.

    Each core gives the thread that makes it a stack for signals, and takes it away when it ends.
    Of two that end in the order in which they were made, the second one puts the stack of the first
    back, which is gone then: the next signal, such as that of Ctrl-C, ends the process.

    Raises:
        ImportError: If OpenVINO is not installed.
    """
    return _core(import_openvino(), os.getpid())


@cache
def _core(openvino: Any, process: int) -> Any:
    return openvino.Core()


def import_nncf() -> Any:
    """Return the module ``nncf``, which imports ``openvino``.

    Raises:
        ImportError: If it is not installed.
    """
    with _hidden(REPORTER):
        import nncf

    return nncf


@contextmanager
def _hidden(name: str) -> Iterator[None]:
    """Make a package look as if it were not installed; afterwards the program may import it."""
    before = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]  # how Python marks what cannot be imported
    try:
        yield
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
