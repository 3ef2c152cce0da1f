"""KServe over HTTP: what only that transport can do wrong."""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from destseg_deploy import BackendError
from destseg_deploy.runtime.server.over_http import read_tensors
from tests.deploy.runtime.server.cases import FRAMES, METADATA, opened


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


TWO_SCORES = json.dumps(
    {
        "outputs": [
            {"name": "anomaly_map", "datatype": "FP32", "shape": [1, 32, 32], "data": [0.2] * 1024},
            {"name": "score", "datatype": "FP32", "shape": [1, 2], "data": [0.5, 0.9]},
        ]
    }
).encode()
MODEL = "/v2/models/fake-fp32"


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
        opened(artifact, elsewhere.url)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((500, b'{"error": "no\\nmemory"}'), r"answered 500 \(no memory\)"),
        ((503, b""), r"answered 503 \(it said nothing\)"),
        ((200, b"<html>"), "the answer is none of KServe's protocol"),
        ((200, b'{"outputs": []}'), "no output 'anomaly_map'"),
        ((200, b"x" * 2_000_000), "the answer has more than"),
        ((200, TWO_SCORES), r"returned scores float32 \(2,\), expected float32 \(1,\)"),
    ],
)
def test_an_answer_that_is_none_is_one_line(artifact, elsewhere, answer, words):
    elsewhere.given[f"{MODEL}/infer"] = answer
    with opened(artifact, elsewhere.url) as there, pytest.raises(BackendError, match=words) as said:
        there(FRAMES[0])
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("shape", [[1], [1, 1], []])
def test_a_score_with_an_axis_of_its_own_is_taken(artifact, elsewhere, shape):
    """Triton gives (N, 1) where the model's configuration says dims: [ 1 ]."""
    outputs = [
        {"name": "anomaly_map", "datatype": "FP32", "shape": [1, 32, 32], "data": [0.25] * 1024},
        {"name": "score", "datatype": "FP32", "shape": shape, "data": [0.5]},
    ]
    elsewhere.given[f"{MODEL}/infer"] = (200, json.dumps({"outputs": outputs}).encode())
    with opened(artifact, elsewhere.url) as there:
        found = there(FRAMES[0])
    assert (found.score.tolist(), found.anomaly_map.max()) == ([0.5], 0.25)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": ["0.2"]}, "output 'score' holds what is no number"),
        ({"data": [True]}, "output 'score' holds what is no number"),
        ({"data": [None]}, "output 'score' holds what is no number"),
        ({"data": [[]]}, "has 0 values for the shape"),
        ({"shape": [-1]}, r"has 1 values for the shape \[-1\]"),
        ({"shape": [2]}, r"has 1 values for the shape \[2\]"),
        ({"name": "anomaly_map"}, "output 'anomaly_map' is there twice"),
    ],
)
def test_what_is_no_score_is_refused(change, words):
    outputs = [
        {"name": "anomaly_map", "datatype": "FP32", "shape": [1, 1, 1], "data": [0.25]},
        {"name": "score", "datatype": "FP32", "shape": [1], "data": [0.5], **change},
    ]
    with pytest.raises(BackendError, match=words):
        read_tensors(json.dumps({"outputs": outputs}).encode(), None, "here")


def test_a_connection_that_the_server_closed_is_opened_again(artifact, http):
    with opened(artifact, http) as there:
        before = there(FRAMES[0]).score
        for connection in there.runtime._server._server._idle:
            connection.sock.shutdown(socket.SHUT_RDWR)
        np.testing.assert_array_equal(there(FRAMES[0]).score, before)


@pytest.mark.parametrize("raw", [b"", b"[]", b'{"outputs": [3]}', b"[" * 100_000])
def test_no_answer_is_a_crash(raw):
    with pytest.raises(BackendError, match="none of KServe's protocol"):
        read_tensors(raw, None, "http://a")
    with pytest.raises(BackendError):
        read_tensors(raw, "\u0663x", "http://a")
