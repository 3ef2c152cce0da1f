"""Swap all weights of an opened engine for those of another ONNX file of the same architecture.

Used by the runtime (``TrtRuntime.refit``) and by ``destseg-export refit``. TensorRT matches weights
by the names of the ONNX file's initialisers. It sets them first, which changes nothing, and applies
them all at once; so what can be refused is refused before the engine is touched.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from destseg_deploy.errors import BackendError

NAMED = 5
"""Weights named in an error; more would fill the screen."""


def refit_engine(library: ModuleType, engine: Any, onnx: bytes, logger: Any) -> None:
    """Replace every weight of an engine. No work may be queued on it; contexts stay valid.

    Args:
        library: The TensorRT that opened the engine.
        engine: An ``ICudaEngine`` built with the refit flag.
        onnx: The content of the ONNX file that holds the new weights.
        logger: The ``ILogger`` the engine was opened with.

    Raises:
        BackendError: If the engine is not refittable or a weight does not fit; the engine is as it
            was. Or if applying them fails, where TensorRT may have replaced some: the message says
            that the engine must be opened anew.
    """
    if not engine.refittable:
        raise BackendError(
            "the engine is not refittable: it was built without that flag. Build it with "
            "destseg-export --format engine --refittable"
        )
    refitter = library.Refitter(engine, logger)
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
