"""What is measured before layers are chosen: ranges, shifts, and how much harm each layer does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray

from destseg_export.graph.edit import Floats
from destseg_export.int8.budget import by_harm, rank_layers
from destseg_export.int8.calibrate import measure_ranges, measure_shifts
from destseg_export.int8.qdq import Range, macs_by_layer, quantize_layers, tensors_around

RANKED_ON = 8
"""Images of the sensitivity sweep, half of them anomalous."""

SHIFTS_ON = 16
"""Images on which it is measured what rounding adds to a convolution, half of them anomalous."""


@dataclass(frozen=True, eq=False)
class Measured:
    """A float32 graph, and all that putting any of its layers into 8 bit needs.

    Attributes:
        proto: The graph.
        scheme: See ``qdq.quantize_layers``.
        ranges: Tensor -> range.
        shifts: Layer -> what 8 bit add to its output channels, float64 (O,).
        moved: Layer -> how far it alone moves the maps, the most sensitive first.
    """

    proto: onnx.ModelProto
    scheme: str
    ranges: Mapping[str, Range]
    shifts: Mapping[str, Floats]
    moved: Mapping[str, float]

    def quantized(self, layers: Sequence[str], *, corrected: bool = True) -> onnx.ModelProto:
        """Return the graph with some layers in 8 bit, their biases corrected unless told not to."""
        shifts = self.shifts if corrected else {}
        return quantize_layers(self.proto, layers, self.ranges, self.scheme, shifts)

    @property
    def macs(self) -> Mapping[str, int]:
        """Layer -> the multiply-accumulates that it does for an image."""
        return macs_by_layer(self.proto, list(self.moved))

    @property
    def ranked(self) -> list[str]:
        """The layers, the one that harms most for its size first."""
        return by_harm(self.moved, self.macs)


def measure(
    proto: onnx.ModelProto,
    layers: Sequence[str],
    frames: NDArray[np.uint8],
    outputs: Sequence[str],
    scheme: str,
    *,
    report: Callable[[str], None] = lambda line: None,
    advance: Callable[[int, int, str], None] = lambda done, total, layer: None,
) -> Measured:
    """Measure a float32 graph on images.

    Args:
        proto: The graph.
        layers: Convolutions that may be quantised.
        frames: uint8 (N, H, W, 3), normal and anomalous, at the graph's input size.
        outputs: Names of map and score.
        scheme: See ``qdq.quantize_layers``.
        report: Called with a line before the layers are ranked.
        advance: Called while they are, with those done, all of them, and the layer.
    """
    ranges = measure_ranges(proto, tensors_around(proto, layers), frames)
    some = frames[_spread(SHIFTS_ON, len(frames))]
    shifts = measure_shifts(proto, layers, ranges, scheme, some)
    found = Measured(proto, scheme, ranges, shifts, {})
    report(f"ranking {len(layers)} layers")
    # A sweep runs the whole graph once for each layer and image, so it gets a few images only.
    few = frames[_spread(RANKED_ON, len(frames))]
    return replace(found, moved=rank_layers(proto, layers, found.quantized, few, outputs, advance))


def _spread(count: int, among: int) -> NDArray[np.int64]:
    """Return the indices of some images, spread evenly."""
    return np.unique(np.linspace(0, among - 1, count).astype(np.int64))
