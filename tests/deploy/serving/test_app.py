"""The server's answers and refusals, over Starlette's client and a fake model."""

import io
import json
import shutil
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette")
pytest.importorskip("httpx2")

from starlette.testclient import TestClient

from destseg_deploy.predictor import Predictor
from destseg_deploy.runtime.base import Prediction
from destseg_deploy.serving.app import make_app
from destseg_deploy.serving.service import Service
from destseg_deploy.spec import FileRecord, ModelSpec, Threshold
from destseg_deploy.testing import FakeRuntime, fake_spec

LIMIT = 200_000
THRESHOLD = Threshold(0.5, 0.6, "made up", 9, 0.1)


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return file.getvalue()


def _bright(level: int) -> np.ndarray:
    image = np.full((40, 30, 3), 10, np.uint8)
    image[10:30, 5:25] = level
    return image


@pytest.fixture
def artifact(tmp_path) -> Path:
    path = tmp_path / "fake-fp32.onnx"
    path.write_bytes(b"a model")
    replace(fake_spec(), artifact=FileRecord.of(path), threshold=THRESHOLD).write(path)
    return path


@pytest.fixture
def service(artifact) -> Service:
    return Service(Predictor(FakeRuntime(ModelSpec.read(artifact))), artifact)


@pytest.fixture
def client(service) -> TestClient:
    app = make_app(service, limit=LIMIT)
    return TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


def test_health_and_metadata(client):
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/fake-fp32/ready"):
        assert client.get(path).status_code == 200
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    said = client.get("/v2/models/fake-fp32").json()
    assert said["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
    assert [one["name"] for one in said["outputs"]] == ["anomaly_map", "score", "verdict"]
    missing = client.get("/v2/models/other")
    assert missing.status_code == 404
    assert missing.json() == {"error": "model 'other': not here. Expected 'fake-fp32'."}


def test_inference_is_the_predictors(client, service):
    frames = np.stack([_bright(90), _bright(200)])
    expected = service.predictor(frames)
    body = {
        "inputs": [
            {
                "name": "image",
                "datatype": "UINT8",
                "shape": list(frames.shape),
                "data": frames.tolist(),
            }
        ]
    }
    answer = client.post("/v2/models/fake-fp32/infer", json=body).json()
    outputs = {one["name"]: one["data"] for one in answer["outputs"]}
    np.testing.assert_array_equal(np.array(outputs["score"], np.float32), expected.score)
    assert outputs["verdict"] == ["OK", "NG"]


def test_inference_in_bytes_is_the_same(client, service):
    frames = np.stack([_bright(90), _bright(200)])
    raw = frames.tobytes()
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(frames.shape)}
    asked = {
        "inputs": [{**tensor, "parameters": {"binary_data_size": len(raw)}}],
        "parameters": {"binary_data_output": True},
        "outputs": [{"name": "score", "parameters": {"binary_data": True}}],
    }
    header = json.dumps(asked).encode()
    length = {"Inference-Header-Content-Length": str(len(header))}
    answer = client.post("/v2/models/fake-fp32/infer", content=header + raw, headers=length)
    assert answer.headers["content-type"] == "application/octet-stream"
    start = int(answer.headers["Inference-Header-Content-Length"])
    scores = np.frombuffer(answer.content[start:], "<f4")
    np.testing.assert_array_equal(scores, service.predictor(frames).score)


def test_a_picture_is_scored_as_its_file_is(client, service, tmp_path):
    (tmp_path / "a.png").write_bytes(_png(_bright(200)))
    expected = service.predictor(tmp_path / "a.png")
    answer = client.post("/api/look", content=(tmp_path / "a.png").read_bytes()).json()
    assert answer["score"] == float(expected.score[0])
    assert answer["peak"] == float(expected.anomaly_map.max())
    assert answer["size"] == [30, 40]
    assert answer["picture"]["image"].startswith("data:image/webp;base64,")


def test_16_bit_colours_are_read_without_a_file(client, service, tmp_path):
    import cv2

    deep = np.full((32, 32, 3), 3000, np.uint16)
    deep[8:16, 8:16, 2] = 60_000  # red, in OpenCV's order
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    answer = client.post("/api/look", content=(tmp_path / "deep.png").read_bytes()).json()
    assert answer["score"] == float(service.predictor(tmp_path / "deep.png").score[0])


def _huge_png(side: int = 30_000) -> bytes:
    """The header of a PNG with 30,000 x 30,000 pixels, and a few of its bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    size = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")


BAD = {
    "text": (b"some words", 400, "not an image"),
    "nothing": (b"", 400, "an empty file"),
    "a huge picture": (_huge_png(), 400, "30000x30000 pixels"),
    "half a picture": (_png(_bright(9))[:60], 400, "cannot be read"),
    "a picture within the decoder's limit": (
        _huge_png(9_000),
        400,
        "9000x9000 pixels, expected at most 64 million",
    ),
    "a body above the limit": (b"\0" * (LIMIT + 1), 413, "0.190735 MiB, which is the limit"),
    "a body far above it": (b"\0" * (50 * LIMIT), 413, "which is the limit"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_clear_error_and_the_server_goes_on(client, name):
    content, status, words = BAD[name]
    answer = client.post("/api/look", content=content)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert words in answer.json()["error"]
    assert "\n" not in answer.json()["error"]
    assert client.post("/api/look", content=_png(_bright(200))).status_code == 200


def test_a_body_at_the_limit_is_read(client):
    answer = client.post("/api/look", content=b"\0" * LIMIT)
    assert "not an image" in answer.json()["error"]


@pytest.mark.parametrize("body", [b"GIF89a", b"[" * 50_000, b"{}", b"\xff\xfe"])
def test_bad_inference_requests_are_refused(client, body):
    answer = client.post("/v2/models/fake-fp32/infer", content=body)
    assert answer.status_code == 400
    assert list(answer.json()) == ["error"]


def test_frames_that_the_artifact_does_not_take_are_refused(client, service):
    service.predictor.runtime.spec = replace(
        fake_spec(), network=replace(fake_spec().network, height=64)
    )
    answer = client.post("/api/look", content=_png(_bright(9)))
    assert answer.status_code == 400
    assert "--input-size" in answer.json()["error"]


def test_an_answer_that_is_none_is_the_servers_fault(client, service, monkeypatch):
    def infer(images):
        maps = np.full((len(images), 32, 32), np.nan, np.float32)
        return Prediction(maps, maps[:, 0, 0])

    monkeypatch.setattr(service.predictor.runtime, "infer", infer)
    answer = client.post("/api/look", content=_png(_bright(9)))
    assert answer.status_code == 500
    assert "No verdict is made of it" in answer.json()["error"]


def test_a_threshold_is_saved_for_verdicts_and_in_the_spec(client, artifact):
    answer = client.post("/api/threshold", json={"score": 0.9, "pixel": 1})
    assert answer.json() == {"score": 0.9, "pixel": 1.0, "rule": "set by hand"}
    assert ModelSpec.read(artifact).threshold == Threshold(0.9, 1.0, "set by hand")
    body = {
        "inputs": [
            {
                "name": "image",
                "datatype": "UINT8",
                "shape": [1, 40, 30, 3],
                "data": _bright(200).tolist(),
            }
        ],
        "outputs": [{"name": "verdict"}],
    }
    answer = client.post("/v2/models/fake-fp32/infer", json=body).json()
    assert answer["outputs"][0]["data"] == ["OK"], "it was NG at 0.5"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"3",
        b'{"score": 0.3}',
        b'{"score": "0.3", "pixel": 0.3}',
        b'{"score": true, "pixel": 1}',
        b'{"score": 1.5, "pixel": 1}',
        b'{"score": NaN, "pixel": 1}',
        b'{"score": -0.1, "pixel": 1}',
        b'{"score": ' + b"9" * 400 + b', "pixel": 1}',
    ],
)
def test_a_wrong_threshold_changes_nothing(client, artifact, body):
    before = artifact.with_suffix(".json").read_bytes()
    answer = client.post("/api/threshold", content=body)
    assert answer.status_code == 400
    assert "threshold" in answer.json()["error"]
    assert artifact.with_suffix(".json").read_bytes() == before


def test_a_spec_that_cannot_be_written_is_said(client, artifact):
    shutil.rmtree(artifact.parent)
    answer = client.post("/api/threshold", json={"score": 0.9, "pixel": 0.9})
    assert answer.status_code == 500
    assert list(answer.json()) == ["error"]


def test_other_sites_are_refused(client, artifact):
    """A page elsewhere may send requests here from the user's browser, or call itself 127.0.0.1."""
    before = artifact.with_suffix(".json").read_bytes()
    body = {"score": 0.9, "pixel": 0.9}
    for origin in ("https://example.com", "null", "http://127.0.0.1:9999"):
        answer = client.post("/api/threshold", json=body, headers={"Origin": origin})
        assert answer.status_code == 403
    named = client.post("/api/threshold", json=body, headers={"Host": "example.com"})
    assert named.status_code == 400
    assert artifact.with_suffix(".json").read_bytes() == before
    own = client.post("/api/threshold", json=body, headers={"Origin": "http://127.0.0.1:8000"})
    assert own.status_code == 200, "the control"


@pytest.mark.parametrize(
    "path", ["/../etc/passwd", "/v2/models/..%2f..%2fetc/infer", "/style.css", "/%00", "/api/look"]
)
def test_no_path_of_a_request_is_opened(client, path, monkeypatch):
    def refuse(*given, **named):
        raise AssertionError(f"opened {given}")

    monkeypatch.setattr(Path, "open", refuse)
    answer = client.get(path)
    assert answer.status_code in (404, 405)
    assert list(answer.json()) == ["error"]


def test_the_page_holds_its_data_and_cannot_be_framed(client):
    answer = client.get("/")
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert '"rule": "made up"' in answer.text
