"""Connecting to a Ray cluster. The only file that imports Ray, whose reports are switched off."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from destseg_deploy.cluster.place import CLUSTER, LOCAL, RUNNING
from destseg_deploy.errors import BackendError

REACH_S = 5.0
"""Time in which a cluster's port must answer. Ray itself tries for half a minute and more."""

TRIES = 2
"""Connections that are tried while a cluster cannot start the server of one. For it Ray forks a
process that uses gRPC, and now and then the child ends before it begins (grpc/grpc#43055)."""

STORE = 256 * 2**20
"""Bytes of shared memory of a local cluster. Only paths and answers pass through it."""


@contextmanager
def connected(on: str) -> Iterator[Any]:
    """Give the module ``ray``, connected; a program's own connection is used and left open.

    Args:
        on: ``ray``, ``ray://auto`` or ``ray://HOST:PORT``, as in ``Place``.

    Raises:
        BackendError: If the cluster cannot be reached, does not start, or ends in the block.
        ModuleNotFoundError: If Ray is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # it would report to its maker
    # Where a cluster is lost, the next call would start another one, here.
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
    if on == LOCAL and "ray" not in sys.modules:  # it reads the rest when it is imported
        # Without a token of this run, Ray keeps one in the home folder.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # A cluster that serves one command listens on the loopback address only. Whatever the name
        # says, this holds on Linux, too.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray

    if ray.is_initialized():
        with _loss_named(ray, on):
            yield ray
        return
    _connect(ray, on)
    try:
        with _loss_named(ray, on):
            yield ray
    finally:
        ray.shutdown()


def arrived(calls: Sequence[Any]) -> None:
    """Wait, in a worker, until an actor has done calls, or for 5 s."""
    import ray

    if calls:
        ray.wait(list(calls), num_returns=len(calls), timeout=REACH_S)


@contextmanager
def _loss_named(ray: Any, on: str) -> Iterator[None]:
    """Name a cluster that does not answer any more; a fault of ours keeps its traceback."""
    try:
        yield
    except Exception as error:
        # The Ray client raises the errors of gRPC, a package that only it needs.
        ours = isinstance(error, ConnectionError | ray.exceptions.RayError)
        if isinstance(error, ray.exceptions.RayTaskError) or not (
            ours or type(error).__module__.partition(".")[0] == "grpc"
        ):
            raise
        raise BackendError(
            f"{on}: the cluster does not answer any more ({type(error).__name__}). What was "
            "written is kept; the same command goes on when the cluster is back."
        ) from error


def _connect(ray: Any, on: str) -> None:
    """Connect. Ray's words are left out, and its reaction to SIGTERM, which leaves files behind."""
    found = CLUSTER.fullmatch(on)
    if found:
        _reach(found[1].strip("[]"), int(found[2]), on)
    options: dict[str, Any] = {"address": on}
    if on == LOCAL:
        options = {"address": "local", "include_dashboard": False, "object_store_memory": STORE}
    if on == RUNNING:
        options = {"address": "auto"}
    before = None
    with suppress(ValueError):  # not in the main thread
        before = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _init(ray, log_to_driver=False, logging_level=logging.ERROR, **options)
        # It prints the ends of workers on stdout, among the results. No option stops that.
        with suppress(AttributeError):
            ray._private.worker.print_to_stdstream = _keep_quiet
    except Exception as error:  # Ray raises that class itself where a start takes too long
        advice = (
            "Close other programs and try again, or run without a cluster: --on here."
            if on == LOCAL
            else "Start Ray there with 'ray start --head', with the same versions of Python and "
            "Ray as here, or pass --on ray for this machine."
        )
        raise BackendError(f"{on}: cannot be used ({_line(error)}). {advice}") from error
    with suppress(ValueError, TypeError):
        signal.signal(signal.SIGTERM, before)


def _init(ray: Any, **options: Any) -> None:
    for left in reversed(range(TRIES)):
        try:
            ray.init(**options)
            return
        except Exception as error:
            if not left or "Starting Ray client server failed" not in str(error):
                raise


def _keep_quiet(*args: Any, **named: Any) -> None:
    """Take the place of what prints Ray's own remarks."""


def _reach(host: str, port: int, on: str) -> None:
    try:
        socket.create_connection((host, port), REACH_S).close()
    except OSError as error:
        raise BackendError(
            f"{on}: no cluster answers there ({_line(error)}). Expected the Ray client port of a "
            "cluster, 10001 unless it was started with another one."
        ) from error


def _line(error: Exception) -> str:
    """Return an error's own words in one line; of a server's traceback the last line."""
    text = str(error).strip()
    text = text.splitlines()[-1] if "Traceback" in text else " ".join(text.split())
    return text[:160] or type(error).__name__
