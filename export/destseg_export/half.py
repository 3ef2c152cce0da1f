"""FP16 or BF16, from ONNX to ONNX: convolutions in half, what half cannot hold in FP32.

``to_half(proto, precision) -> (proto, HalfReport)`` takes the FP32 graph that ``to_onnx.trace``
made. The graph it returns is strongly typed: TensorRT 10, 11 and RTX build from it what it says,
and nothing else. ``to_onnx.export_onnx(..., precision="fp16")`` does the whole way and verifies it.

Weights are rounded once, to nearest even, after BatchNorm was folded in FP32; nodes and tensors
keep their names, so that a refit finds its weights. Input (uint8) and outputs (float32) stay as
they are. ``ISLANDS`` says which parts stay FP32, and why; ``half_study`` measures what each of them
is worth. Casts stand only at their borders.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import onnx

from destseg_deploy.errors import ExportError
from destseg_export.batch_norms import fold_batch_norms
from destseg_export.epsilon import keep_epsilon
from destseg_export.parts import SIZE, split_into_parts
from destseg_export.ranges import WeightRange, check_weights, measure_weights
from destseg_export.retype import FLOAT, HALF_TYPES, Retyping, half_tensors

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

What the gate sees without each (fp16, emulated): ``norm``, a map that is wrong by 0.79 on a model
trained on magnetic_tile (on screw the sum of squares stays at 1.7e4, and little is wrong).
``pixels``, seven times the difference of the map; ``stem``, two and a half times, and four times
that of the scores' mean: of what fp16 costs there, the teacher's first convolution made most, its
biases above all. ``sigmoid``, ``map`` and ``score``, answers on a coarse grid. Three cannot be
seen, and cost a cast or two each: ``pool``, since the emulation adds in float32 (in half, screw's
largest sum of 8.0e3 would have steps of 4); ``logit``, whose rounding is below that of the
convolutions; ``product``, which moved no error on screw by more than a fifth."""


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
    """

    precision: str
    convolutions: int
    half_convolutions: int
    islands: dict[str, tuple[str, ...]]
    casts: int
    weights: tuple[WeightRange, ...]

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

    def summary(self) -> dict[str, Any]:
        """Return the numbers that belong into a spec."""
        zeroed, subnormal, count = self._weight_counts()
        return {
            "convolutions": self.convolutions,
            "half_convolutions": self.half_convolutions,
            "fp32_parts": list(self.islands),
            "casts": self.casts,
            "weights": count,
            "weights_zeroed": zeroed,
            "weights_subnormal": subnormal,
        }

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
    _check_request(proto, precision, islands)
    half = onnx.ModelProto()
    half.CopyFrom(proto)
    graph = half.graph
    _lift_constants(graph)
    fold_batch_norms(half)
    keep_epsilon(half)
    parts = split_into_parts(graph)
    wanted = [_type(part, precision, islands) for part in parts]
    named = [(part, node.name) for part, node in zip(parts, graph.node, strict=True)]
    convolutions = [kind for kind, n in zip(wanted, graph.node, strict=True) if n.op_type == "Conv"]
    made = Retyping(graph, precision, wanted)
    weights = tuple(measure_weights(n, v, precision) for n, v in made.rounded.items())
    check_weights(weights, precision)
    _check_types(half, precision)
    return half, HalfReport(
        precision,
        len(convolutions),
        convolutions.count(HALF_TYPES[precision]),
        {p: tuple(name for part, name in named if part == p) for p in ISLANDS if p in islands},
        made.casts,
        weights,
    )


def _check_request(proto: onnx.ModelProto, precision: str, islands: Collection[str]) -> None:
    if precision not in HALF_TYPES:
        raise ExportError(
            f"precision {precision!r}: to_half makes {' or '.join(HALF_TYPES)}, from fp32."
        )
    if unknown := sorted(set(islands) - set(ISLANDS)):
        raise ExportError(f"island {unknown[0]!r}: expected some of {', '.join(ISLANDS)}.")
    opset = next(entry.version for entry in proto.opset_import if entry.domain == "")
    if opset < OPSETS[precision]:
        raise ExportError(
            f"opset {opset}: ONNX has {precision} convolutions from opset {OPSETS[precision]} on. "
            f"Export with --opset {OPSETS[precision]}."
        )
    if found := half_tensors(proto.graph):
        raise ExportError(
            f"the graph is half already ({len(found)} tensors, such as {min(found)}), and rounding "
            "twice is worse than once. Pass the fp32 graph."
        )


def _check_types(proto: onnx.ModelProto, precision: str) -> None:
    """Make sure that ONNX has every operator in the type it was given."""
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"no valid {precision} graph: {error}. Keep all of half.ISLANDS in fp32, or export in "
            "fp32."
        ) from error


def _type(part: str, precision: str, islands: Collection[str]) -> int | None:
    if part == SIZE:
        return None
    return FLOAT if part in islands else HALF_TYPES[precision]


def _lift_constants(graph: onnx.GraphProto) -> None:
    """Turn Constant nodes into initializers, which some versions of the exporter do not do."""
    for node in [node for node in graph.node if node.op_type == "Constant"]:
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        if value is None:
            raise ExportError(
                f"{node.name}: a constant that is no tensor. Use the versions of constraints.txt."
            )
        graph.initializer.add().CopyFrom(value)
        graph.initializer[-1].name = node.output[0]
        graph.node.remove(node)
