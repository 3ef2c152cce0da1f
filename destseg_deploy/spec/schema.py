"""The contract as a JSON Schema (draft 2020-12), made from the dataclasses and their docstrings.

``python -m destseg_deploy.spec.schema > destseg_deploy/spec.schema.json`` writes the published
file. The schema checks names and types; limits that depend on several entries, such as the size of
a batch in bytes, are checked by ``ModelSpec.from_json`` alone.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import types
import typing
from typing import Any

from destseg_deploy.spec.model import FORMAT, ModelSpec
from destseg_deploy.spec.parts import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    KINDS,
    MAX_BATCH,
    MAX_CONVOLUTIONS,
    MAX_IMAGES,
    MAX_NETWORK_SIDE,
    MAX_SIDE,
    PRECISIONS,
    RESIZE,
)
from destseg_deploy.spec.reading import required
from destseg_deploy.spec.records import PRECISION_SOURCES, SCHEMES
from destseg_deploy.spec.tiling import MAX_SCALE

LIMITS: dict[str, dict[str, Any]] = {
    "ModelSpec.format": {"const": FORMAT},
    "ModelSpec.kind": {"enum": list(KINDS)},
    "ModelSpec.precision": {"enum": list(PRECISIONS)},
    "InputSpec.height": {"minimum": 1, "maximum": MAX_SIDE},
    "InputSpec.width": {"minimum": 1, "maximum": MAX_SIDE},
    "InputSpec.dtype": {"const": "uint8"},
    "InputSpec.layout": {"const": "NHWC"},
    "InputSpec.color": {"const": "RGB"},
    "NetworkSpec.height": {"minimum": 1, "maximum": MAX_NETWORK_SIDE},
    "NetworkSpec.width": {"minimum": 1, "maximum": MAX_NETWORK_SIDE},
    "NetworkSpec.resize": {"const": RESIZE},
    "NetworkSpec.mean": {"const": list(IMAGENET_MEAN)},
    "NetworkSpec.std": {"const": list(IMAGENET_STD)},
    "OutputSpec.height": {"minimum": 1, "maximum": MAX_SIDE},
    "OutputSpec.width": {"minimum": 1, "maximum": MAX_SIDE},
    "OutputSpec.top_k": {"minimum": 1, "maximum": MAX_SIDE**2},
    "TilingSpec.scale": {"exclusiveMinimum": 0, "maximum": MAX_SCALE},
    "TilingSpec.overlap": {"minimum": 0, "maximum": MAX_NETWORK_SIDE - 1},
    "RegionSpec.x": {"minimum": 0, "maximum": MAX_SIDE},
    "RegionSpec.y": {"minimum": 0, "maximum": MAX_SIDE},
    "RegionSpec.width": {"minimum": 1, "maximum": MAX_SIDE},
    "RegionSpec.height": {"minimum": 1, "maximum": MAX_SIDE},
    "Threshold.score": {"minimum": 0, "maximum": 1},
    "Threshold.pixel": {"minimum": 0, "maximum": 1},
    "Threshold.images": {"minimum": 0, "maximum": MAX_IMAGES},
    "BatchRange.min": {"minimum": 1, "maximum": MAX_BATCH},
    "BatchRange.opt": {"minimum": 1, "maximum": MAX_BATCH},
    "BatchRange.max": {"minimum": 1, "maximum": MAX_BATCH},
    "QuantizationRecord.scheme": {"enum": list(SCHEMES)},
    "EngineRecord.precision_source": {"enum": list(PRECISION_SOURCES)},
    "EngineRecord.convolutions": {"minimum": 0, "maximum": MAX_CONVOLUTIONS},
    "EngineRecord.half_convolutions": {"minimum": 0, "maximum": MAX_CONVOLUTIONS},
    "EngineRecord.build_seconds": {"minimum": 0},
}
"""Class and field -> what the reader checks besides the type."""

PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def json_schema() -> dict[str, Any]:
    """Return the schema of ``ModelSpec``, nested classes under ``$defs``."""
    definitions: dict[str, Any] = {}
    root = _object(ModelSpec, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "destseg-deploy artifact spec",
        **root,
        "$defs": definitions,
    }


def _object(cls: type, definitions: dict[str, Any]) -> dict[str, Any]:
    hints, notes = typing.get_type_hints(cls), _attribute_notes(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    entries = {
        name: {
            **_type(hints[name], definitions),
            **LIMITS.get(f"{cls.__name__}.{name}", {}),
            **({"description": notes[name]} if name in notes else {}),
        }
        for name in names
    }
    return {
        "description": " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split()),
        "type": "object",
        "properties": entries,
        "required": required(cls),
        "additionalProperties": False,
    }


def _type(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an annotation; a dataclass is defined once and referred to."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return {"anyOf": [_type(argument, definitions) for argument in arguments]}
    if origin is tuple:
        items = {"type": "array", "items": _type(arguments[0], definitions)}
        if arguments[1] is ...:
            return items
        return {**items, "minItems": len(arguments), "maxItems": len(arguments)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _type(arguments[1], definitions)}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if hint.__name__ not in definitions:
            definitions[hint.__name__] = _object(hint, definitions)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    return {} if hint is Any else {"type": PLAIN[hint]}


def _attribute_notes(cls: type) -> dict[str, str]:
    """Return field -> its text in the docstring's ``Attributes`` section."""
    section = (inspect.getdoc(cls) or "").partition("Attributes:\n")[2]
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=2))
