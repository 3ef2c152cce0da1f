"""JSON to dataclasses, strictly: every fault is named with its place and its value.

Format 1 is brought to format 2 before it is read, in ``upgrade`` and nowhere else.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from destseg_deploy.errors import SpecError
from destseg_deploy.spec.records import (
    Budget,
    HalfRecord,
    ParityRecord,
    QuantizationRecord,
    TeacherRecord,
    TrainingRecord,
)
from destseg_deploy.text import decode_text

T = TypeVar("T")

MOST_BYTES = 4 << 20
"""Of a spec's file; the C++ library has the same limit."""

OPTIONAL = "optional"
"""Mark of a field that is written only where it is not None, and may be missing in a file: older
versions then read all files that do not use it."""

LATER = ("tiling", "region")
"""Entries that came after format 1 and may be missing in format 2."""

SHOWN = 80
"""Characters of a wrong value that an error shows; a damaged file may hold megabytes."""


def read_json_text(path: Path) -> str:
    """Return the text of a spec's file, in any encoding of ``decode_text``.

    Raises:
        SpecError: If it is no regular file, larger than ``MOST_BYTES``, or not text.
    """
    try:
        if not path.is_file():  # a pipe would wait for ever
            reason = "it is not a file"
        elif path.stat().st_size > MOST_BYTES:
            reason = f"it has more than {MOST_BYTES >> 20} MiB, and a spec has a few KiB"
        else:
            return decode_text(path.read_bytes())
    except OSError as error:
        reason = error.strerror or str(error)
    except UnicodeDecodeError as error:
        reason = f"byte {error.start} is not {error.encoding.upper()}; save it as UTF-8"
    raise SpecError(f"{path}: cannot be read ({reason}). Restore it or export again.")


def parse_object(text: str, where: str) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        SpecError: If the text is not JSON, or not an object.
    """
    try:
        data = json.loads(text.removeprefix("\ufeff"))  # a byte order mark
    except ValueError as error:
        raise SpecError(f"{where}: not JSON ({error}). Restore it or export again.") from error
    except RecursionError:  # thousands of open brackets; no spec has more than five
        raise SpecError(
            f"{where}: not JSON (nested too deeply). Restore it or export again."
        ) from None
    if not isinstance(data, dict):
        raise SpecError(
            f"{where}: {show(data)} is not a spec, expected an object. Restore it or export again."
        )
    return data


def read_dataclass(cls: type[T], data: Mapping[str, Any], where: str) -> T:
    """Make a dataclass, nested ones included, from parsed JSON.

    Raises:
        SpecError: If an entry is missing, unknown, or of another type than its annotation.
    """
    kind: Any = cls  # annotations cannot say that T is a dataclass
    hints = _hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]
    if unknown := sorted(set(data) - set(names)):
        raise unknown_entry(where, unknown[0])
    if missing := [name for name in required(kind) if name not in data]:
        raise SpecError(
            f"{where}: entry {show_name(missing[0])} is missing. Restore it or export again."
        )
    given = [name for name in names if name in data]
    values = {name: _convert(hints[name], data[name], f"{where}: {name}") for name in given}
    try:
        return cls(**values)
    except SpecError as error:  # of the class itself, which does not know its place in the file
        raise SpecError(f"{where}: {error}") from error


def required(cls: type) -> list[str]:
    """Return the names of the entries that a file must have."""
    return [f.name for f in dataclasses.fields(cls) if OPTIONAL not in f.metadata]


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """Return field -> annotation; evaluating annotations takes longer than reading a spec."""
    return typing.get_type_hints(cls)


def unknown_entry(where: str, name: str) -> SpecError:
    """Return the error for an entry that this version does not know."""
    return SpecError(
        f"{where}: unknown entry {show_name(name)}. Export again with this version, or install "
        "the version that wrote it."
    )


def show(value: object) -> str:
    """Return a value as JSON for an error, cut to ``SHOWN`` characters."""
    # JSON may escape half a surrogate pair, which no terminal and no log file can encode.
    text = re.sub("[\ud800-\udfff]", "\ufffd", json.dumps(value, ensure_ascii=False))
    # JSON may hold these as they are; a terminal obeys them.
    text = re.sub("[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", text)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def show_name(name: str) -> str:
    """Return the name of an entry in single quotes, on one line, cut to ``SHOWN`` characters."""
    text = re.sub("[\x00-\x1f\x7f]", lambda found: f"\\x{ord(found[0]):02x}", name)
    text = re.sub("[\ud800-\udfff]", "\ufffd", text)
    return f"'{text[:SHOWN]}...'" if len(text) > SHOWN else f"'{text}'"


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Check one JSON value against its annotation; lists become tuples, objects dataclasses.

    Exact types are compared because JSON's true is an ``int`` for ``isinstance``.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        others = [argument for argument in arguments if argument is not types.NoneType]
        if value is None and len(others) < len(arguments):
            return None
        exact = [argument for argument in others if type(value) is argument]
        return _convert((exact or others)[0], value, where)
    if isinstance(value, dict):
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            return read_dataclass(hint, value, where)
        if origin is dict:
            return {
                k: _convert(arguments[1], v, f"{where}: {show_name(k)}") for k, v in value.items()
            }
    if origin is tuple and isinstance(value, list):
        same = arguments[0]  # all tuples of a spec hold one type
        if arguments[1] is ... or len(value) == len(arguments):
            return tuple(_convert(same, item, where) for item in value)
    if hint is float and type(value) in (int, float) and _is_finite(value):
        return float(value)
    if hint is Any or (hint is not float and type(value) is hint):
        return value
    raise SpecError(
        f"{where} is {show(value)}, expected {_describe(hint)}. Restore it or export again."
    )


def _is_finite(value: float) -> bool:
    """Return whether a float can hold a number; whole numbers of JSON have no limit."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _describe(hint: Any) -> str:
    """Return what an annotation allows, in words."""
    words = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        count = "" if arguments[1] is ... else f" with {len(arguments)} entries"
        return f"a list{count}"
    return words.get(hint, "an object")


def upgrade(data: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a spec of format 1 in format 2.

    In format 1, ``teacher``, ``training``, ``parity`` and ``engine`` were free-form objects, empty
    where there was nothing to record; ``parity`` also held what the conversion to half, the
    quantisation and the fusions recorded. Entries of them that have no field go to ``extra``.

    Raises:
        SpecError: If there is an entry that format 1 does not have.
    """
    new: dict[str, Any] = {"fusion": None, "half": None, "quantization": None, "extra": {}}
    new["digest"] = None
    newer = {*new, *LATER}
    if unknown := sorted(set(data) & newer):
        raise unknown_entry(where, unknown[0])
    result = {**data, **new, "format": 2}
    for name, cls in (("teacher", TeacherRecord), ("training", TrainingRecord)):
        if isinstance(given := data.get(name), dict):
            result[name] = _take(cls, given, result["extra"], name)
    if isinstance(engine := data.get("engine"), dict):
        result["engine"] = {"architecture": None, **engine} if engine else None
    if isinstance(parity := data.get("parity"), dict):
        result |= _split_parity(parity, data.get("artifact"), result["extra"])
    return result


def _split_parity(
    given: dict[str, Any], artifact: object, extra: dict[str, Any]
) -> dict[str, dict[str, Any] | None]:
    """Return the entries ``parity``, ``fusion``, ``half`` and ``quantization`` of format 2."""
    rest = dict(given)
    file = artifact.get("file") if isinstance(artifact, dict) else None
    if rest.pop("engine_run", None) is not False:
        rest["compared"] = file
    result: dict[str, dict[str, Any] | None] = dict.fromkeys(("fusion", "half", "quantization"))
    if isinstance(fused := rest.pop("fused", None), dict):
        result["fusion"] = _upgrade_fusion({"compared": file, **fused}, extra)
    if "casts" in rest:
        largest = rest.pop("largest_activation", None)
        largest = largest if isinstance(largest, dict) else {"value": largest}
        names = {
            "largest_tensor": largest.get("tensor"),
            "largest_activation": largest.get("value"),
        }
        known = {name: rest.pop(name) for name in _names(HalfRecord) & set(rest)}
        result["half"] = _take(HalfRecord, {**known, **names}, extra, "half")
    if "scheme" in rest:
        rest = {"quantiser": "destseg-export", **rest}
        del rest["compared"]
        result["quantization"] = _take(QuantizationRecord, rest, extra, "quantization")
        return {"parity": None, **result}
    return {"parity": _upgrade_parity(rest, extra), **result}


def _upgrade_parity(given: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any] | None:
    if set(given) == {"compared"}:  # nothing was measured
        return None
    if isinstance(budget := given.get("budget"), dict):
        given = {**given, "budget": _take(Budget, budget, extra, "budget")}
    return _take(ParityRecord, given, extra, "parity")


def _upgrade_fusion(given: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    rest = dict(given)
    macs = rest.pop("macs", None)
    # A graph that no fusion was asked for has an empty list.
    pair = isinstance(macs, list) and len(macs) == 2
    before, after = macs if pair else (None, None)
    return {
        "fusions": rest.pop("fusions", []),
        "macs_before": before,
        "macs_after": after,
        "parity": _upgrade_parity(rest, extra),
    }


def _take(
    cls: type, given: dict[str, Any], extra: dict[str, Any], name: str
) -> dict[str, Any] | None:
    """Return the entries of a record, filled up with its defaults; the rest goes to ``extra``."""
    if not given:
        return None
    rest = {key: value for key, value in given.items() if key not in _names(cls)}
    if rest:
        extra[name] = rest
    known = {key: value for key, value in given.items() if key not in rest}
    return {**_defaults(cls), **known}


def _names(cls: type) -> set[str]:
    return {f.name for f in dataclasses.fields(cls)}


def _defaults(cls: type) -> dict[str, Any]:
    """Return the defaults of a record as JSON has them."""
    defaults: dict[str, Any] = {}
    for entry in dataclasses.fields(cls):
        if entry.default_factory is not dataclasses.MISSING:
            defaults[entry.name] = entry.default_factory()
        elif entry.default is not dataclasses.MISSING:
            defaults[entry.name] = [] if entry.default == () else entry.default
    return defaults
