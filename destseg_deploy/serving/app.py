"""The routes of the server, what they refuse, and how they say so.

Every error is ``{"error": "one line"}``, as KServe has it. Nothing of a request names a file:
images come as bytes, and the one file that is written is the artifact's spec.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from destseg_deploy import environment
from destseg_deploy.errors import DataError, DestsegError, MetricError, ShapeError
from destseg_deploy.runtime.server.over_http import HEADER
from destseg_deploy.serving.kserve import (
    describe_config,
    describe_model,
    read_request,
    write_response,
)
from destseg_deploy.serving.service import Service
from destseg_deploy.spec import Threshold
from destseg_deploy.text import printable
from destseg_deploy.web.document import document

HOSTS = ["localhost", "127.0.0.1"]
"""Names by which this machine calls itself. A page elsewhere whose name leads here is refused."""

PATIENCE = 2**30
"""A body that is too large is read to its end and dropped, because a client that still sends sees
no answer; up to this many bytes."""

CLIENT_FAULTS = (DataError, ShapeError, MetricError)
"""Errors that the request caused; all others are the server's."""


def make_app(service: Service, *, limit: int) -> Starlette:
    """Return the application.

    Args:
        service: The model.
        limit: Bytes of a request's body, at most.
    """
    routes = Routes(service, limit)
    return Starlette(
        routes=[
            Route("/", routes.page),
            Route("/api/look", routes.look, methods=["POST"]),
            Route("/api/threshold", routes.save, methods=["POST"]),
            Route("/v2", routes.server),
            Route("/v2/health/live", routes.healthy),
            Route("/v2/health/ready", routes.healthy),
            Route("/v2/models/{name}", routes.model),
            Route("/v2/models/{name}/ready", routes.model_ready),
            Route("/v2/models/{name}/config", routes.config),
            Route("/v2/models/{name}/infer", routes.infer, methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)],
        exception_handlers={
            HTTPException: _http_error,
            DestsegError: _refused,
            OSError: _refused,
            MemoryError: _no_memory,
        },
    )


class Routes:
    """What answers each path."""

    def __init__(self, service: Service, limit: int) -> None:
        """Take the model and the largest body in bytes."""
        self.service, self.limit = service, limit

    async def page(self, request: Request) -> Response:
        """Return the page with the threshold as it is now."""
        spec = self.service.predictor.spec
        data = {
            "name": self.service.name,
            "about": f"{spec.category}, {spec.precision}, {spec.kind}; "
            f"network {spec.network.width}x{spec.network.height} pixels.",
            "threshold": _threshold(self.service.threshold),
            "limit": self.limit,
            "version": environment.VERSION,
        }
        # Another site must not lay its own page over the button that saves.
        return HTMLResponse(document("page.html", data), headers={"X-Frame-Options": "DENY"})

    async def look(self, request: Request) -> Response:
        """Score the image file that is the body."""
        content = await self._body(request)
        return JSONResponse(await run_in_threadpool(self.service.look, content))

    async def save(self, request: Request) -> Response:
        """Save a threshold: ``{"score": 0.3, "pixel": 0.4}``."""
        body = await self._body(request)
        try:
            asked = json.loads(body)
            score, pixel = (asked[name] for name in ("score", "pixel"))
        except (ValueError, RecursionError, TypeError, KeyError) as error:
            raise HTTPException(400, "threshold: expected JSON with score and pixel.") from error
        if type(score) not in (int, float) or type(pixel) not in (int, float):
            raise HTTPException(400, "threshold: expected numbers for score and pixel.")
        saved = await run_in_threadpool(self.service.save, score, pixel)
        return JSONResponse(_threshold(saved))

    async def server(self, request: Request) -> Response:
        """Return KServe's metadata of the server."""
        return JSONResponse(
            {
                "name": "destseg-deploy",
                "version": environment.VERSION,
                "extensions": ["binary_tensor_data"],
            }
        )

    async def healthy(self, request: Request) -> Response:
        """Say that the server answers; the model is loaded before it listens."""
        return Response()

    async def model(self, request: Request) -> Response:
        """Return KServe's metadata of the model."""
        self._check_name(request)
        service = self.service
        return JSONResponse(
            describe_model(
                service.predictor.spec,
                service.name,
                any_size=service.predictor.resizes,
                judged=service.threshold is not None,
            )
        )

    async def config(self, request: Request) -> Response:
        """Return which artifact is served, as Triton's extension for configurations does."""
        self._check_name(request)
        return JSONResponse(describe_config(self.service.predictor.spec, self.service.name))

    async def model_ready(self, request: Request) -> Response:
        """Say that the model is loaded."""
        self._check_name(request)
        return Response()

    async def infer(self, request: Request) -> Response:
        """Answer an inference request."""
        self._check_name(request)
        body, length = await self._body(request), request.headers.get(HEADER)
        content, header = await run_in_threadpool(self._infer, body, length)
        if header is None:
            return Response(content, media_type="application/json")
        return Response(
            content, media_type="application/octet-stream", headers={HEADER: str(header)}
        )

    def _infer(self, body: bytes, length: str | None) -> tuple[bytes, int | None]:
        service, spec = self.service, self.service.predictor.spec
        asked = read_request(body, length, spec)
        answer = service.infer(asked.frames)
        return write_response(asked, service.name, spec, answer, service.verdicts(answer))

    def _check_name(self, request: Request) -> None:
        asked = request.path_params["name"]
        if asked != self.service.name:
            raise HTTPException(
                404, f"model {printable(asked)[:80]!r}: not here. Expected {self.service.name!r}."
            )

    async def _body(self, request: Request) -> bytes:
        """Read the body of a request from this machine's own page or from a program."""
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
            raise HTTPException(403, "This request comes from the page of another site.")
        body, size = bytearray(), 0
        async for part in request.stream():
            size += len(part)
            if size <= self.limit:
                body += part
            elif size > PATIENCE:
                break
        if size > self.limit:
            raise HTTPException(
                413,
                f"The body has more than {self.limit / 2**20:g} MiB, which is the limit here. Send "
                "a smaller image, or start destseg-page with a larger --max-mib.",
            )
        return bytes(body)


def _threshold(threshold: Threshold | None) -> dict[str, Any] | None:
    if threshold is None:
        return None
    return {"score": threshold.score, "pixel": threshold.pixel, "rule": threshold.rule}


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _refused(request: Request, error: Exception) -> Response:
    if isinstance(error, ClientDisconnect):
        raise error
    status = 400 if isinstance(error, CLIENT_FAULTS) else 500
    return JSONResponse({"error": printable(str(error))}, status)


async def _no_memory(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "Not enough memory for this request. Send a smaller one."}, 500)
