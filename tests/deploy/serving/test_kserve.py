"""KServe v2 on the wire, without a server: tensors in both encodings, and what is refused."""

import json
import struct

import numpy as np
import pytest

from destseg_deploy.errors import ShapeError
from destseg_deploy.runtime.base import Prediction
from destseg_deploy.serving.kserve import read_request, write_response
from destseg_deploy.testing import fake_spec

SPEC = fake_spec(4, 6)
FRAMES = np.arange(2 * 4 * 6 * 3, dtype=np.uint8).reshape(2, 4, 6, 3)
ANSWER = Prediction(
    np.linspace(0, 1, 2 * 4 * 6, dtype=np.float32).reshape(2, 4, 6),
    np.array([0.25, 0.75], np.float32),
)


def _tensor(**change: object) -> dict:
    tensor = {"name": "image", "datatype": "UINT8", "shape": [2, 4, 6, 3]}
    return {**tensor, "data": FRAMES.ravel().tolist(), **change}


def _json(tensor: dict | None = None, **more: object) -> bytes:
    return json.dumps({"inputs": [tensor or _tensor()], **more}).encode()


def _binary(size: int | None = None, **more: object) -> tuple[bytes, str]:
    raw = FRAMES.tobytes()
    tensor = _tensor(parameters={"binary_data_size": len(raw) if size is None else size})
    del tensor["data"]
    header = _json(tensor, **more)
    return header + raw, str(len(header))


@pytest.mark.parametrize("data", [FRAMES.ravel().tolist(), FRAMES.tolist()])
def test_json_may_be_flat_or_nested(data):
    asked = read_request(_json(_tensor(data=data), id="7"), None, SPEC)
    np.testing.assert_array_equal(asked.frames, FRAMES)
    assert (asked.outputs, asked.binary, asked.identity) == (None, False, "7")


def test_bytes_follow_the_json():
    asked = read_request(*_binary(), SPEC)
    np.testing.assert_array_equal(asked.frames, FRAMES)


def _answer(**more: object) -> dict:
    asked = read_request(_json(**more), None, SPEC)
    body, header = write_response(asked, "fake", SPEC, ANSWER, ["OK", "NG"])
    assert header is None
    return json.loads(body)


def test_all_outputs_are_given_unless_some_are_asked_for():
    answer = _answer(id="x")
    assert (answer["model_name"], answer["id"]) == ("fake", "x")
    found = {one["name"]: one for one in answer["outputs"]}
    assert list(found) == ["anomaly_map", "score", "verdict"]
    np.testing.assert_array_equal(
        np.array(found["anomaly_map"]["data"], np.float32).reshape(2, 4, 6), ANSWER.anomaly_map
    )
    assert found["anomaly_map"]["shape"] == [2, 4, 6]
    assert found["score"] == {
        "name": "score",
        "datatype": "FP32",
        "shape": [2],
        "data": [0.25, 0.75],
    }
    assert found["verdict"]["data"] == ["OK", "NG"]
    only = _answer(outputs=[{"name": "score"}])
    assert [one["name"] for one in only["outputs"]] == ["score"]


@pytest.mark.parametrize(
    "asked",
    [
        {"parameters": {"binary_data_output": True}},
        {
            "outputs": [
                {"name": name, "parameters": {"binary_data": True}}
                for name in ("anomaly_map", "score", "verdict")
            ]
        },
        {
            "parameters": {"binary_data_output": True},
            "outputs": [{"name": name} for name in ("anomaly_map", "score", "verdict")],
        },
    ],
)
def test_outputs_come_as_bytes_where_asked(asked):
    request = read_request(_json(**asked), None, SPEC)
    body, header = write_response(request, "fake", SPEC, ANSWER, ["OK", "NG"])
    outputs = json.loads(body[:header])["outputs"]
    sizes = [one["parameters"]["binary_data_size"] for one in outputs]
    assert all("data" not in one for one in outputs)
    maps, scores, words = np.split(np.frombuffer(body[header:], np.uint8), np.cumsum(sizes)[:2])
    np.testing.assert_array_equal(maps.view("<f4").reshape(2, 4, 6), ANSWER.anomaly_map)
    np.testing.assert_array_equal(scores.view("<f4"), ANSWER.score)
    assert words.tobytes() == struct.pack("<I", 2) + b"OK" + struct.pack("<I", 2) + b"NG"


def test_what_an_output_says_counts_more_than_what_the_request_says():
    outputs = [{"name": "score", "parameters": {"binary_data": False}}, {"name": "verdict"}]
    asked = _json(parameters={"binary_data_output": True}, outputs=outputs)
    assert read_request(asked, None, SPEC).outputs == {"score": False, "verdict": True}


def test_without_a_threshold_there_is_no_verdict():
    request = read_request(_json(outputs=[{"name": "verdict"}]), None, SPEC)
    with pytest.raises(ShapeError, match="Set a threshold first"):
        write_response(request, "fake", SPEC, ANSWER, None)


DEEP = b"[" * 100_000
BAD = {
    "no JSON": (b"GIF89a", None, "not JSON"),
    "too deep": (DEEP, None, "not JSON"),
    "no object": (b"[]", None, "JSON object"),
    "no inputs": (b"{}", None, "list of one tensor"),
    "a name": (_json(_tensor(name="picture")), None, "expected 'image'"),
    "a type": (_json(_tensor(datatype="FP32")), None, "'UINT8'"),
    "a long name": (_json(_tensor(name="x" * 10_000)), None, r"\.\.\."),
    "no shape": (_json(_tensor(shape=None)), None, "shape None"),
    "channels first": (_json(_tensor(shape=[2, 3, 4, 6])), None, "height, width, 3"),
    "a negative side": (_json(_tensor(shape=[2, -4, -6, 3])), None, "height, width, 3"),
    "a huge shape": (_json(_tensor(shape=[1, 2**40, 2**40, 3])), None, "values for the shape"),
    "too many": (_json(_tensor(shape=[17, 4, 6, 3])), None, "17 images, expected at most 16"),
    "too few values": (_json(_tensor(data=[1, 2, 3])), None, "3 values for the shape"),
    "no values": (_json(_tensor(data=[])), None, "whole numbers"),
    "no data": (_json(_tensor(data=None)), None, "whole numbers"),
    "ragged": (_json(_tensor(data=[[1, 2], [3]])), None, "no array"),
    "floats": (_json(_tensor(data=[0.5] * 144)), None, "whole numbers"),
    "words": (_json(_tensor(data=["1"] * 144)), None, "whole numbers"),
    "too bright": (_json(_tensor(data=[256] * 144)), None, "from 256 to 256"),
    "below 0": (_json(_tensor(data=[-1] * 144)), None, "from -1 to -1"),
    "huge numbers": (_json(_tensor(data=[10**30] * 144)), None, "whole numbers"),
    "outputs": (_json(outputs="score"), None, "list of objects"),
    "a header that is no number": (_json(), "ten", "number of bytes"),
    "a header of other digits": (_json(), "\u0663", "number of bytes"),
    "a header without end": (_json(), "9" * 5000, "number of bytes"),
    "a header beyond the body": (_json(), "100000", "at most the body's"),
    "a size that is not there": (*_binary(143), "144 bytes follow"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_one_line(name):
    body, header, words = BAD[name]
    with pytest.raises(ShapeError, match=words) as caught:
        read_request(body, header, SPEC)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_two_inputs_are_refused():
    body = json.dumps({"inputs": [_tensor(), _tensor()]}).encode()
    with pytest.raises(ShapeError, match="list of one tensor"):
        read_request(body, None, SPEC)


def test_an_unknown_output_is_named():
    request = read_request(_json(outputs=[{"name": "heat"}]), None, SPEC)
    with pytest.raises(ShapeError, match="'heat': expected one of anomaly_map, score, verdict"):
        write_response(request, "fake", SPEC, ANSWER, ["OK", "NG"])
