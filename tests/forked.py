"""What a forked child says, or that it hangs."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable

import pytest

SECONDS = 30
"""A child that has not ended by then hangs."""


def forks(test: Callable) -> Callable:
    """Mark a test that forks; Windows has no fork, and Python warns of one beside threads."""
    warning = "ignore:.*multi-threaded.*fork:DeprecationWarning"
    test = pytest.mark.filterwarnings(warning)(test)
    return pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")(test)


def told_by_child(act: Callable[[Callable[[str], object]], object]) -> str:
    """Run a function in a forked child and return what it said, and "hangs" if it does not end.

    Args:
        act: Is given a function that says a text.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            act(lambda text: os.write(writer, text.encode()))
        finally:
            os._exit(0)
    os.close(writer)
    told, deadline = b"", time.monotonic() + SECONDS
    while select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
        part = os.read(reader, 4096)
        if not part:
            break
        told += part
    else:
        told += b" hangs"
    os.close(reader)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return told.decode()
