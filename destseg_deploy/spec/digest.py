"""The digest inside a spec, which shows that a file was damaged or edited.

It is no signature: whoever can write the file can compute it. It covers the meaning of the JSON and
not its bytes, so that a program may indent or sort the file anew. ``cpp/src/digest.cpp`` is its
twin.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

EXACT = 2**53
"""Below this, a double holds every whole number."""


@dataclass(frozen=True)
class Digest:
    """SHA-256 over the parts of a spec; see ``encode``.

    Attributes:
        rest: Over all entries except ``threshold`` and ``digest``.
        threshold: Over the threshold, which may be edited by hand.
        both: Over the text of the two, so that a damaged digest is no edited threshold.
    """

    rest: str
    threshold: str
    both: str

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Digest:
        """Compute the digest of a spec, as JSON has it."""
        named = ("threshold", "digest")
        rest = _hash(encode({name: data[name] for name in data if name not in named}))
        threshold = _hash(encode(data.get("threshold")))
        return cls(rest, threshold, _hash((rest + threshold).encode()))

    @property
    def is_whole(self) -> bool:
        """Whether it was not damaged itself."""
        return self.both == _hash((self.rest + self.threshold).encode())


def encode(value: Any) -> bytes:
    """Return a JSON value as bytes: equal for equal values, different for different ones.

    An object is its entries in the order of their names' bytes. Text has its length before it. A
    number is written as a whole one where it is whole, else as the bits of its double.
    """
    if isinstance(value, Mapping):
        names = sorted(value, key=_utf8)
        return b"{" + b"".join(encode(name) + encode(value[name]) for name in names) + b"}"
    if isinstance(value, list | tuple):
        return b"[" + b"".join(map(encode, value)) + b"]"
    if isinstance(value, str):
        text = _utf8(value)
        return b"s%d:" % len(text) + text
    if value is None or isinstance(value, bool):
        return {None: b"n", True: b"t", False: b"f"}[value]
    if isinstance(value, float):
        if not (value.is_integer() and abs(value) < EXACT):
            # JSON has one NaN, a double has many.
            value = math.nan if math.isnan(value) else value
            return b"d" + struct.pack(">d", value).hex().encode() + b";"
        value = int(value)
    return b"i%d;" % value


def _utf8(text: str) -> bytes:
    """Encode text; half a surrogate pair, which JSON may escape, has no bytes of its own."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text).encode()


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
