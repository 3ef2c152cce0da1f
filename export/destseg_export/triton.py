"""Triton's description of a model, ``config.pbtxt``: protocol buffers as text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from destseg_deploy.runtime.server.runtime import HASH
from destseg_deploy.spec import ModelSpec
from destseg_export.serving import Serving

MADE_BY = "# Made by destseg-export"
FILES = {".onnx": "model.onnx", ".engine": "model.plan"}
"""Suffix of an artifact -> how a server wants its file to be called."""

WARMUP = "frame"
"""File in the model's folder ``warmup``: the pixels of one frame."""


def triton_config(spec: ModelSpec, model: str, serving: Serving) -> dict[str, Any]:
    """Return Triton's configuration of a model (``ModelConfig``), its enumerations as ``Word``."""
    batch = spec.input.batch
    # With a batch of 1, as of tiles, the graph's first axis is fixed, too. To Triton that is a
    # model without batches, whose shapes are whole.
    one = [1] if batch.max == 1 else []
    pixels = [*one, *spec.size, 3]
    kind = Word("KIND_GPU" if serving.device == "gpu" else "KIND_CPU")
    config: dict[str, Any] = {
        "name": model,
        "backend": "tensorrt" if spec.kind == "engine" else "onnxruntime",
        "default_model_filename": FILES[".engine" if spec.kind == "engine" else ".onnx"],
        "max_batch_size": 0 if one else batch.max,
        "input": [{"name": spec.input.name, "data_type": Word("TYPE_UINT8"), "dims": pixels}],
        "output": [
            _output(spec.output.map_name, [*one, *spec.map_size]),
            # Triton knows no tensor without an axis; the model's score has none but the batch.
            {**_output(spec.output.score_name, [1]), **({} if one else {"reshape": {"shape": []}})},
        ],
        "instance_group": [{"count": serving.instances, "kind": kind}],
        "version_policy": {"latest": {"num_versions": 1}},
        "model_warmup": [
            {
                "name": "first frame",
                "batch_size": 1,
                "inputs": [
                    {
                        "key": spec.input.name,
                        "value": {
                            "data_type": Word("TYPE_UINT8"),
                            "dims": pixels,
                            "input_data_file": WARMUP,
                        },
                    }
                ],
            }
        ],
        "parameters": [
            {"key": key, "value": {"string_value": value}} for key, value in _parameters(spec)
        ],
    }
    if batch.max > 1:
        config["dynamic_batching"] = {
            "preferred_batch_size": sorted({batch.opt, batch.max} - {1}),
            "max_queue_delay_microseconds": serving.delay_us,
        }
    return config


def _output(name: str, dims: list[int]) -> dict[str, Any]:
    return {"name": name, "data_type": Word("TYPE_FP32"), "dims": dims}


def _parameters(spec: ModelSpec) -> Iterable[tuple[str, str]]:
    """Give what a client may ask for; the threshold is that of the day of the export."""
    yield "category", spec.category
    yield "precision", spec.precision
    yield HASH, spec.artifact.sha256
    if spec.threshold is not None:
        yield "threshold_score", repr(spec.threshold.score)
        yield "threshold_pixel", repr(spec.threshold.pixel)
    if spec.engine is not None:
        yield "engine_gpu", spec.engine.gpu or ", ".join(spec.engine.targets)
        yield "engine_tensorrt", spec.engine.version


class Word(str):
    """A value of an enumeration, which is written without quotes."""


def pbtxt(message: Mapping[str, Any]) -> str:
    """Return a message as text: mappings are messages, lists of them and of numbers repeat."""
    return "\n".join([MADE_BY, *_lines(message, "")]) + "\n"


def _lines(message: Mapping[str, Any], indent: str) -> Iterator[str]:
    for name, value in message.items():
        if isinstance(value, Mapping):
            yield from _block(name, value, indent)
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for one in value:
                yield from _block(name, one, indent)
        elif isinstance(value, list):
            yield f"{indent}{name}: [ {', '.join(map(_scalar, value))} ]"
        else:
            yield f"{indent}{name}: {_scalar(value)}"


def _block(name: str, message: Mapping[str, Any], indent: str) -> Iterator[str]:
    yield f"{indent}{name} {{"
    yield from _lines(message, indent + "  ")
    yield f"{indent}}}"


def _scalar(value: object) -> str:
    # JSON escapes text as protocol buffers do, as long as it is ASCII.
    return value if isinstance(value, Word) else json.dumps(value)
