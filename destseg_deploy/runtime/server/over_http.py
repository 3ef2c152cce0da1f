"""KServe's protocol V2 over HTTP. Frames travel as bytes ("binary tensor data extension")."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.errors import BackendError
from destseg_deploy.options import ServerOptions
from destseg_deploy.runtime.server.connections import Connections
from destseg_deploy.runtime.server.tensors import add_tensor

HEADER = "Inference-Header-Content-Length"
"""Bytes of JSON before the tensors' bytes."""


class HttpTransport:
    """See ``Transport``. Each call has a connection of its own while it lasts."""

    def __init__(self, options: ServerOptions, model: str, most: int) -> None:
        """Take the address; nothing is opened yet.

        Args:
            options: Where the server is.
            model: Name of the model there.
            most: Bytes that an answer may have.
        """
        self._server, self._most = Connections(options), most
        self._path = f"/v2/models/{quote(model, safe='')}"

    def metadata(self) -> dict[str, Any]:
        """Return the model's tensors; see ``Transport``."""
        return self._server.json(self._path)

    def configuration(self) -> dict[str, Any]:
        """Return the model's configuration; see ``Transport``."""
        return self._server.json(f"{self._path}/config", missing={})

    def infer(
        self, name: str, images: NDArray[np.uint8], outputs: Sequence[str]
    ) -> dict[str, NDArray[np.float32]]:
        """Return the answer's tensors; see ``Transport``."""
        body = np.ascontiguousarray(images).tobytes()
        entry = {"name": name, "datatype": "UINT8", "shape": list(images.shape)}
        asked = {
            "inputs": [{**entry, "parameters": {"binary_data_size": len(body)}}],
            "outputs": [{"name": one, "parameters": {"binary_data": True}} for one in outputs],
        }
        head = json.dumps(asked).encode()
        headers = {HEADER: str(len(head)), "Content-Type": "application/octet-stream"}
        answer, content = self._server.ask(
            "POST", f"{self._path}/infer", head + body, headers, limit=self._most
        )
        return read_tensors(content, answer.get(HEADER.lower()), self._server.url)

    def close(self) -> None:
        """Close the connections."""
        self._server.close()


def read_tensors(
    content: bytes, header_length: str | None, where: str
) -> dict[str, NDArray[np.float32]]:
    """Return the float tensors of an answer: JSON, and behind it the bytes of those that say so.

    Raises:
        BackendError: If it is no such answer.
    """
    try:
        end = len(content) if header_length is None else int(header_length)
        found: dict[str, NDArray[np.float32]] = {}
        start = end
        for one in json.loads(content[:end])["outputs"]:
            if one["datatype"] != "FP32":
                continue
            size = one.get("parameters", {}).get("binary_data_size")
            if size is None:
                values = np.asarray(one["data"])
            else:
                values = np.frombuffer(content[start : start + size], "<f4")
                start += size
            add_tensor(found, one["name"], values, one["shape"])
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise BackendError(
            f"{where}: the answer is none of KServe's protocol ({type(error).__name__}: {error})."
        ) from error
    return found
