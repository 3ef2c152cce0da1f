"""What a weights file may ask for, seen before anything in it is opened.

A pickle of 45 bytes can ask for gigabytes, and so can a zip file of a few megabytes. A checkpoint
has 134 MiB. So the file and what it unpacks to are bounded, and a pickle may only name what a state
dict of tensors is made of, and no number that is larger than the file itself.
"""

from __future__ import annotations

import mmap
import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from destseg_deploy.errors import WeightsError

MOST_BYTES = 512 << 20
"""Of a file, and of what it unpacks to: about four checkpoints."""

MOST_PICKLE = 16 << 20
"""Bytes of the pickle in a zip file; that of a checkpoint has about 60,000."""

LEGACY_PICKLES = 5
"""Of a file as torch wrote it before 1.6: magic, protocol, system, tensors, keys; then the data."""

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C

NAMES = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor|tensor_v2|parameter)|torch Size"
    r"|torch \w+Storage|torch\.storage (Untyped|Typed)Storage"
)
PICKLES = (b"PK\x03\x04", b"\x80\x02")
"""How torch's files begin: a zip file, before 1.6 a pickle."""

ONNX = re.compile(rb"\x08[\x01-\x3f][\x12\x1a\x22:]")
"""The version of ONNX's format in Protocol Buffers, and the next field of a model."""

INSPECT = "Pass the checkpoint that it was made from; destseg-export inspect FILE names it."
OTHERS = {
    b"\x89PNG": ("a picture", "Pass another file."),
    b"\xff\xd8\xff": ("a picture", "Pass another file."),
    b"{": ("JSON", "Pass the file that it lies beside."),
    b"\xef\xbb\xbf{": ("JSON", "Pass the file that it lies beside."),
    b"<": ("a web page or XML", "Download the file itself."),
    b"version https://git-lfs": ("a pointer of Git LFS", "git lfs pull brings the file."),
    b"\x1f\x8b": ("packed with gzip", "Unpack it."),
    b"7z\xbc\xaf": ("packed with 7-Zip", "Unpack it."),
    b"Rar!": ("packed with RAR", "Unpack it."),
    b"ftrt": ("a TensorRT engine", INSPECT),
    b"ptrt": ("a TensorRT engine", INSPECT),
}
"""First bytes of what is passed by mistake -> what it is, and what to do."""

NUMBERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"}
KEPT = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}


def check_weights_file(path: Path) -> None:
    """Refuse a weights file that asks for more memory than a checkpoint, or for more than tensors.

    Raises:
        WeightsError: If it is of another kind, too large, or unpacks to more than a checkpoint
            can hold.
        pickle.UnpicklingError: If its pickle names more than a state dict is made of.
        ValueError: If its pickle is damaged.
        zipfile.BadZipFile: If it is a damaged zip file.
    """
    size = path.stat().st_size
    _check_kind(path)
    _check_size(path, size, "bytes")
    if is_safetensors(path):
        return
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for _ in range(LEGACY_PICKLES):
                _check_pickle(path, data, size)
                if data.tell() == size:  # a pickle alone
                    return
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        total = sum(entry.file_size for entry in entries)
        _check_size(path, total, "bytes when unpacked")
        for entry in entries:
            if entry.filename.endswith("data.pkl"):
                with archive.open(entry) as content:
                    _check_pickle(path, BytesIO(content.read(MOST_PICKLE + 1)), total)


def is_safetensors(path: Path) -> bool:
    """Tell whether a file is meant to be read by safetensors: by its name, or by its content."""
    return path.suffix.lower() == ".safetensors" or _begins_as_safetensors(path)


def _begins_as_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(9)
    # The length of a header in JSON, and the header.
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


def _check_kind(path: Path) -> None:
    """Refuse by name what is no checkpoint; a decoder would call it damaged or dangerous."""
    if _begins_as_safetensors(path):
        return
    with path.open("rb") as file:
        head = file.read(32)
    kind = next((kind for begin, kind in OTHERS.items() if head.startswith(begin)), None)
    if not head:
        kind = "an empty file", "Copy it again."
    if ONNX.match(head):
        kind = "an ONNX model", INSPECT
    if path.suffix.lower() == ".safetensors" and head.startswith(PICKLES):
        kind = "a pickle of PyTorch under another name", "Rename it to .pth."
    if kind is not None:
        what, action = kind
        raise WeightsError(
            f"{path}: {what}, expected a checkpoint (.safetensors, .pth or .pckl). {action}"
        )


def _check_size(path: Path, size: int, what: str) -> None:
    if size > MOST_BYTES:
        raise WeightsError(
            f"{path}: {size} {what}, expected at most {MOST_BYTES}; a DeSTSeg checkpoint has about "
            "140,000,000. Pass the file of a checkpoint."
        )


def _check_pickle(path: Path, data: Any, most: int) -> None:
    """Check one pickle: names, and numbers up to the bytes that the file holds."""
    before, total = "", 0
    for opcode, value in _opcodes(data):
        if opcode in NUMBERS and value != LEGACY_MAGIC:
            total += abs(value)
        if opcode == "GLOBAL" and not NAMES.fullmatch(value):
            raise pickle.UnpicklingError(f"it names {value}")
        # A state dict has none of these. A number that is kept can be used many times.
        if opcode in ("STACK_GLOBAL", "DUP") or (opcode in KEPT and before in NUMBERS):
            raise pickle.UnpicklingError(f"it uses {opcode}")
        before = opcode
    # Numbers are sizes, steps and counts of elements, of two bytes or more each.
    if total > 4 * most + (1 << 20):
        raise WeightsError(
            f"{path}: it asks for more memory than its {most} bytes fill. Copy it again, or save "
            "it as .safetensors."
        )


def _opcodes(data: Any) -> Iterator[tuple[str, Any]]:
    for opcode, value, _ in pickletools.genops(data):
        yield opcode.name, value
