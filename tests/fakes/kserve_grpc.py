"""A server of KServe's protocol V2 over gRPC in this process, which answers what a test says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
from google.protobuf.json_format import ParseDict

from destseg_deploy.predictor import Predictor
from destseg_deploy.runtime.server.over_grpc import SERVICE, messages
from destseg_deploy.runtime.server.runtime import HASH
from destseg_deploy.serving.kserve import describe_model

UNLIMITED = ("grpc.max_receive_message_length", -1)
"""As Triton's; others keep gRPC's 4 MiB."""

M = messages()


class Kserve(grpc.GenericRpcHandler):
    """Attributes: ``url``, and ``given``: method -> its answer, bytes or a function that makes them
    of the request's bytes and the call's context.
    """

    def __init__(self) -> None:
        self.given: dict[str, bytes | Callable[[bytes, Any], bytes]] = {}
        self.url = ""

    def service(self, call: Any) -> Any:
        service, _, method = call.method.strip("/").partition("/")
        answer = self.given.get(method) if service == SERVICE else None
        if answer is None:
            return None  # gRPC answers UNIMPLEMENTED
        made = answer if callable(answer) else lambda asked, context: answer
        return grpc.unary_unary_rpc_method_handler(made)

    @contextmanager
    def serve(self, *settings: tuple[str, int], port: int = 0, credentials: Any = None) -> Iterator:
        """Listen on the loopback address until the block ends."""
        options = [("grpc.so_reuseport", 0), *settings]
        server = grpc.server(ThreadPoolExecutor(8), [self], options=options)
        place = f"127.0.0.1:{port}"
        port = (
            server.add_secure_port(place, credentials)
            if credentials
            else server.add_insecure_port(place)
        )
        self.url = f"grpc{'s' if credentials else ''}://127.0.0.1:{port}"
        server.start()
        try:
            yield self
        finally:
            server.stop(None).wait()


def metadata(said: dict[str, Any]) -> bytes:
    """Return an answer to ModelMetadata from what the same server says over HTTP."""
    return ParseDict(
        said, M["ModelMetadataResponse"](), ignore_unknown_fields=True
    ).SerializeToString()


def refuse(code: str, words: str) -> Callable[[bytes, Any], bytes]:
    """Return an answer that is an error."""
    return lambda asked, context: context.abort(getattr(grpc.StatusCode, code), words)


def model_server(predictor: Predictor, name: str) -> Kserve:
    """Return a server of one model, as Triton would answer."""
    server, spec = Kserve(), predictor.spec

    def named(field: str, kind: str, answer: Callable[[Any], Any]) -> Callable[[bytes, Any], bytes]:
        def call(content: bytes, context: Any) -> bytes:
            asked = M[kind].FromString(content)
            if getattr(asked, field) != name:
                words = f"Request for unknown model: '{getattr(asked, field)}' is not found"
                context.abort(grpc.StatusCode.NOT_FOUND, words)
            return answer(asked)

        return call

    def infer(asked: Any) -> bytes:
        frames = np.frombuffer(asked.raw_input_contents[0], np.uint8)
        found = predictor.runtime.infer(frames.reshape(tuple(asked.inputs[0].shape)))
        values = {spec.output.map_name: found.anomaly_map, spec.output.score_name: found.score}
        wanted = {one.name: values[one.name] for one in asked.outputs}
        tensor = M["Tensor"]
        return M["ModelInferResponse"](
            outputs=[tensor(name=n, datatype="FP32", shape=v.shape) for n, v in wanted.items()],
            raw_output_contents=[v.tobytes() for v in wanted.values()],
        ).SerializeToString()

    said = describe_model(spec, name, any_size=False, judged=False)
    entry = {"key": HASH, "value": {"string_value": spec.artifact.sha256}}
    config = M["ModelConfigResponse"](config={"parameters": [entry]}).SerializeToString()
    server.given = {
        "ModelMetadata": named("name", "ModelRequest", lambda asked: metadata(said)),
        "ModelConfig": named("name", "ModelRequest", lambda asked: config),
        "ModelInfer": named("model_name", "ModelInferRequest", infer),
    }
    return server
