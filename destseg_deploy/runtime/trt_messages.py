"""What TensorRT says while it works, kept so that our errors can repeat it."""

from __future__ import annotations

from collections import deque
from types import ModuleType
from typing import Any

KEPT = 5
"""Messages repeated in an error; the first of a failure say most, the last are its echo."""


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
