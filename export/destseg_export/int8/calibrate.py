"""Calibration: what is measured on normal images and on synthetic anomalies.

These are the range of each tensor's values, and what rounding adds to each convolution. The ranges
are a JSON file that can be read and compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from destseg_deploy.files import replacing
from destseg_export.graph.edit import Floats
from destseg_export.graph.run import open_session
from destseg_export.int8.qdq import Range, add_twins

Bytes = NDArray[np.uint8]

TAIL = 1e-4
"""Share of an image's values beyond either end of its range. Rare peaks would coarsen all steps."""


@dataclass(frozen=True)
class Calibration:
    """Measured ranges.

    Attributes:
        normal: Normal images seen.
        synthetic: Images with a synthetic anomaly seen.
        source: Folder of the normal images.
        tail: See ``TAIL``.
        ranges: Tensor -> range.
    """

    normal: int
    synthetic: int
    source: str
    tail: float
    ranges: Mapping[str, Range]

    def write(self, path: Path) -> None:
        """Write the JSON file whole."""
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=2) + "\n")


def measure_ranges(
    proto: onnx.ModelProto, tensors: Sequence[str], frames: Bytes, tail: float = TAIL
) -> dict[str, Range]:
    """Run a graph on images and return the range of each tensor over all of them.

    Args:
        proto: The FP32 graph.
        tensors: Names of tensors in it.
        frames: uint8 (N, H, W, 3), normal and anomalous.
        tail: Share of an image's values left outside at each end.
    """
    run = open_session(proto, tensors)
    found: dict[str, Range] = {}
    for frame in frames:
        for name, values in zip(tensors, run(frame[None]), strict=True):
            low, high = (float(q) for q in np.quantile(values, [tail, 1 - tail]))
            known = found.get(name, Range(low, high))
            found[name] = Range(min(known.low, low), max(known.high, high))
    return found


def measure_shifts(
    proto: onnx.ModelProto,
    layers: Sequence[str],
    ranges: Mapping[str, Range],
    scheme: str,
    frames: Bytes,
) -> dict[str, Floats]:
    """Return what 8 bit add to the output channels of each layer on average.

    Args:
        proto: The FP32 graph.
        layers: Names of convolutions.
        ranges: See ``qdq.quantize_layers``.
        scheme: See ``qdq.quantize_layers``.
        frames: uint8 (N, H, W, 3), normal and anomalous.

    Returns:
        Layer -> float64 (O,).
    """
    graph, outputs = add_twins(proto, layers, ranges, scheme)
    run = open_session(graph, list(outputs.values()))
    found = [run(frame[None]) for frame in frames]
    return {
        layer: np.mean([shifts[index][0] for shifts in found], axis=0, dtype=np.float64)
        for index, layer in enumerate(outputs)
    }
