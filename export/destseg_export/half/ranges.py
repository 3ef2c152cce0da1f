"""What half can hold: weights and activations beyond its range, by name and with their values.

FP16 ends at 65504, is subnormal below 6.1e-5 and 0 below 3e-8; BF16 has float32's range. Weights
are checked when they are rounded. Activations are measured on real images in float32, since only
there an overflow shows its size: in half it is an infinity, and behind a division a harmless 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from destseg_deploy.errors import ExportError
from destseg_export.graph.edit import open_model
from destseg_export.graph.run import open_session
from destseg_export.half.emulate import emulate
from destseg_export.half.retype import half_values, round_to_half

LARGEST = {"fp16": 65504.0, "bf16": 255 * 2.0**120}
"""Precision -> its largest finite value."""

HEADROOM = 8
"""How many times the largest activation that was measured must fit into half. Other images reach
more: an artifact that came to 65419 on its own images gave NaN on 16 of 87 others."""

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
    rounded = round_to_half(value, precision).astype(np.float32)
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
    proto: onnx.ModelProto, frames: Sequence[NDArray[np.uint8]]
) -> dict[str, float]:
    """Run a half graph in float32 and return the largest absolute value of each half tensor.

    Args:
        proto: A graph of ``to_half``; it runs with its rounded weights, and nothing else rounded.
        frames: uint8 (H, W, 3) at the graph's input size.

    Returns:
        Tensor name -> value; infinite or NaN where float32 is.
    """
    halves = [value for value in half_values(open_model(proto)) if not value.is_initializer()]
    names = [str(value.name) for value in halves]
    run = open_session(emulate(proto, rounded=False), names)
    largest = np.zeros(len(names))
    for frame in frames:
        found = [float(np.abs(values).max()) for values in run(frame[None])]
        largest = np.maximum(largest, found)  # of a NaN and a number it is the NaN
    return dict(zip(names, largest.tolist(), strict=True))


def check_activations(largest: Mapping[str, float], precision: str) -> None:
    """Refuse a graph whose half tensors come near the end of half's range; see ``HEADROOM``.

    Args:
        largest: Tensor name -> largest absolute value, from ``measure_activations``.
        precision: ``fp16`` or ``bf16``.

    Raises:
        ExportError: With the name and value of the worst.
    """
    limit = LARGEST[precision] / HEADROOM
    beyond = {name: value for name, value in largest.items() if not value <= limit}
    if beyond:
        worst = max(beyond, key=lambda name: np.nan_to_num(beyond[name], nan=np.inf))
        raise ExportError(
            f"{worst}: reaches {beyond[worst]:.4g} on the verification images, expected at most "
            f"{limit:.4g}, an eighth of {precision}'s {LARGEST[precision]:.5g}, since other images "
            f"reach more. So do {len(beyond)} of {len(largest)} tensors in half. "
            f"{_way_out(precision)}"
        )


def _way_out(precision: str) -> str:
    if precision == "fp16":
        return "Nothing was written. Export with --precision bf16, which has float32's range."
    return "Nothing was written. Check the checkpoint with destseg-evaluate."
