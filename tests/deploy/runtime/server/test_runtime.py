"""A server in place of a file: the same answers over HTTP and gRPC, and clear words where none."""

import socket
import sys
import threading

import numpy as np
import pytest

from destseg_deploy import BackendError, ServerOptions, SpecError
from destseg_deploy.predictor import Predictor
from destseg_deploy.spec import ModelSpec
from destseg_deploy.testing import FakeRuntime, fake_spec
from tests.deploy.runtime.server.cases import FRAMES, opened, write_artifact


def test_a_server_answers_as_the_file_does(artifact, address):
    with (
        opened(artifact, address) as there,
        Predictor(FakeRuntime(ModelSpec.read(artifact))) as here,
    ):
        found, expected = there(list(FRAMES)), here(list(FRAMES))
        assert there.spec.threshold == here.spec.threshold
    np.testing.assert_array_equal(found.anomaly_map, expected.anomaly_map)
    np.testing.assert_array_equal(found.score, expected.score)
    assert not np.array_equal(found.score[0], found.score[1]), "control: the answers differ"


def test_threads_share_a_predictor(artifact, address):
    with opened(artifact, address) as there:
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


def test_the_spec_alone_suffices(artifact, address, tmp_path):
    (tmp_path / "fake-fp32.json").write_bytes(artifact.with_suffix(".json").read_bytes())
    with opened(tmp_path / "fake-fp32.json", address) as there:
        assert there(FRAMES[0]).score.shape == (1,)
    (tmp_path / "other.onnx").touch()
    with pytest.raises(SpecError, match="no spec"):
        opened(tmp_path / "other.onnx", address)


def test_another_artifact_is_refused(artifact, address, tmp_path):
    other = write_artifact(tmp_path / "fake-fp32.onnx", fake_spec(), b"another model")
    with pytest.raises(BackendError, match=r"serves another artifact \(sha256 \w{12}\), expected"):
        opened(other, address)


def test_a_model_that_is_not_there_is_named(artifact, address):
    words = r"answered (404|ModelMetadata with NOT_FOUND) \(.*model:? '?nobody"
    with pytest.raises(BackendError, match=words):
        opened(artifact, address, model="nobody")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("http", "Connection refused"),
        ("grpc", "failed to connect to all addresses.*Connection refused"),
        ("GRPC", "failed to connect to all addresses.*Connection refused"),
    ],
)
def test_a_server_that_is_not_there_is_one_line(artifact, kind, reason):
    pytest.importorskip(kind.lower())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    words = rf"cannot be asked \({reason}.*\). Start it"
    with pytest.raises(BackendError, match=words) as said:
        opened(artifact, f"{kind}://127.0.0.1:{port}")
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_a_server_that_does_not_answer_is_one_line(artifact, kind):
    pytest.importorskip(kind)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"{kind}://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(BackendError, match=r"gave no answer in 0\.2 s"):
            opened(artifact, url, timeout=0.2)


def test_a_missing_package_is_named(artifact, monkeypatch):
    monkeypatch.setitem(sys.modules, "grpc", None)
    monkeypatch.delitem(sys.modules, "destseg_deploy.runtime.server.over_grpc", raising=False)
    with pytest.raises(BackendError, match=r"not installed \(grpc\).*destseg-deploy\[grpc\]'"):
        opened(artifact, "grpc://127.0.0.1:1")


def test_seconds_may_be_a_whole_number():
    assert ServerOptions("http://a:1", timeout=3).timeout == 3
    for wrong in ("3", True, None):
        with pytest.raises(BackendError, match=r"^timeout .* expected float"):
            ServerOptions("http://a:1", timeout=wrong)


@pytest.mark.parametrize(
    "url",
    [
        *("", "a:8000", "http://", "http://a:x", "http://a/?q=1", "ftp://a:1"),
        *("grpc://a", "grpc://a:0", "grpc://:8001", "grpc://a:8001/v2", "grpcx://a:8001"),
    ],
)
def test_an_address_that_cannot_be_asked_is_refused(url):
    with pytest.raises(BackendError, match=r"expected http://HOST:PORT or grpc://HOST:PORT"):
        ServerOptions(url=url)


@pytest.mark.parametrize("url", ["http://u@a:1", "grpc://u:secret@a:1"])
def test_a_password_is_refused_and_not_shown(url):
    with pytest.raises(BackendError, match=r"holds a user or a password \(@\)") as refused:
        ServerOptions(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("url", ["http://a", "https://a/v", "GRPC://a:1/", "grpcs://[::1]:8001"])
def test_an_address_that_can_be_asked_is_taken(url):
    assert ServerOptions(url=url).url == url
