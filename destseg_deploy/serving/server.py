"""Running the server on this machine's own address, until a signal ends it."""

from __future__ import annotations

import socket
from collections.abc import Callable

from destseg_deploy.errors import BackendError
from destseg_deploy.serving.service import Service

HOST = "127.0.0.1"
MOST_AT_ONCE = 32
"""Connections; more are answered with 503."""


def serve(
    service: Service, *, port: int, limit: int, ready: Callable[[str], None] = lambda url: None
) -> None:
    """Serve until a signal ends it; only programs on this machine can reach it.

    Args:
        service: The model.
        port: TCP port; 0 takes a free one.
        limit: Bytes of a request's body, at most.
        ready: Called with the address once it can be connected to.

    Raises:
        BackendError: If starlette or uvicorn is not installed, or the port is taken.
    """
    try:
        import uvicorn

        from destseg_deploy.serving.app import make_app
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise BackendError(
            f"{error.name}: not installed, and the page is served with it. Install it: "
            "pip install 'destseg-deploy[page]'"
        ) from error
    try:
        listening = socket.create_server((HOST, port))
    except OSError as error:
        raise BackendError(
            f"port {port}: cannot listen there ({error.strerror}). Choose another --port, or 0 for "
            "a free one."
        ) from error
    with listening:
        ready(f"http://{HOST}:{listening.getsockname()[1]}/")
        config = uvicorn.Config(
            make_app(service, limit=limit),
            log_level="warning",
            access_log=False,
            limit_concurrency=MOST_AT_ONCE,
            timeout_graceful_shutdown=5,
            server_header=False,
            lifespan="off",
        )
        uvicorn.Server(config).run(sockets=[listening])
