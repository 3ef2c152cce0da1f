"""FP16 or BF16, from ONNX to ONNX: convolutions in half, what half cannot hold in FP32.

``to_half(proto, precision) -> (proto, HalfReport)`` takes the FP32 graph that ``to_onnx.trace``
made. The graph it returns is strongly typed: TensorRT 10, 11 and RTX build from it what it says,
and nothing else. ``to_onnx.export_onnx(..., precision="fp16")`` goes the whole way and verifies it.

Weights are rounded once, to nearest even, after BatchNorm was folded in FP32; nodes and tensors
keep their names, so that a refit finds its weights. Input (uint8) and outputs (float32) stay as
they are. ``ISLANDS`` says which parts stay FP32, and why; ``studies.half`` measures what each of
them is worth. Casts stand only at their borders.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from destseg_deploy.errors import ExportError
from destseg_deploy.spec import HalfRecord
from destseg_export.graph.edit import open_model, tidy
from destseg_export.graph.epsilon import keep_epsilon
from destseg_export.half.graph_parts import SIZE, split_into_parts
from destseg_export.half.ranges import WeightRange, check_weights, measure_weights
from destseg_export.half.retype import FLOAT, HALF_TYPES, Retyping, half_values

OPSETS = {"fp16": 18, "bf16": 22}
"""Precision -> the oldest opset that has all its operators."""

ISLANDS = {
    "pixels": "the resize is exact only with 24 bits, and pixels are normalised once",
    "stem": "what the first convolution rounds passes through all layers behind it",
    "pool": "a GPU may add a whole plane in the type of its input",
    "norm": "the sum of squares may pass 65504, and epsilon is 0 in half",
    "product": "unit-length features are rounded once, behind the interpolation, not before",
    "logit": "half logits put all answers on one grid",
    "sigmoid": "half probabilities near 1 are 4.9e-4 apart",
    "map": "interpolated probabilities would tie on half's grid",
    "score": "a mean of largest values would tie on half's grid",
}
"""Part of the graph that stays FP32 -> why.

What the gate measures when one of them is in half, too (fp16, emulated):

- ``norm``: the map is wrong by 0.79 on a model trained on magnetic_tile. On screw the sum of
  squares stays at 1.7e4, and little is wrong.
- ``pixels``: seven times the difference of the map.
- ``stem``: 2.5 times the difference of the map and 4 times that of the mean score. The teacher's
  first convolution, above all its biases, makes most of what fp16 costs.
- ``sigmoid``, ``map``, ``score``: answers on a coarse grid.

The gate cannot see the other three, which cost a cast or two each. ``pool``: the emulation adds in
float32; a GPU may add in half, where screw's largest sum of 8.0e3 has steps of 4. ``logit``: its
rounding is below that of the convolutions. ``product``: no error on screw moved by more than a
fifth."""


@dataclass(frozen=True)
class HalfReport:
    """What the conversion did, and what it left alone and why.

    Attributes:
        precision: ``fp16`` or ``bf16``.
        convolutions: Convolutions in the graph.
        half_convolutions: Those that became half.
        islands: Part that stayed FP32 -> names of its nodes.
        casts: Casts inserted.
        weights: The constants that were rounded, and how they fitted.
        originals: Name of each of them -> its float32 values before.
    """

    precision: str
    convolutions: int
    half_convolutions: int
    islands: dict[str, tuple[str, ...]]
    casts: int
    weights: tuple[WeightRange, ...]
    originals: Mapping[str, NDArray[np.float32]] = field(repr=False)

    def lines(self) -> list[str]:
        """Return the report in words, a line for each thing."""
        zeroed, subnormal, count = self._weight_counts()
        return [
            f"{self.half_convolutions} of {self.convolutions} convolutions in {self.precision}, "
            f"{self.casts} casts at the borders of what stays fp32:",
            *(
                f"  {part} ({len(names)} nodes): {ISLANDS[part]}"
                for part, names in self.islands.items()
            ),
            f"of {count} weights {zeroed} became 0 and {subnormal} lost bits, being small",
        ]

    def record(self) -> HalfRecord:
        """Return what the spec keeps; activations are not measured yet."""
        zeroed, subnormal, count = self._weight_counts()
        return HalfRecord(
            convolutions=self.convolutions,
            half_convolutions=self.half_convolutions,
            fp32_parts=tuple(self.islands),
            casts=self.casts,
            weights=count,
            weights_zeroed=zeroed,
            weights_subnormal=subnormal,
        )

    def _weight_counts(self) -> tuple[int, int, int]:
        """Return how many values became 0, how many lost bits, and how many there are."""
        counts = [(w.zeroed, w.subnormal, w.count) for w in self.weights]
        zeroed, subnormal, count = (sum(column) for column in zip(*counts, strict=True))
        return zeroed, subnormal, count


def to_half(
    proto: onnx.ModelProto, precision: str, *, islands: Collection[str] = tuple(ISLANDS)
) -> tuple[onnx.ModelProto, HalfReport]:
    """Convert an FP32 graph to half with FP32 islands.

    Args:
        proto: The FP32 graph, which stays as it is.
        precision: ``fp16`` or ``bf16``.
        islands: Parts that stay FP32, names of ``ISLANDS``. Fewer than all make a graph that is
            wrong on purpose, to see whether a check notices.

    Returns:
        The half graph and the report.

    Raises:
        ExportError: If the precision is another, the graph is half already, or it is not the one
            that the exporter writes.
    """
    model = open_model(proto)
    _check_request(model, precision, islands)
    # Some versions of the exporter leave constants as nodes, which have no part of the network.
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    keep_epsilon(model)
    tidy(model)
    parts = split_into_parts(model.graph)
    wanted = [_type(part, precision, islands) for part in parts]
    named = [(part, str(n.name), n.op_type) for part, n in zip(parts, model.graph, strict=True)]
    made = Retyping(model, precision, wanted)
    weights = tuple(measure_weights(n, v, precision) for n, v in made.rounded.items())
    check_weights(weights, precision)
    half = ir.to_proto(model)
    _check_types(half, precision)
    convolutions = [part for part, _, operator in named if operator == "Conv"]
    return half, HalfReport(
        precision,
        len(convolutions),
        sum(part not in islands for part in convolutions),
        {p: tuple(name for part, name, _ in named if part == p) for p in ISLANDS if p in islands},
        made.casts,
        weights,
        made.rounded,
    )


def _check_request(model: ir.Model, precision: str, islands: Collection[str]) -> None:
    if precision not in HALF_TYPES:
        raise ExportError(
            f"precision {precision!r}: to_half makes {' or '.join(HALF_TYPES)}, from fp32."
        )
    if unknown := sorted(set(islands) - set(ISLANDS)):
        raise ExportError(f"island {unknown[0]!r}: expected some of {', '.join(ISLANDS)}.")
    opset = model.opset_imports[""]
    if opset < OPSETS[precision]:
        raise ExportError(
            f"opset {opset}: ONNX has {precision} convolutions from opset {OPSETS[precision]} on. "
            f"Export with --opset {OPSETS[precision]}."
        )
    if found := half_values(model):
        raise ExportError(
            f"the graph is half already ({len(found)} tensors, such as {found[0].name}), and "
            "rounding twice is worse than once. Pass the fp32 graph."
        )


def _check_types(proto: onnx.ModelProto, precision: str) -> None:
    """Make sure that ONNX has every operator in the type it was given."""
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"no valid {precision} graph: {error}. Keep all of convert.ISLANDS in fp32, or "
            "export in fp32."
        ) from error


def _type(part: str, precision: str, islands: Collection[str]) -> ir.DataType | None:
    if part == SIZE:
        return None
    return FLOAT if part in islands else HALF_TYPES[precision]
