"""A server in place of a file: the same answers, and clear words where it gives none."""

import json
import socket
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from destseg_deploy import BackendError, ServerOptions, SpecError, load
from destseg_deploy.predictor import Predictor
from destseg_deploy.runtime.server_runtime import read_tensors
from destseg_deploy.spec import FileRecord, ModelSpec, Threshold
from tests.fakes.runtime import FakeRuntime, fake_spec

FRAMES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "fake-fp32.onnx"
    path.write_bytes(b"a model")
    threshold = Threshold(0.5, 0.6, "made up", 9, 0.1)
    replace(fake_spec(), artifact=FileRecord.of(path), threshold=threshold).write(path)
    return path


@pytest.fixture(scope="module")
def page(artifact):
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


class Answers(BaseHTTPRequestHandler):
    """Answers each path with what the test put there: a status and a content."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        found = self.server.given.get(self.path, (404, b'{"error": "not here"}'))
        status, content = found() if callable(found) else found
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, *arguments: object) -> None:
        """Keep the test's output clean."""


MODEL = "/v2/models/fake-fp32"
METADATA = {
    "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 32, 32, 3]}],
    "outputs": [
        {"name": "anomaly_map", "datatype": "FP32", "shape": [-1, 32, 32]},
        {"name": "score", "datatype": "FP32", "shape": [-1, 1]},
    ],
}


@pytest.fixture
def elsewhere():
    """A server that answers what a test says; its attribute ``given``: path -> answer."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.given = {MODEL: (200, json.dumps(METADATA).encode())}
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _open(artifact: Path, url: str, **more: object) -> Predictor:
    return load(artifact, options=ServerOptions(url=url, **more))


def test_a_server_answers_as_the_file_does(artifact, page):
    with _open(artifact, page) as there, Predictor(FakeRuntime(ModelSpec.read(artifact))) as here:
        found, expected = there(list(FRAMES)), here(list(FRAMES))
        assert there.spec.threshold == here.spec.threshold
    np.testing.assert_array_equal(found.anomaly_map, expected.anomaly_map)
    np.testing.assert_array_equal(found.score, expected.score)
    assert not np.array_equal(found.score[0], found.score[1]), "control: the answers differ"


def test_threads_share_a_predictor(artifact, page):
    with _open(artifact, page) as there:
        expected = [there(frame).score[0] for frame in FRAMES]
        found = [[] for _ in FRAMES]

        def ask(i: int) -> None:
            found[i] = [there(FRAMES[i]).score[0] for _ in range(20)]

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(FRAMES))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [[score] * 20 for score in expected]


def test_the_spec_alone_suffices(artifact, page, tmp_path):
    (tmp_path / "fake-fp32.json").write_bytes(artifact.with_suffix(".json").read_bytes())
    with _open(tmp_path / "fake-fp32.json", page) as there:
        assert there(FRAMES[0]).score.shape == (1,)
    (tmp_path / "other.onnx").touch()
    with pytest.raises(SpecError, match="no spec"):
        _open(tmp_path / "other.onnx", page)


def test_another_artifact_is_refused(artifact, page, tmp_path):
    other = tmp_path / "fake-fp32.onnx"
    other.write_bytes(b"another model")
    replace(ModelSpec.read(artifact), artifact=FileRecord.of(other)).write(other)
    with pytest.raises(BackendError, match=r"serves another artifact \(sha256 \w{12}\), expected"):
        _open(other, page)


def test_a_model_that_is_not_there_is_named(artifact, page):
    with pytest.raises(BackendError, match=r"answered 404 \(model 'nobody': not here"):
        _open(artifact, page, model="nobody")


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("inputs", "shape"), [-1, 64, 64, 3], r"input 'image' is UINT8 \[-1, 64, 64, 3\]"),
        (("inputs", "datatype"), "FP32", r"input 'image' is FP32"),
        (("inputs", "name"), "pixels", r"input 'image' is None None"),
        (("outputs", "shape"), [-1, 32], r"output 'anomaly_map' is FP32 \[-1, 32\]"),
        (("outputs", "shape"), "x", r"output 'anomaly_map' is FP32 x"),
    ],
)
def test_a_model_with_other_tensors_is_refused(artifact, elsewhere, place, value, words):
    said = json.loads(json.dumps(METADATA))
    said[place[0]][0][place[1]] = value
    elsewhere.given[MODEL] = (200, json.dumps(said).encode())
    with pytest.raises(BackendError, match=words):
        _open(artifact, elsewhere.url)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((500, b'{"error": "no\\nmemory"}'), r"answered 500 \(no memory\)"),
        ((503, b""), r"answered 503 \(it said nothing\)"),
        ((200, b"<html>"), "the answer is none of KServe's protocol"),
        ((200, b'{"outputs": []}'), "no output 'anomaly_map'"),
        ((200, b"x" * 2_000_000), "the answer has more than"),
    ],
)
def test_an_answer_that_is_none_is_one_line(artifact, elsewhere, answer, words):
    elsewhere.given[f"{MODEL}/infer"] = answer
    with _open(artifact, elsewhere.url) as there, pytest.raises(BackendError, match=words) as said:
        there(FRAMES[0])
    assert "\n" not in str(said.value)


def test_a_score_with_an_axis_of_its_own_is_taken(artifact, elsewhere):
    """Triton gives (N, 1) where the model's configuration says dims: [ 1 ]."""
    outputs = [
        {"name": "anomaly_map", "datatype": "FP32", "shape": [1, 32, 32], "data": [0.25] * 1024},
        {"name": "score", "datatype": "FP32", "shape": [1, 1], "data": [0.5]},
    ]
    elsewhere.given[f"{MODEL}/infer"] = (200, json.dumps({"outputs": outputs}).encode())
    with _open(artifact, elsewhere.url) as there:
        found = there(FRAMES[0])
    assert (found.score.tolist(), found.anomaly_map.max()) == ([0.5], 0.25)


def test_a_connection_that_the_server_closed_is_opened_again(artifact, page):
    with _open(artifact, page) as there:
        before = there(FRAMES[0]).score
        for connection in there.runtime._server._idle:
            connection.sock.shutdown(socket.SHUT_RDWR)
        np.testing.assert_array_equal(there(FRAMES[0]).score, before)


def test_a_server_that_is_not_there_is_one_line(artifact):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(BackendError, match=r"cannot be asked \(Connection refused\). Start it"):
        _open(artifact, f"http://127.0.0.1:{port}")


def test_seconds_may_be_a_whole_number():
    assert ServerOptions("http://a:1", timeout=3).timeout == 3
    for wrong in ("3", True, None):
        with pytest.raises(BackendError, match=r"^timeout .* expected float"):
            ServerOptions("http://a:1", timeout=wrong)


def test_a_server_that_does_not_answer_is_one_line(artifact):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(BackendError, match=r"gave no answer in 0\.2 s"):
            _open(artifact, url, timeout=0.2)


@pytest.mark.parametrize(
    "url", ["", "grpc://a:8001", "a:8000", "http://", "http://a:x", "http://u@a:1", "http://a/?q=1"]
)
def test_an_address_that_cannot_be_asked_is_refused(url):
    with pytest.raises(BackendError, match=r"expected http://HOST:PORT") as said:
        ServerOptions(url=url)
    assert ("8000" in str(said.value).partition("HTTP.")[2]) == url.startswith("grpc")


@pytest.mark.parametrize("raw", [b"", b"[]", b'{"outputs": [3]}', b"[" * 100_000])
def test_no_answer_is_a_crash(raw):
    with pytest.raises(BackendError, match="none of KServe's protocol"):
        read_tensors(raw, None, "http://a")
    with pytest.raises(BackendError):
        read_tensors(raw, "\u0663x", "http://a")
