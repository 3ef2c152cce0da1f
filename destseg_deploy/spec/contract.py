"""The contract inside an artifact: what its writer put there is compared with the spec beside it.

An ONNX file has it among its metadata, a checkpoint in the header of its ``.safetensors``. Both are
read here without onnx or torch, since a line PC has neither. ``cpp/src/contract.cpp`` is its twin
for ONNX files.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from destseg_deploy.errors import SpecError
from destseg_deploy.spec.digest import encode
from destseg_deploy.spec.reading import show

KEY = "destseg"
"""Name of the entry in a file's metadata."""

ENTRIES = ("category", "precision", "input", "network", "output", "checkpoint")
"""Entries of the spec that an artifact holds, too: those that cannot change later."""

OPTIONAL_ENTRIES = ("tiling", "region")
"""Such entries, too, where the spec has them."""

# Protocol Buffers: message -> number of a field -> the message in it. All ways to a tensor.
NESTED = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor",
        6: "graph",
        10: "tensor",
        11: "graph",
        22: "sparse",
        23: "sparse",
    },
    "sparse": {1: "tensor", 2: "tensor"},
}
METADATA, TENSOR_NAME, EXTERNAL_DATA, DATA_LOCATION = 14, 8, 13, 14
VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5
"""How a field is stored; the two others are groups, which ONNX does not have."""

Field = tuple[int, int, memoryview]
"""Number of a field, its value if it is a whole number, and its bytes if it has any."""


def contract_of(spec: Mapping[str, Any]) -> str:
    """Return the text to store in an artifact.

    Args:
        spec: Its entries, see ``ModelSpec.as_entries``. A checkpoint's own hash cannot be one.
    """
    kept = [name for name in ENTRIES if name != "checkpoint" or spec["kind"] != "checkpoint"]
    kept += [name for name in OPTIONAL_ENTRIES if name in spec]
    return json.dumps({name: spec[name] for name in kept})


def check_contract(artifact: Path, spec: Mapping[str, Any]) -> None:
    """Compare what an artifact says of itself with its spec, where it says something.

    Raises:
        SpecError: If they differ, or weights of an ONNX file lie in another file.
    """
    suffix = artifact.suffix.lower()
    if spec["kind"] == "onnx" and suffix == ".onnx":
        stored = _read_onnx(artifact)
    elif spec["kind"] == "checkpoint" and suffix == ".safetensors":
        stored = _read_safetensors(artifact)
    else:
        return
    if stored is None:
        return
    own = _parse(stored, artifact)
    for name in (*ENTRIES, *OPTIONAL_ENTRIES):
        if (name in own or name in OPTIONAL_ENTRIES) and (
            encode(own.get(name)) != encode(spec.get(name))
        ):
            raise SpecError(
                f"{artifact}: says of itself that its {name} is {show(own.get(name))}, its spec "
                f"says {show(spec.get(name))}. The spec was edited or belongs to another file: "
                "copy both again, or make them again."
            )


def _parse(text: str, artifact: Path) -> dict[str, Any]:
    try:
        own = json.loads(text)
    except (ValueError, RecursionError):
        own = None
    if not isinstance(own, dict):
        raise SpecError(f"{artifact}: its metadata {KEY!r} is not a contract. Make it again.")
    return own


def _read_safetensors(path: Path) -> str | None:
    """Return the contract in a checkpoint's header; safetensors itself checks the file."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
        header = file.read(min(size, path.stat().st_size))
    try:
        return dict(json.loads(header)["__metadata__"]).get(KEY)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _read_onnx(path: Path) -> str | None:
    """Return the contract in an ONNX file, after a look at each tensor's place.

    Raises:
        SpecError: If a tensor lies in another file.
    """
    content, stored = memoryview(path.read_bytes()), None
    waiting = [("model", content)]
    while waiting:
        kind, message = waiting.pop()
        fields = list(_fields(message))
        if kind == "tensor":
            _check_place(fields, path)
        for number, _, inside in fields:
            if number == METADATA and kind == "model":
                entry = {number: bytes(text) for number, _, text in _fields(inside)}
                if entry.get(1) == KEY.encode():
                    stored = entry.get(2, b"").decode(errors="replace")
            elif (nested := NESTED.get(kind, {}).get(number)) is not None:
                waiting.append((nested, inside))
    return stored


def _check_place(tensor: list[Field], path: Path) -> None:
    """Refuse a tensor outside of the file, where no hash covers it."""
    if any(n == EXTERNAL_DATA or (n == DATA_LOCATION and value == 1) for n, value, _ in tensor):
        name = b"".join(bytes(text) for n, _, text in tensor if n == TENSOR_NAME)
        raise SpecError(
            f"{path}: its tensor {show(name.decode(errors='replace'))} lies in another file (ONNX "
            "external data), which no hash covers. Export again: an artifact is one file."
        )


def _fields(message: memoryview) -> Iterator[Field]:
    """Yield the fields of a message, up to the end or the first byte that is none.

    Damage is for the runtime to refuse, which reads the file by the same rules.
    """
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at)
        kind, value, size = tag & 7, 0, 0
        if kind == VARINT:
            value, at = _varint(message, at)
        elif kind == LENGTH:
            size, at = _varint(message, at)
        elif kind in (EIGHT_BYTES, FOUR_BYTES):
            size = 8 if kind == EIGHT_BYTES else 4
        else:
            return
        if at + size > end:
            return
        inside = message[at : at + size] if kind == LENGTH else message[:0]
        at += size
        yield tag >> 3, value, inside


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return a number of seven bits a byte, and where it ends; beyond the end if it does not."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    return value, len(message) + 1
