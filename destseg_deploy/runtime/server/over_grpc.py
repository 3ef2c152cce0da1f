"""KServe's protocol V2 over gRPC.

The messages are declared here, with the fields that are used: on the wire a field is its number,
and the others are skipped. Code that protoc generates would tie this to one major version of
protobuf, as NVIDIA's ``tritonclient`` is.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# It writes its own remarks on stderr, among the lines of a command; it reads this when imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from destseg_deploy.errors import BackendError
from destseg_deploy.options import ServerOptions
from destseg_deploy.runtime.server.connections import no_answer, one_line, unreachable
from destseg_deploy.runtime.server.tensors import add_tensor

SERVICE = "inference.GRPCInferenceService"

FIELDS: dict[str, dict[str, tuple[int, str]]] = {
    "ModelRequest": {"name": (1, "string")},
    "Tensor": {
        "name": (1, "string"),
        "datatype": (2, "string"),
        "shape": (3, "repeated int64"),
        "contents": (5, "Contents"),
    },
    "Contents": {"fp32_contents": (6, "repeated float")},
    "ModelMetadataResponse": {"inputs": (4, "repeated Tensor"), "outputs": (5, "repeated Tensor")},
    "ModelConfigResponse": {"config": (1, "ModelConfig")},
    "ModelConfig": {"parameters": (14, "repeated Parameter")},
    "Parameter": {"key": (1, "string"), "value": (2, "ParameterValue")},
    "ParameterValue": {"string_value": (1, "string")},
    "ModelInferRequest": {
        "model_name": (1, "string"),
        "inputs": (5, "repeated Tensor"),
        "outputs": (6, "repeated Tensor"),
        "raw_input_contents": (7, "repeated bytes"),
    },
    "ModelInferResponse": {
        "outputs": (5, "repeated Tensor"),
        "raw_output_contents": (6, "repeated bytes"),
    },
}
"""Message -> its fields: number and type. Messages of equal fields share a name, as names do not
travel; a map is a list of keys and values, as it is on the wire."""

RECONNECT_MS = 1000
"""Longest pause between two tries to connect again. gRPC's own grows to two minutes, in which a
server that was started again would not be asked."""


class GrpcTransport:
    """See ``Transport``. All calls share one connection, which is opened again when it breaks."""

    def __init__(self, options: ServerOptions, model: str, most: int) -> None:
        """Take the address; nothing is opened yet.

        Args:
            options: Where the server is.
            model: Name of the model there.
            most: Bytes that an answer may have.
        """
        self._url, self._model, self._timeout = options.url, model, options.timeout
        self._messages = messages()
        parts = urlsplit(options.url)
        settings = [
            ("grpc.max_receive_message_length", most),  # 4 MiB unless given
            ("grpc.enable_http_proxy", 0),  # as over HTTP
            ("grpc.max_reconnect_backoff_ms", RECONNECT_MS),
        ]
        self._channel = (
            grpc.secure_channel(parts.netloc, _credentials(), settings)
            if parts.scheme == "grpcs"
            else grpc.insecure_channel(parts.netloc, settings)
        )

    def metadata(self) -> dict[str, Any]:
        """Return the model's tensors; see ``Transport``."""
        said = self._ask("ModelMetadata", self._messages["ModelRequest"](name=self._model))
        return {
            kind: [
                {"name": one.name, "datatype": one.datatype, "shape": list(one.shape)}
                for one in getattr(said, kind)
            ]
            for kind in ("inputs", "outputs")
        }

    def configuration(self) -> dict[str, Any]:
        """Return the parameters of the model's configuration; see ``Transport``."""
        asked = self._messages["ModelRequest"](name=self._model)
        said = self._ask("ModelConfig", asked, missing=True)
        if said is None:
            return {}
        found = {one.key: one.value.string_value for one in said.config.parameters}
        return {"parameters": {key: {"string_value": text} for key, text in found.items()}}

    def infer(
        self, name: str, images: NDArray[np.uint8], outputs: Sequence[str]
    ) -> dict[str, NDArray[np.float32]]:
        """Return the answer's tensors; see ``Transport``."""
        tensor = self._messages["Tensor"]
        asked = self._messages["ModelInferRequest"](
            model_name=self._model,
            inputs=[tensor(name=name, datatype="UINT8", shape=images.shape)],
            outputs=[tensor(name=one) for one in outputs],
            raw_input_contents=[np.ascontiguousarray(images).tobytes()],
        )
        said = self._ask("ModelInfer", asked)
        try:
            return read_tensors(said)
        except (ValueError, IndexError) as error:
            raise self._nonsense(error) from error

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def _ask(self, method: str, asked: Any, *, missing: bool = False) -> Any:
        """Return the answer to a call; with ``missing``, None where the server has no such call."""
        call = self._channel.unary_unary(
            f"/{SERVICE}/{method}", type(asked).SerializeToString, bytes
        )
        try:
            content = call(asked, timeout=self._timeout)
        except grpc.RpcError as error:
            if missing and error.code() in (
                grpc.StatusCode.UNIMPLEMENTED,
                grpc.StatusCode.NOT_FOUND,
                grpc.StatusCode.INVALID_ARGUMENT,
            ):
                return None
            raise BackendError(self._failed(method, error)) from error
        try:
            return self._messages[f"{method}Response"].FromString(content)
        except DecodeError as error:
            raise self._nonsense(error) from error

    def _failed(self, method: str, error: Any) -> str:
        code, said = error.code(), one_line(error.details() or "")
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return no_answer(self._url, self._timeout)
        if code is grpc.StatusCode.UNAVAILABLE:
            return unreachable(self._url, said)
        advice = ""
        if "larger than max" in said and "CLIENT:" not in said:  # our limit is the spec's
            advice = " Raise the server's limit for a message, or pass its http:// address."
        return f"{self._url}: the server answered {method} with {code.name} ({said}).{advice}"

    def _nonsense(self, error: Exception) -> BackendError:
        return BackendError(
            f"{self._url}: the answer is none of KServe's protocol ({type(error).__name__}: "
            f"{one_line(str(error))})."
        )


def messages() -> dict[str, Any]:
    """Return the classes of the messages by name.

    They are in a pool of their own: a program may have loaded another client, with other classes
    of the same protocol.
    """
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="kserve.proto", syntax="proto3")
    for name, fields in FIELDS.items():
        message = file.message_type.add(name=name)
        for field, (number, declared) in fields.items():
            kind = declared.removeprefix("repeated ")
            one = message.field.add(name=field, number=number)
            one.label = kinds.LABEL_OPTIONAL if kind == declared else kinds.LABEL_REPEATED
            if kind in FIELDS:
                one.type, one.type_name = kinds.TYPE_MESSAGE, f".{kind}"
            else:
                one.type = kinds.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {n: message_factory.GetMessageClass(pool.FindMessageTypeByName(n)) for n in FIELDS}


def read_tensors(answer: Any) -> dict[str, NDArray[np.float32]]:
    """Return the float tensors of a ``ModelInferResponse``: in its bytes, or as numbers.

    Raises:
        ValueError: If values do not fill their shape, or an output is there twice.
        IndexError: If a tensor has no bytes.
    """
    found: dict[str, NDArray[np.float32]] = {}
    for i, one in enumerate(answer.outputs):
        if one.datatype != "FP32":
            continue
        if answer.raw_output_contents:
            values = np.frombuffer(answer.raw_output_contents[i], "<f4")
        else:
            values = np.asarray(one.contents.fp32_contents, np.float32)
        add_tensor(found, one.name, values, list(one.shape))
    return found


def _credentials() -> Any:
    """Return credentials that trust what HTTPS trusts: SSL_CERT_FILE, or the system's list."""
    file = ssl.get_default_verify_paths().cafile
    return grpc.ssl_channel_credentials(Path(file).read_bytes() if file else None)
