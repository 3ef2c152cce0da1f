"""Replace all weights of an engine by those of another ONNX file of the same architecture.

``destseg-export refit`` does this and writes a new engine file, which a host opens beside the old
one. TensorRT matches weights by the names of the ONNX file's initialisers. It sets them first,
which changes nothing, and applies them all at once; so what can be refused is refused before the
engine is touched.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from destseg_deploy.errors import BackendError, SpecError
from destseg_deploy.runtime.trt.record import engine_record
from destseg_deploy.spec import ModelSpec

NAMED = 5
"""Weights named in an error; more would fill the screen."""


def read_weights(path: Path, engine: ModelSpec) -> tuple[bytes, ModelSpec]:
    """Read an ONNX file whose weights fit an engine.

    Returns:
        Its bytes, and the spec that the engine has with its weights.

    Raises:
        SpecError: If it is no ONNX artifact, or its contract is not the engine's.
    """
    if path.suffix.lower() != ".onnx":
        raise SpecError(
            f"{path}: expected the .onnx of another category. Export it: destseg-export "
            f"--checkpoint {path.name} --precision {engine.precision}"
        )
    weights = ModelSpec.read(path)
    weights.check_artifact(path)
    _check_contract(path, weights, engine)
    record = replace(
        engine_record(engine),
        onnx=weights.artifact.file,
        onnx_sha256=weights.artifact.sha256,
    )
    swapped = replace(
        engine,
        category=weights.category,
        checkpoint=weights.checkpoint,
        threshold=weights.threshold,
        teacher=weights.teacher,
        training=weights.training,
        engine=record,
    )
    return path.read_bytes(), swapped


def refit_engine(library: ModuleType, opened: Any, onnx: bytes, logger: Any) -> None:
    """Replace every weight of an engine. No work may be queued on it; contexts stay valid.

    Args:
        library: The TensorRT that opened the engine.
        opened: An ``ICudaEngine`` built with the refit flag.
        onnx: The content of the ONNX file that holds the new weights.
        logger: The ``ILogger`` the engine was opened with.

    Raises:
        BackendError: If the engine is not refittable or a weight does not fit; the engine is as it
            was. Or if applying them fails, where TensorRT may have replaced some: the message says
            that the engine must be opened anew.
    """
    if not opened.refittable:
        raise BackendError(
            "the engine is not refittable: it was built without that flag. Build it with "
            "destseg-export --format engine --refittable"
        )
    refitter = library.Refitter(opened, logger)
    parser = library.OnnxParserRefitter(refitter, logger)
    accepted = parser.refit_from_bytes(onnx)
    missing = list(refitter.get_missing_weights())
    if not accepted or missing:
        raise BackendError(
            f"the weights do not fit the engine ({_reason(parser, missing)}). Nothing was changed. "
            "Refit from a model exported by the same versions, with the same sizes and precision."
        )
    if not refitter.refit_cuda_engine():
        raise BackendError(
            "TensorRT failed while replacing the weights, and some may be replaced. Open the "
            "engine anew before it is used again."
        )


def _reason(parser: Any, missing: list[str]) -> str:
    """Say which weights are missing, else what the parser found wrong."""
    if missing:
        more = ", ..." if len(missing) > NAMED else ""
        return f"{len(missing)} missing: {', '.join(missing[:NAMED])}{more}"
    errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
    said = "; ".join(" ".join(text.split()) for text in errors)
    return said[:300] or "TensorRT gave no reason"


def _check_contract(path: Path, weights: ModelSpec, engine: ModelSpec) -> None:
    def contract(spec: ModelSpec) -> dict[str, Any]:
        return {
            "precision": spec.precision,
            "input": (spec.input.name, *spec.size),
            "network": spec.network,
            "output": spec.output,
        }

    if weights.kind != "onnx":
        raise SpecError(f"{path}: its spec says {weights.kind}, expected onnx.")
    theirs, ours = contract(weights), contract(engine)
    for name, value in ours.items():
        if theirs[name] != value:
            raise SpecError(
                f"{path}: {name} is {theirs[name]}, the engine {engine.artifact.file} has {value}. "
                "Weights can be swapped only between equal graphs; export it with the same options."
            )
