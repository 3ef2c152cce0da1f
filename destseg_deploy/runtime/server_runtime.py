"""Another program runs the artifact: a server that speaks KServe's protocol V2 over HTTP.

Triton, OpenVINO Model Server and ``destseg page`` do. Frames are sent as bytes ("binary tensor data
extension"). The artifact's spec lies on this machine: what is sent, and every verdict, is made by
it, so a server gives the same answers as a file.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.errors import BackendError
from destseg_deploy.options import ServerOptions
from destseg_deploy.runtime.base import Prediction, check_images, check_open
from destseg_deploy.runtime.connections import Connections
from destseg_deploy.spec import ModelSpec
from destseg_deploy.text import printable

HEADER = "Inference-Header-Content-Length"
"""Bytes of JSON before the tensors' bytes."""

HASH = "artifact_sha256"
"""Parameter of a model's configuration: the hash of the artifact that it was made from."""

SPARE = 2**20
"""Bytes of JSON that an answer may have beside its tensors."""


class ServerRuntime:
    """An artifact that runs elsewhere. Several threads may ask at once, each on its connection."""

    def __init__(self, path: Path, options: ServerOptions) -> None:
        """Read the spec and compare it with what the server says of its model.

        Args:
            path: The artifact or its spec. The artifact itself need not be here.
            options: Where the server is.

        Raises:
            SpecError: If the spec is missing or damaged.
            BackendError: If the server cannot be reached, has no such model, or serves another
                artifact.
        """
        self.spec = ModelSpec.read(path)
        self._process = os.getpid()
        stem = Path(self.spec.artifact.file).stem
        self._path = f"/v2/models/{quote(options.model or stem, safe='')}"
        self._server: Connections | None = Connections(options)
        try:
            _check_model(self._server.json(self._path), self.spec, options.url)
            config = self._server.json(f"{self._path}/config", missing={})
            _check_hash(config, self.spec, options.url)
        except BackendError:
            self.close()
            raise

    def infer(self, images: NDArray[np.uint8]) -> Prediction:
        """Score images; see ``Runtime.infer``."""
        check_open(self._server, self.spec, self._process)
        check_images(images, self.spec)
        assert self._server is not None
        tensor, outputs = self.spec.input, (self.spec.output.map_name, self.spec.output.score_name)
        body = np.ascontiguousarray(images).tobytes()
        entry = {"name": tensor.name, "datatype": "UINT8", "shape": list(images.shape)}
        asked = {
            "inputs": [{**entry, "parameters": {"binary_data_size": len(body)}}],
            "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in outputs],
        }
        head = json.dumps(asked).encode()
        limit = 4 * len(images) * (math.prod(self.spec.map_size) + 1) + SPARE
        headers = {HEADER: str(len(head)), "Content-Type": "application/octet-stream"}
        answer, content = self._server.ask(
            "POST", f"{self._path}/infer", head + body, headers, limit=limit
        )
        found = read_tensors(content, answer.get(HEADER.lower()), self._server.url)
        missing = [name for name in outputs if name not in found]
        if missing:
            raise BackendError(f"{self._server.url}: the answer has no output {missing[0]!r}.")
        anomaly_map, score = (found[name] for name in outputs)
        # A server that makes batches itself may give each score an axis of its own.
        return Prediction(anomaly_map, score.reshape(len(score)))

    def close(self) -> None:
        """Close the connections."""
        if self._server is not None:
            self._server.close()
            self._server = None


def read_tensors(
    content: bytes, header_length: str | None, where: str
) -> dict[str, NDArray[np.float32]]:
    """Return the float tensors of an answer: JSON, and behind it the bytes of those that say so.

    Raises:
        BackendError: If it is no such answer.
    """
    try:
        end = len(content) if header_length is None else int(header_length)
        found, start = {}, end
        for one in json.loads(content[:end])["outputs"]:
            if one["datatype"] != "FP32":
                continue
            size = one.get("parameters", {}).get("binary_data_size")
            if size is None:
                values = np.asarray(one["data"], np.float32)
            else:
                values = np.frombuffer(content[start : start + size], "<f4")
                start += size
            # A copy: the bytes are read-only, and their order is the server's.
            found[one["name"]] = np.array(values.reshape(one["shape"]), np.float32)
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise BackendError(
            f"{where}: the answer is none of KServe's protocol ({type(error).__name__}: {error})."
        ) from error
    return found


def _check_model(said: dict[str, Any], spec: ModelSpec, where: str) -> None:
    """Refuse a model whose tensors are not the artifact's.

    Raises:
        BackendError: With the first that is not.
    """
    output = spec.output
    for kind, name, datatype, shape in (
        ("inputs", spec.input.name, "UINT8", (*spec.size, 3)),
        ("outputs", output.map_name, "FP32", spec.map_size),
        ("outputs", output.score_name, "FP32", ()),
    ):
        tensors = said.get(kind)
        named = [
            one
            for one in (tensors if isinstance(tensors, list) else [])
            if isinstance(one, dict) and one.get("name") == name
        ]
        found = (named[0].get("datatype"), named[0].get("shape")) if named else (None, None)
        if found[0] != datatype or not _fits(found[1], shape):
            raise BackendError(
                f"{where}: the model's {kind[:-1]} {name!r} is {found[0]} {found[1]}, expected "
                f"{datatype} [-1, {', '.join(map(str, shape))}] of {spec.artifact.file}. Serve "
                "that artifact, or name its model."
            )


def _fits(found: Any, shape: tuple[int, ...]) -> bool:
    """Tell whether a model's shape, the batch before it, takes one; -1 stands for any side."""
    if not isinstance(found, list):
        return False
    sides = found[1:]
    if not shape:  # a score: one number for each image, with or without an axis
        return sides in ([], [1])
    return len(sides) == len(shape) and all(
        have in (-1, side) for have, side in zip(sides, shape, strict=True)
    )


def _check_hash(config: dict[str, Any], spec: ModelSpec, where: str) -> None:
    """Refuse a model that says it was made from another artifact; not every server says so.

    Raises:
        BackendError: With both hashes.
    """
    parameters = config.get("parameters")
    entry = parameters.get(HASH) if isinstance(parameters, dict) else None
    found = entry.get("string_value") if isinstance(entry, dict) else None
    if isinstance(found, str) and found != spec.artifact.sha256:
        raise BackendError(
            f"{where}: it serves another artifact (sha256 {printable(found)[:12]}), expected "
            f"{spec.artifact.file} ({spec.artifact.sha256[:12]}). Copy the server's .json here, or "
            "put this artifact on the server."
        )
