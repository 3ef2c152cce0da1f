"""Proof that an engine computes in the precision that its spec says.

A file name and a flag prove nothing: engines named fp16 have been found without a single half
tensor. So the convolutions, which take most of the time, are counted: in the built engine, as its
inspector describes it, or, without a GPU that can open the engine, in the strongly typed network
that it was built from. TensorRT must keep the types of such a network.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from destseg_deploy.errors import ExportError

ENOUGH = 0.9
"""Share of convolutions that must be half; the last one before the sigmoid stays fp32."""
HALF = {"fp16": "HALF", "bf16": "BF16"}
"""Precision -> the data type that its convolutions must have."""
_WORDS = {
    "HALF": re.compile(r"fp16|half|float16(?<!bfloat16)", re.IGNORECASE),
    "BF16": re.compile(r"bf16|bfloat16", re.IGNORECASE),
}
"""Data type -> how inspectors of the several versions write it."""
_CONVOLUTION = re.compile(r"conv(?!ert)", re.IGNORECASE)


@dataclass(frozen=True)
class Convolutions:
    """How many convolutions there are, how many are half, and where that was read.

    Attributes:
        count: All.
        half: Those in a half type: HALF or BF16, of a spec's precision if that is one of them.
        source: ``engine`` or ``network``.
    """

    count: int
    half: int
    source: str

    @property
    def share(self) -> float:
        """Share of half ones, 0 to 1; 0 without any convolution."""
        return self.half / self.count if self.count else 0.0


def count_in_network(library: ModuleType, network: Any, precision: str) -> Convolutions:
    """Count in a strongly typed network: a convolution computes in the type of its input.

    Args:
        library: The TensorRT that parsed it.
        network: An ``INetworkDefinition``.
        precision: The spec's.
    """
    kinds = (library.LayerType.CONVOLUTION, library.LayerType.DECONVOLUTION)
    layers = (network.get_layer(index) for index in range(network.num_layers))
    types = [layer.get_input(0).dtype for layer in layers if layer.type in kinds]
    wanted = [getattr(library.DataType, name) for name in _wanted(precision)]
    return Convolutions(len(types), sum(kind in wanted for kind in types), "network")


def count_in_engine(description: str, precision: str) -> Convolutions | None:
    """Count in what an engine's inspector says.

    Args:
        description: Its JSON, made with detailed verbosity: of TensorRT 10 (``Format/Datatype``)
            or of 11 (``Format`` and ``DataType`` apart).
        precision: The spec's.

    Returns:
        None if the description names no convolution, as when whole parts are one layer.
    """
    try:
        entries = json.loads(description).get("Layers", ())
    except (ValueError, AttributeError):
        return None
    convolutions = [each for each in entries if isinstance(each, dict) and _convolves(each)]
    if not convolutions:
        return None
    half = sum(_is_half(each, precision) for each in convolutions)
    return Convolutions(len(convolutions), half, "engine")


def check_precision(found: Convolutions, precision: str, name: str) -> None:
    """Refuse an engine that is not what its spec says.

    Raises:
        ExportError: If it says fp16 or bf16 and fewer than ``ENOUGH`` of its convolutions are, or
            if it says fp32 and any is half.
    """
    if precision in HALF and not found.share >= ENOUGH:
        raise ExportError(
            f"{name}: its spec says {precision}, but only {found.half} of {found.count} "
            f"convolutions are (read from the {found.source}), expected {ENOUGH:.0%} at least. "
            "Nothing was written. Convert the graph: destseg-export --precision " + precision
        )
    if precision == "fp32" and found.half:
        raise ExportError(
            f"{name}: its spec says fp32, but {found.half} of {found.count} convolutions are half "
            f"(read from the {found.source}). Nothing was written. Export the graph again."
        )


def _wanted(precision: str) -> tuple[str, ...]:
    return (HALF[precision],) if precision in HALF else tuple(HALF.values())


def _convolves(entry: dict[str, Any]) -> bool:
    kinds = (str(entry.get(name, "")) for name in ("LayerType", "ParameterType"))
    return any(_CONVOLUTION.search(kind) for kind in kinds)


def _is_half(entry: dict[str, Any], precision: str) -> bool:
    """Read the type of the weights, which a fused cast does not hide; else that of the input."""
    weights = entry.get("Weights")
    described = str(weights.get("Type", "")) if isinstance(weights, dict) else ""
    if not described:
        inputs = entry.get("Inputs") or [{}]
        first = inputs[0] if isinstance(inputs[0], dict) else {}
        names = ("Format/Datatype", "DataType", "Datatype", "Format")
        described = " ".join(str(first[name]) for name in names if name in first)
    return any(_WORDS[kind].search(described) for kind in _wanted(precision))
