"""KServe's V2 protocol ("Open Inference Protocol"): requests to arrays, answers to bytes.

A tensor is JSON numbers, flat or nested, or raw bytes behind the JSON ("binary tensor data
extension"); the length of the JSON is then in the header ``Inference-Header-Content-Length``. The
input is the artifact's: uint8 (N, H, W, 3) RGB. The outputs are its anomaly maps and scores, and
``verdict``, OK or NG for each image, where a threshold is set.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.errors import ShapeError
from destseg_deploy.runtime.base import Prediction
from destseg_deploy.runtime.server.over_http import HEADER
from destseg_deploy.runtime.server.runtime import HASH
from destseg_deploy.spec import ModelSpec, is_number

VERDICT = "verdict"
SIDE_OF_ANY = -1


@dataclass(frozen=True, eq=False)
class InferRequest:
    """What a client asks.

    Attributes:
        frames: uint8 (N, H, W, 3) RGB.
        outputs: Output -> whether it is wanted as bytes; None for all of them.
        binary: Whether outputs are wanted as bytes where nothing else is said.
        identity: The client's own name of the request, given back to it.
    """

    frames: NDArray[np.uint8]
    outputs: dict[str, bool] | None
    binary: bool
    identity: str | None


def describe_model(spec: ModelSpec, name: str, *, any_size: bool, judged: bool) -> dict[str, Any]:
    """Return the metadata of a model.

    Args:
        spec: Of the artifact.
        name: Under which it is served.
        any_size: Whether frames of any size are taken.
        judged: Whether a threshold is set.
    """
    sides = [SIDE_OF_ANY] * 2 if any_size else list(spec.size)
    outputs = [
        {"name": spec.output.map_name, "datatype": "FP32", "shape": [-1, *spec.map_size]},
        {"name": spec.output.score_name, "datatype": "FP32", "shape": [-1]},
    ]
    if judged:
        outputs.append({"name": VERDICT, "datatype": "BYTES", "shape": [-1]})
    return {
        "name": name,
        "versions": ["1"],
        "platform": "destseg-deploy",
        "inputs": [{"name": spec.input.name, "datatype": "UINT8", "shape": [-1, *sides, 3]}],
        "outputs": outputs,
    }


def describe_config(spec: ModelSpec, name: str) -> dict[str, Any]:
    """Return the configuration of a model as Triton writes it: which artifact it is."""
    known = {"category": spec.category, HASH: spec.artifact.sha256}
    return {"name": name, "parameters": {key: {"string_value": v} for key, v in known.items()}}


def read_request(body: bytes, header_length: str | None, spec: ModelSpec) -> InferRequest:
    """Read the body of a request.

    Args:
        body: All of it.
        header_length: Value of ``HEADER``: the bytes of JSON before the tensors' bytes. None for
            JSON alone.
        spec: Of the artifact.

    Raises:
        ShapeError: If it is no such request, or its tensor is not what the artifact takes.
    """
    if header_length is not None and not is_number(header_length):
        raise ShapeError(f"{HEADER}: {header_length[:40]!r}, expected a number of bytes.")
    end = len(body) if header_length is None else int(header_length)
    if end > len(body):
        raise ShapeError(f"{HEADER}: {end}, expected at most the body's {len(body)} bytes.")
    try:
        asked = json.loads(body[:end])
    except (ValueError, RecursionError) as error:
        raise ShapeError(f"request: not JSON ({error}). Expected an inference request.") from error
    if not isinstance(asked, dict):
        raise ShapeError("request: expected a JSON object with inputs.")
    identity, binary = asked.get("id"), _flag(asked, "binary_data_output")
    return InferRequest(
        _read_input(asked.get("inputs"), body[end:], spec),
        _read_outputs(asked.get("outputs"), binary),
        binary,
        identity if isinstance(identity, str) else None,
    )


def write_response(
    request: InferRequest,
    name: str,
    spec: ModelSpec,
    answer: Prediction,
    verdicts: list[str] | None,
) -> tuple[bytes, int | None]:
    """Return the body of an answer, and the bytes of its JSON where tensors follow it.

    Raises:
        ShapeError: If an output is asked for that there is not.
    """
    tensors: dict[str, NDArray[Any]] = {
        spec.output.map_name: answer.anomaly_map,
        spec.output.score_name: answer.score,
    }
    if verdicts is not None:
        tensors[VERDICT] = np.array(verdicts)
    wanted = dict.fromkeys(tensors, request.binary) if request.outputs is None else request.outputs
    outputs, tail = [], []
    for output, binary in wanted.items():
        if output not in tensors:
            hint = " Set a threshold first." if output == VERDICT else ""
            raise ShapeError(f"output {output!r}: expected one of {', '.join(tensors)}.{hint}")
        values = tensors[output]
        entry: dict[str, Any] = {"name": output, "shape": list(values.shape)}
        entry["datatype"] = "BYTES" if output == VERDICT else "FP32"
        if binary:
            tail.append(_raw(values))
            entry["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            entry["data"] = values.ravel().tolist()
        outputs.append(entry)
    said = {"model_name": name, "model_version": "1", "outputs": outputs}
    if request.identity is not None:
        said["id"] = request.identity
    header = json.dumps(said).encode()
    return header + b"".join(tail), len(header) if tail else None


def _raw(values: NDArray[Any]) -> bytes:
    """Return a tensor's bytes: little-endian floats, or words with their lengths before them."""
    if values.dtype.kind == "U":
        words = [word.encode() for word in values.tolist()]
        return b"".join(struct.pack("<I", len(word)) + word for word in words)
    return values.astype("<f4").tobytes()


def _read_input(inputs: Any, tail: bytes, spec: ModelSpec) -> NDArray[np.uint8]:
    expected = spec.input.name
    if not (isinstance(inputs, list) and len(inputs) == 1 and isinstance(inputs[0], dict)):
        raise ShapeError(f"inputs: expected a list of one tensor, {expected!r}.")
    tensor = inputs[0]
    if tensor.get("name") != expected or tensor.get("datatype") != "UINT8":
        raise ShapeError(
            f"inputs: {_short(tensor.get('name'))} of {_short(tensor.get('datatype'))}, expected "
            f"{expected!r} of 'UINT8', RGB pixels in [0, 255]."
        )
    shape = _read_shape(tensor.get("shape"), expected)
    if shape[0] > spec.max_batch:
        raise ShapeError(f"{expected}: {shape[0]} images, expected at most {spec.max_batch}.")
    parameters = tensor.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is None and not tail:
        values = _numbers(tensor.get("data"), expected)
    elif type(size) is int and size == len(tail):
        values = np.frombuffer(tail, np.uint8)
    else:
        raise ShapeError(
            f"{expected}: binary_data_size is {_short(size)}, {len(tail)} bytes follow the JSON."
        )
    if values.size != math.prod(shape):
        raise ShapeError(f"{expected}: {values.size} values for the shape {_short(shape)}.")
    return values.reshape(shape)


def _read_shape(shape: Any, name: str) -> list[int]:
    whole = isinstance(shape, list) and all(type(side) is int and side > 0 for side in shape)
    if not (whole and len(shape) == 4 and shape[3] == 3):
        raise ShapeError(f"{name}: shape {_short(shape)}, expected [N, height, width, 3].")
    return [int(side) for side in shape]


def _numbers(data: Any, name: str) -> NDArray[np.uint8]:
    try:
        values = np.asarray(data)
    except (ValueError, OverflowError) as error:  # ragged, or too deep
        raise ShapeError(f"{name}: its data is no array of numbers ({error}).") from error
    if values.dtype.kind not in "iu" or values.size == 0:
        raise ShapeError(f"{name}: expected data of whole numbers from 0 to 255.")
    if not 0 <= int(values.min()) <= int(values.max()) <= 255:
        raise ShapeError(
            f"{name}: values from {values.min()} to {values.max()}, expected 0 to 255."
        )
    return values.astype(np.uint8)


def _read_outputs(outputs: Any, binary: bool) -> dict[str, bool] | None:
    """Return the outputs that are asked for, and whether each is to be bytes."""
    if outputs is None:
        return None
    if not isinstance(outputs, list) or not all(
        isinstance(one, dict) and isinstance(one.get("name"), str) for one in outputs
    ):
        raise ShapeError("outputs: expected a list of objects with a name.")
    return {one["name"]: _flag(one, "binary_data", default=binary) for one in outputs}


def _flag(holder: dict[str, Any], name: str, *, default: bool = False) -> bool:
    parameters = holder.get("parameters")
    said = parameters.get(name) if isinstance(parameters, dict) else None
    return default if said is None else said is True


def _short(value: Any) -> str:
    """Return a value of a request as it can be quoted in one line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
