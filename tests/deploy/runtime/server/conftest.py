"""Two servers of one fake model: ``destseg page`` over HTTP, and a peer over gRPC."""

import socket
import threading
import time
from pathlib import Path

import pytest

from destseg_deploy.predictor import Predictor
from destseg_deploy.spec import ModelSpec
from destseg_deploy.testing import FakeRuntime, fake_spec
from tests.deploy.runtime.server.cases import write_artifact


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("artifact") / "fake-fp32.onnx", fake_spec())


@pytest.fixture(scope="module")
def http(artifact):
    """The address of ``destseg page`` over the fake model."""
    uvicorn = pytest.importorskip("uvicorn")
    pytest.importorskip("starlette")
    from destseg_deploy.serving.app import make_app
    from destseg_deploy.serving.service import Service

    service = Service(Predictor(FakeRuntime(ModelSpec.read(artifact))), artifact)
    config = uvicorn.Config(make_app(service, limit=2**24), log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def grpc(artifact):
    """The address of the peer over the fake model."""
    pytest.importorskip("grpc", reason="the extra grpc is not installed")
    from tests.fakes.kserve_grpc import model_server

    server = model_server(Predictor(FakeRuntime(ModelSpec.read(artifact))), "fake-fp32")
    with server.serve():
        yield server.url


@pytest.fixture(params=["http", "grpc"])
def address(request) -> str:
    """Each of the two addresses in turn."""
    return request.getfixturevalue(request.param)
