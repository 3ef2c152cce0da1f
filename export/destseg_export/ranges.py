"""What half can hold: weights and activations beyond its range, by name and with their values.

FP16 ends at 65504, is subnormal below 6.1e-5 and 0 below 3e-8; BF16 has float32's range. Weights
are looked at as they are rounded, activations on real images in float32, where an overflow still
shows its size: in half it is an infinity, and behind a division an innocent 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from destseg_deploy.errors import ExportError
from destseg_deploy.spec import ModelSpec
from destseg_export.retype import half_tensors, round_to_half
from destseg_export.rounding import emulate

LARGEST = {"fp16": 65504.0, "bf16": 255 * 2.0**120}
"""Precision -> its largest finite value."""

SMALLEST_NORMAL = {"fp16": 2.0**-14, "bf16": 2.0**-126}
"""Precision -> the value below which it loses bits."""


@dataclass(frozen=True)
class WeightRange:
    """How the values of one constant fit into half.

    Attributes:
        name: Of the constant.
        count: Values in it.
        largest: The largest absolute value; NaN if there is a NaN.
        beyond: Values that half cannot hold: they become infinite.
        zeroed: Values other than 0 that become 0.
        subnormal: Further values that lose bits because they are small.
    """

    name: str
    count: int
    largest: float
    beyond: int
    zeroed: int
    subnormal: int


def measure_weights(name: str, value: NDArray[np.float32], precision: str) -> WeightRange:
    """Measure how a constant, float32 of any shape, fits into ``fp16`` or ``bf16``."""
    rounded = round_to_half(value, precision)
    small = (value != 0) & (np.abs(value) < SMALLEST_NORMAL[precision])
    zeroed = int((small & (rounded == 0)).sum())
    return WeightRange(
        name,
        value.size,
        float(np.abs(value).max()),
        int((~np.isfinite(rounded)).sum()),
        zeroed,
        int(small.sum()) - zeroed,
    )


def check_weights(weights: Iterable[WeightRange], precision: str) -> None:
    """Refuse weights that half cannot hold.

    Raises:
        ExportError: With the name and value of the largest.
    """
    beyond = [weight for weight in weights if weight.beyond]
    if beyond:
        worst = max(beyond, key=lambda weight: np.nan_to_num(weight.largest, nan=np.inf))
        raise ExportError(
            f"{worst.name}: {worst.beyond} of {worst.count} weights are beyond {precision}'s "
            f"{LARGEST[precision]:.5g} (the largest is {worst.largest:.4g}), "
            f"{len(beyond)} constants in all. {_way_out(precision)}"
        )


def measure_activations(
    proto: onnx.ModelProto, spec: ModelSpec, frames: Sequence[NDArray[np.uint8]]
) -> dict[str, float]:
    """Run a half graph in float32 and return the largest absolute value of each half tensor.

    Args:
        proto: A graph of ``to_half``; it runs with its rounded weights, and nothing else rounded.
        spec: Its contract.
        frames: uint8 (H, W, 3) at the spec's size, as many as there are.

    Returns:
        Tensor name -> value; infinite or NaN where float32 is.
    """
    constants = {tensor.name for tensor in proto.graph.initializer}
    names = [name for name in half_tensors(proto.graph) if name not in constants]
    session = ort.InferenceSession(
        _watched(emulate(proto, rounded=False), names).SerializeToString(),
        providers=["CPUExecutionProvider"],
    )
    outputs = [f"{name}_largest" for name in names]
    largest = np.zeros(len(names))
    for batch in _batches(frames, spec.input.batch.min):
        found = np.array(session.run(outputs, {spec.input.name: batch}), np.float64)
        largest = np.maximum(largest, found)  # of a NaN and a number it is the NaN
    return dict(zip(names, largest.tolist(), strict=True))


def check_activations(largest: Mapping[str, float], precision: str) -> None:
    """Refuse a graph whose half tensors pass half's range.

    Args:
        largest: Tensor name -> largest absolute value, from ``measure_activations``.
        precision: ``fp16`` or ``bf16``.

    Raises:
        ExportError: With the name and value of the worst.
    """
    limit = LARGEST[precision]
    beyond = {name: value for name, value in largest.items() if not value <= limit}
    if beyond:
        worst = max(beyond, key=lambda name: np.nan_to_num(beyond[name], nan=np.inf))
        raise ExportError(
            f"{worst}: reaches {beyond[worst]:.4g} on the verification images, beyond "
            f"{precision}'s {limit:.5g}, and {len(beyond)} of {len(largest)} tensors in half do. "
            f"{_way_out(precision)}"
        )


def _way_out(precision: str) -> str:
    if precision == "fp16":
        return "Nothing was written. Export with --precision bf16, which has float32's range."
    return "Nothing was written. Check the checkpoint with destseg-evaluate."


def _watched(proto: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Add the largest absolute value of each tensor as an output, float32 ()."""
    graph = proto.graph
    for name in names:
        graph.node.append(helper.make_node("Abs", [name], [f"{name}_abs"]))
        graph.node.append(
            helper.make_node("ReduceMax", [f"{name}_abs"], [f"{name}_largest"], keepdims=0)
        )
        graph.output.append(helper.make_tensor_value_info(f"{name}_largest", TensorProto.FLOAT, []))
    return proto


def _batches(frames: Sequence[NDArray[np.uint8]], size: int) -> Iterable[NDArray[np.uint8]]:
    """Yield batches of exactly ``size`` frames; the last one repeats its last frame."""
    for start in range(0, len(frames), size):
        batch = list(frames[start : start + size])
        yield np.stack(batch + batch[-1:] * (size - len(batch)))
