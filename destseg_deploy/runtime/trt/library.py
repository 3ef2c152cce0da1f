"""The TensorRT that is installed: ``tensorrt`` 10 and 11, or ``tensorrt_rtx``, one API here.

Both modules offer the same names for all that this project calls; ``test_trt_api.py`` checks this
for several releases. So all code that needs TensorRT takes the module from here. What TensorRT says
while it works is kept, so that our errors can repeat it.
"""

from __future__ import annotations

import importlib
from collections import deque
from types import ModuleType
from typing import Any

from destseg_deploy.errors import BackendError

KEPT = 5
"""Messages repeated in an error; the first of a failure say most, the last are its echo."""

MODULES = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
"""What a user and a spec call a builder -> its module, under either name.

NVIDIA's wheels with the libraries and the bindings give the second name; a package that is made at
installation adds the first, and is not there where only wheels may be installed.
"""

INSTALL = {
    "tensorrt": "pip install tensorrt (10 or 11, with NVIDIA's libraries)",
    "tensorrt-rtx": "pip install 'destseg-deploy[rtx]'",
}


def load_library(builder: str) -> ModuleType:
    """Import a builder's module.

    Args:
        builder: One of ``MODULES``.

    Raises:
        BackendError: If it is unknown, not installed, or its libraries do not load.
    """
    if builder not in MODULES:
        raise BackendError(f"builder {builder!r}: expected one of {', '.join(MODULES)}.")
    failure: Exception | None = None
    for name in MODULES[builder]:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:  # RuntimeError: NVIDIA's placeholders
            # A library that does not load says more than a name that is not there.
            if failure is None or not isinstance(error, ModuleNotFoundError):
                failure = error
    reason = " ".join(str(failure).split())[:160]
    raise BackendError(
        f"{builder} is not usable here ({reason}). Install it: {INSTALL[builder]}"
    ) from failure


def library_version(library: ModuleType) -> str:
    """Return the version of a builder's module, such as ``11.4.0.106``."""
    return str(library.__version__)


def make_messages(library: ModuleType) -> Any:
    """Return a logger of TensorRT's that prints nothing and keeps errors.

    TensorRT reports the reason of a failure to its logger only: the call itself returns None or
    False. A runtime, its engines and their contexts all speak to the logger they were made with,
    so it must outlive them.

    Returns:
        An ``ILogger`` with a method ``take() -> str``: what was said since the last call, on one
        line; empty if nothing was.
    """
    errors = (library.ILogger.Severity.INTERNAL_ERROR, library.ILogger.Severity.ERROR)

    class Messages(library.ILogger):  # type: ignore[misc, name-defined]  # known only at run time
        def __init__(self) -> None:
            library.ILogger.__init__(self)  # else its C++ half is missing
            self._said: deque[str] = deque(maxlen=KEPT)

        def log(self, severity: Any, msg: str) -> None:
            if severity in errors and len(self._said) < KEPT:
                self._said.append(" ".join(msg.split()))

        def take(self) -> str:
            said = []
            while self._said:
                said.append(self._said.popleft())
            return "; ".join(said)

    return Messages()
