"""KServe over gRPC: the wire's bytes, large messages, answers that are none, and TLS."""

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("grpc", reason="the extra grpc is not installed")

import grpc as rpc

from destseg_deploy import BackendError
from destseg_deploy.predictor import Predictor
from destseg_deploy.runtime.server.over_grpc import SERVICE, messages, read_tensors
from destseg_deploy.spec import ModelSpec
from destseg_deploy.testing import FakeRuntime, fake_spec
from tests.deploy.runtime.server.cases import FRAMES, METADATA, opened, write_artifact
from tests.fakes.kserve_grpc import UNLIMITED, Kserve, metadata, model_server, refuse

M = messages()


@pytest.fixture
def elsewhere():
    """A server that answers what a test says."""
    server = Kserve()
    server.given = {"ModelMetadata": metadata(METADATA)}
    with server.serve():
        yield server


# --- the wire: these bytes were made with the classes of NVIDIA's tritonclient 2.73.0

REQUEST = (
    b"\n\x05cable*\x14\n\x05image\x12\x05UINT8\x1a\x04\x01\x01\x02\x032\r\n\x0banomaly_map2\x07\n"
    b"\x05score:\x06\x00\x01\x02\x03\x04\x05"
)
ANY = b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"  # -1
DESCRIPTION = (
    b'\n\x05cable\x12\x011\x12\x012\x1a\x10onnxruntime_onnx"\x1d\n\x05image\x12\x05UINT8\x1a\r'
    + (ANY + b"  \x03*!\n\x0banomaly_map\x12\x04FP32\x1a\x0c")
    + (ANY + b"  *\x1a\n\x05score\x12\x04FP32\x1a\x0b" + ANY + b"\x01")
)
CONFIGURATION = (
    b"\n2\n\x05cable \x04r\x19\n\x0fartifact_sha256\x12\x06\n\x04ab12\x8a\x01\x0bonnxruntime"
)
BYTES = (
    b'\n\x05cable\x12\x012\x1a\x017"\x12\n\x0csequence_end\x12\x02\x08\x01*!\n\x0banomaly_map\x12'
    b'\x04FP32\x1a\x03\x01\x01\x02"\x07\n\x01x\x12\x02\x10\x03*\x11\n\x05score\x12\x04FP32\x1a\x02'
    b"\x01\x012\x08\x00\x00\x80>\x00\x00\x00?2\x04\x00\x00\x00?"
)
NUMBERS = (
    b"\n\x05cable*$\n\x0banomaly_map\x12\x04FP32\x1a\x03\x01\x01\x02*\n2\x08\x00\x00\x80>\x00\x00"
    b"\x00?*\x18\n\x05score\x12\x04FP32\x1a\x01\x01*\x062\x04\x00\x00\x00?"
)


def test_a_request_has_the_bytes_of_the_protocol():
    tensor = M["Tensor"]
    asked = M["ModelInferRequest"](
        model_name="cable",
        inputs=[tensor(name="image", datatype="UINT8", shape=[1, 1, 2, 3])],
        outputs=[tensor(name="anomaly_map"), tensor(name="score")],
        raw_input_contents=[bytes(range(6))],
    )
    assert asked.SerializeToString() == REQUEST


def test_descriptions_are_read_from_the_bytes_of_the_protocol(artifact, elsewhere):
    said = M["ModelMetadataResponse"].FromString(DESCRIPTION)
    assert (said.inputs[0].name, list(said.inputs[0].shape)) == ("image", [-1, 32, 32, 3])
    assert [(one.name, list(one.shape)) for one in said.outputs] == [
        ("anomaly_map", [-1, 32, 32]),
        ("score", [-1, 1]),
    ]
    elsewhere.given["ModelMetadata"] = DESCRIPTION
    opened(artifact, elsewhere.url).close()
    elsewhere.given["ModelConfig"] = CONFIGURATION
    with pytest.raises(BackendError, match=r"serves another artifact \(sha256 ab12\)"):
        opened(artifact, elsewhere.url)


@pytest.mark.parametrize("content", [BYTES, NUMBERS], ids=["bytes", "numbers"])
def test_tensors_are_read_from_the_bytes_of_the_protocol(content):
    found = read_tensors(M["ModelInferResponse"].FromString(content))
    assert found["anomaly_map"].tolist() == [[[0.25, 0.5]]]
    assert found["score"].ravel().tolist() == [0.5]


# --- messages above gRPC's own limit of 4 MiB


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """An artifact for frames of 1280x1024 pixels, with maps as large: 3.75 and 5 MiB."""
    folder = tmp_path_factory.mktemp("large")
    return write_artifact(folder / "large-fp32.onnx", fake_spec(1024, 1280))


@pytest.fixture
def two_frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 1024, 1280, 3), dtype=np.uint8)


def test_frames_and_maps_above_4_mib_pass(large, two_frames):
    here = FakeRuntime(ModelSpec.read(large))
    server = model_server(Predictor(here), "large-fp32")
    with server.serve(UNLIMITED), opened(large, server.url) as there:
        found, expected = there.runtime.infer(two_frames), here.infer(two_frames)
        control = rpc.insecure_channel(server.url.removeprefix("grpc://"))
        asked = M["ModelInferRequest"](
            model_name="large-fp32",
            inputs=[M["Tensor"](name="image", datatype="UINT8", shape=[1, 1024, 1280, 3])],
            outputs=[M["Tensor"](name="anomaly_map")],
            raw_input_contents=[two_frames[0].tobytes()],
        )
        with control, pytest.raises(rpc.RpcError, match="larger than max"):
            control.unary_unary(f"/{SERVICE}/ModelInfer")(asked.SerializeToString(), timeout=30)
    np.testing.assert_array_equal(found.anomaly_map, expected.anomaly_map)
    np.testing.assert_array_equal(found.score, expected.score)


def test_a_server_that_takes_4_mib_only_is_one_line(large, two_frames):
    server = model_server(Predictor(FakeRuntime(ModelSpec.read(large))), "large-fp32")
    with server.serve(), opened(large, server.url) as there:
        assert there.runtime.infer(two_frames[:1]).score.shape == (1,), "control: 3.75 MiB pass"
        with pytest.raises(BackendError, match=r"larger than max .* Raise the server's") as said:
            there.runtime.infer(two_frames)
    assert "\n" not in str(said.value)


# --- answers that are none


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (refuse("INTERNAL", "no\nmemory"), r"answered ModelInfer with INTERNAL \(no memory\)"),
        (refuse("UNAVAILABLE", "not ready"), r"cannot be asked \(not ready\)"),
        (refuse("RESOURCE_EXHAUSTED", ""), r"RESOURCE_EXHAUSTED \(it said nothing\)"),
        (None, "answered ModelInfer with UNIMPLEMENTED"),
        (b"<html>", "the answer is none of KServe's protocol"),
        (b"", "no output 'anomaly_map'"),
        (BYTES[:-6], "none of KServe's protocol .*IndexError"),
        (BYTES[:-6] + b"2\x03abc", "none of KServe's protocol .*ValueError"),
        (BYTES, r"returned anomaly maps float32 \(1, 1, 2\), expected float32 \(1, 32, 32\)"),
        (b"x" * 2_000_000, r"RESOURCE_EXHAUSTED .*larger than max .*\)\.$"),
    ],
)
def test_an_answer_that_is_none_is_one_line(artifact, elsewhere, answer, words):
    elsewhere.given["ModelInfer"] = answer
    with opened(artifact, elsewhere.url) as there:
        with pytest.raises(BackendError, match=words) as said:
            there(FRAMES[0])
    assert "\n" not in str(said.value)


def test_a_description_that_is_none_is_refused(artifact, elsewhere):
    elsewhere.given["ModelMetadata"] = b"<html>"
    with pytest.raises(BackendError, match="none of KServe's protocol"):
        opened(artifact, elsewhere.url)
    elsewhere.given["ModelMetadata"] = metadata({**METADATA, "outputs": METADATA["outputs"][1:]})
    with pytest.raises(BackendError, match=r"output 'anomaly_map' is None None, expected FP32"):
        opened(artifact, elsewhere.url)


def test_a_configuration_that_fails_is_not_taken_for_a_missing_one(artifact, elsewhere):
    elsewhere.given["ModelConfig"] = refuse("INTERNAL", "broken")
    with pytest.raises(BackendError, match=r"answered ModelConfig with INTERNAL \(broken\)"):
        opened(artifact, elsewhere.url)


# --- the connection


def test_the_other_transports_port_is_one_line(artifact, http, grpc):
    for url in (http.replace("http", "grpc"), grpc.replace("grpc", "http")):
        with pytest.raises(BackendError, match="cannot be asked") as said:
            opened(artifact, url)
        assert str(said.value).isprintable()


def test_a_server_that_was_started_again_is_asked_again(artifact):
    server = model_server(Predictor(FakeRuntime(ModelSpec.read(artifact))), "fake-fp32")
    with server.serve():
        there = opened(artifact, server.url)
        before = there(FRAMES[0]).score
    with pytest.raises(BackendError, match="cannot be asked"):
        there(FRAMES[0])
    with server.serve(port=int(server.url.rpartition(":")[2])):
        channel = there.runtime._server._channel
        rpc.channel_ready_future(channel).result(timeout=10)
        np.testing.assert_array_equal(there(FRAMES[0]).score, before)
    there.close()


def test_a_proxy_of_the_environment_is_not_asked(artifact, grpc, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        proxy = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for name in ("http_proxy", "grpc_proxy", "https_proxy"):
            monkeypatch.setenv(name, proxy)
        for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
            monkeypatch.delenv(name, raising=False)
        with opened(artifact, grpc, timeout=5) as there:
            assert there(FRAMES[0]).score.shape == (1,)
        with rpc.insecure_channel(grpc.removeprefix("grpc://")) as control:
            asked = control.unary_unary(f"/{SERVICE}/ModelMetadata")
            with pytest.raises(rpc.RpcError):
                asked(b"", timeout=0.5)


def test_a_certificate_of_ones_own_is_trusted_as_over_https(artifact, tmp_path, monkeypatch):
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl, which makes the certificate")
    key, file = tmp_path / "key.pem", tmp_path / "cert.pem"
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost".split()
    more = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", file]
    subprocess.run(["openssl", *words, *more], check=True, capture_output=True)
    secret = rpc.ssl_server_credentials([(key.read_bytes(), file.read_bytes())])
    server = model_server(Predictor(FakeRuntime(ModelSpec.read(artifact))), "fake-fp32")
    with server.serve(credentials=secret):
        with pytest.raises(BackendError, match="cannot be asked"):
            opened(artifact, server.url)
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        with opened(artifact, server.url) as there:
            assert there(FRAMES[0]).score.shape == (1,)


def test_a_command_prints_one_line_and_nothing_of_grpc(artifact, tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    code = "from destseg_deploy.cli.predict import predict; predict()"
    url = f"grpc://127.0.0.1:{port}"
    words = [sys.executable, "-c", code, artifact, tmp_path / "a.png", "--server-url", url]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert f"{url}: the server cannot be asked" in line
