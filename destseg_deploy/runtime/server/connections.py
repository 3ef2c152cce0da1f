"""HTTP connections to one server, kept open from one request to the next."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from destseg_deploy.errors import BackendError
from destseg_deploy.options import ServerOptions
from destseg_deploy.text import printable

MOST_JSON = 2**20
"""Bytes of an answer that describes a model."""


class Connections:
    """Open connections to one server, each used by one thread at a time."""

    def __init__(self, options: ServerOptions) -> None:
        """Take the address; nothing is opened yet."""
        self.url, parts = options.url, urlsplit(options.url)
        self._kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._host, self._port = parts.hostname or "", parts.port
        self._root, self._timeout = parts.path.rstrip("/"), options.timeout
        self._idle: list[HTTPConnection] = []

    def json(self, path: str, missing: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return what a path answers.

        Args:
            path: What is asked for.
            missing: What a server that does not know the path stands for; None: that is an error.

        Raises:
            BackendError: As ``ask``, or if the answer is no JSON object.
        """
        found, content = self.ask("GET", path, limit=MOST_JSON, missing=missing is not None)
        if missing is not None and not found:
            return missing
        try:
            said = json.loads(content)
        except (ValueError, RecursionError):
            said = None
        if not isinstance(said, dict):
            raise BackendError(f"{self.url}{path}: answers no JSON object. Is it a KServe server?")
        return said

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        limit: int,
        missing: bool = False,
    ) -> tuple[dict[str, str], bytes]:
        """Return the headers of an answer, their names in small letters, and its content.

        Args:
            method: ``GET`` or ``POST``.
            path: What is asked for.
            body: What is sent.
            headers: Of the request.
            limit: Bytes of the answer, at most.
            missing: Return no headers for a path that the server does not know.

        Raises:
            BackendError: If there is no answer, or it is an error.
        """
        status, found, content = self._exchange(method, path, body, dict(headers or {}), limit)
        if missing and status in (400, 404, 405, 501):
            return {}, b""
        if status != 200:
            raise BackendError(
                f"{self.url}{path}: the server answered {status} ({_reason(content)})."
            )
        if len(content) > limit:
            raise BackendError(f"{self.url}{path}: the answer has more than {limit} bytes.")
        return found, content

    def _exchange(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str], limit: int
    ) -> tuple[int, dict[str, str], bytes]:
        while True:
            connection, used = self._take()
            try:
                connection.request(method, self._root + path, body, headers)
                answer = connection.getresponse()
                content = answer.read(limit + 1)
            except (OSError, HTTPException) as error:
                connection.close()
                # A server may close an idle connection. A new one tells whether it is there.
                if used and not isinstance(error, TimeoutError):
                    continue
                raise BackendError(self._unreachable(error)) from error
            if answer.isclosed():  # read to its end, so the connection is free
                self._idle.append(connection)
            else:
                connection.close()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, found, content

    def _take(self) -> tuple[HTTPConnection, bool]:
        """Return a connection that nobody uses, and whether it was used before."""
        try:
            return self._idle.pop(), True
        except IndexError:
            return self._kind(self._host, self._port, timeout=self._timeout), False

    def _unreachable(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return no_answer(self.url, self._timeout)
        reason = getattr(error, "strerror", None) or str(error) or repr(error)
        return unreachable(self.url, one_line(reason))  # of a gRPC server it is bytes

    def close(self) -> None:
        """Close them all."""
        while self._idle:
            self._idle.pop().close()


def no_answer(url: str, timeout: float) -> str:
    """Say that a server is silent."""
    return (
        f"{url}: the server gave no answer in {timeout:g} s. Give it more time, or check the "
        "address."
    )


def unreachable(url: str, reason: str) -> str:
    """Say that no server is there."""
    return f"{url}: the server cannot be asked ({reason}). Start it, or check the address."


def one_line(said: str) -> str:
    """Return what a server says of its error, fit for a terminal."""
    return printable(" ".join(said.split()))[:300] or "it said nothing"


def _reason(content: bytes) -> str:
    try:
        said = str(json.loads(content)["error"])
    except (ValueError, RecursionError, LookupError, TypeError):
        said = content[:200].decode(errors="replace")
    return one_line(said)
