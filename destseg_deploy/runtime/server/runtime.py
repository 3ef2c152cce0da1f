"""Another program runs the artifact: a server that speaks KServe's protocol V2.

Triton and OpenVINO Model Server speak it over HTTP and gRPC, ``destseg page`` over HTTP. The
artifact's spec lies on this machine: what is sent, and every verdict, is made by it, so a server
gives the same answers as a file.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.device import Device
from destseg_deploy.errors import BackendError
from destseg_deploy.options import ServerOptions
from destseg_deploy.runtime.base import Prediction, check_images, check_open, kept_by_children
from destseg_deploy.spec import ModelSpec
from destseg_deploy.text import printable

HASH = "artifact_sha256"
"""Parameter of a model's configuration: the hash of the artifact that it was made from."""

SPARE = 2**20
"""Bytes that an answer may have beside its tensors."""


class Transport(Protocol):
    """Asks a server about one model. Several threads may ask at once.

    All of it raises ``BackendError`` if the server cannot be reached, does not answer in time,
    answers an error, or answers what is not of the protocol.
    """

    def metadata(self) -> dict[str, Any]:
        """Return ``inputs`` and ``outputs``: lists of ``name``, ``datatype`` and ``shape``."""

    def configuration(self) -> dict[str, Any]:
        """Return Triton's model configuration; empty where the server has none."""

    def infer(
        self, name: str, images: NDArray[np.uint8], outputs: Sequence[str]
    ) -> dict[str, NDArray[np.float32]]:
        """Send images as the input of a name; return the outputs that are answered."""

    def close(self) -> None:
        """Close the connections."""


class ServerRuntime:
    """An artifact that runs elsewhere. Several threads may ask at once."""

    def __init__(self, path: Path, device: Device, options: ServerOptions) -> None:
        """Read the spec and compare it with what the server says of its model.

        Args:
            path: The artifact or its spec. The artifact itself need not be here.
            device: The CPU: the server chooses where it runs.
            options: Where the server is.

        Raises:
            SpecError: If the spec is missing or damaged.
            BackendError: If the server cannot be reached, has no such model, or serves another
                artifact; or if gRPC is asked for and not installed.
        """
        self.spec = ModelSpec.read(path)
        self._url = options.url
        self._process = os.getpid()
        model = options.model or Path(self.spec.artifact.file).stem
        most = 4 * self.spec.input.batch.max * (math.prod(self.spec.map_size) + 1) + SPARE
        self._server: Transport | None = _open(options, model, most)
        self._keep = kept_by_children(self, self._server)
        try:
            _check_model(self._server.metadata(), self.spec, options.url)
            _check_hash(self._server.configuration(), self.spec, options.url)
        except BackendError:
            self.close()
            raise

    def infer(self, images: NDArray[np.uint8]) -> Prediction:
        """Score images; see ``Runtime.infer``."""
        check_open(self._server, self.spec, self._process)
        check_images(images, self.spec)
        assert self._server is not None
        outputs = self.spec.output.map_name, self.spec.output.score_name
        found = self._server.infer(self.spec.input.name, images, outputs)
        missing = [name for name in outputs if name not in found]
        if missing:
            raise BackendError(f"{self._url}: the answer has no output {missing[0]!r}.")
        anomaly_map, score = (found[name] for name in outputs)
        # A server that makes batches itself may give each score an axis of its own.
        return Prediction(anomaly_map, score.reshape(-1))

    def close(self) -> None:
        """Close the connections."""
        server, self._server = self._server, None
        if server is not None and not self._keep():
            server.close()


def _open(options: ServerOptions, model: str, most: int) -> Transport:
    """Return what asks about a model; an answer has at most so many bytes as ``most``."""
    if not urlsplit(options.url).scheme.startswith("grpc"):
        from destseg_deploy.runtime.server.over_http import HttpTransport

        return HttpTransport(options, model, most)
    try:
        from destseg_deploy.runtime.server.over_grpc import GrpcTransport
    except ModuleNotFoundError as error:
        raise BackendError(
            f"{options.url}: gRPC needs a package that is not installed ({error.name}). pip "
            "install 'destseg-deploy[grpc]', or pass the server's http:// address."
        ) from error
    return GrpcTransport(options, model, most)


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
