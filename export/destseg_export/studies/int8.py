"""What keeps INT8 close: a graph with more and fewer layers in float32, with and without shifts.

Each variant answers labelled images that neither calibrated nor chose anything. ``quantize`` writes
the one with ``budget.SPARED`` and corrected biases, unless its budget asks for more in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from destseg_deploy.data.calibration import add_anomalies, read_normal
from destseg_deploy.data.datasets import DataSet
from destseg_export.fusions.apply import fuse
from destseg_export.graph.run import open_session
from destseg_export.int8.budget import SPARED, spared
from destseg_export.int8.judge import Answers, ask, check_calibration
from destseg_export.int8.measured import Measured, measure
from destseg_export.int8.qdq import find_layers
from destseg_export.int8.quantize import Int8Options, read_labelled, read_source

IN_FLOAT32 = (0.0, SPARED / 2, SPARED, 2 * SPARED)
"""Shares of the layers' arithmetic that stay in float32."""


@dataclass(frozen=True)
class Variant:
    """One way to quantise a graph.

    Attributes:
        in_float32: Layers that stay in float32.
        share: Of the layers' arithmetic, that these do.
        in_int8: All other layers.
        corrected: Whether biases are corrected.
    """

    in_float32: int
    share: float
    in_int8: tuple[str, ...]
    corrected: bool

    @property
    def biases(self) -> str:
        """What happened to the biases, in words."""
        return "corrected" if self.corrected else "as they were"


def list_variants(measured: Measured) -> list[Variant]:
    """Return the variants in the order of the table."""
    ranked, macs = measured.ranked, measured.macs
    found = []
    for count in dict.fromkeys(spared(ranked, macs, share) for share in IN_FLOAT32):
        share = sum(macs[layer] for layer in ranked[:count]) / sum(macs.values())
        rest = tuple(ranked[count:])
        found += [Variant(count, share, rest, corrected) for corrected in (False, True)]
    return found


def study_int8(
    source: Path,
    normal: Path | DataSet,
    labelled: Path | DataSet,
    *,
    options: Int8Options | None = None,
    report: Callable[[str], None] = lambda line: None,
    advance: Callable[[int, int, str], None] = lambda done, total, layer: None,
) -> dict[str, Any]:
    """Quantise a graph in several ways, and compare their answers with float32's.

    Args:
        source: An fp32 ``.onnx`` with its spec, as ``quantize`` takes it.
        normal: Data set whose images of good parts calibrate, or its folder or list.
        labelled: Data set whose labelled images are asked about, or its folder or list.
        options: See ``Int8Options``; ``max_drop`` is not used.
        report: Called with a line for each stage.
        advance: Called while layers are ranked, with those done, all of them, and the layer.

    Returns:
        ``rows``, one for float32 and each variant: layers in float32 and their share of the
        arithmetic, whether biases were corrected, ``pixel_ap`` and ``image_auroc`` in [0, 1], and
        how far scores and maps moved.

    Raises:
        SpecError: If the source's spec is missing or belongs to another file.
        DataError: If images are missing, too few, all the same, or of another size.
        ExportError: If the source is not a plain fp32 export.
    """
    chosen = options or Int8Options()
    spec = read_source(source, chosen, report)
    proto, _ = fuse(onnx.load(source), chosen.fusions)
    good = read_normal(normal, spec, chosen.images)
    check_calibration(len(good))
    images = read_labelled(labelled, spec)
    seen = add_anomalies(good, textures=chosen.textures)
    outputs = [spec.output.map_name, spec.output.score_name]
    report(f"calibrating on {len(seen.frames)} images, half of them with an anomaly")
    layers = find_layers(proto, chosen.parts)
    measured = measure(
        proto, layers, seen.frames, outputs, chosen.scheme, report=report, advance=advance
    )

    def answers(graph: onnx.ModelProto) -> Answers:
        return ask(open_session(graph, outputs), images, spec.map_size)

    exact = answers(proto)
    rows: list[dict[str, Any]] = [
        {"in_float32": len(layers), "float32_share": 1.0, **_metrics(exact)}
    ]
    for variant in list_variants(measured):
        report(f"{variant.in_float32} layers in float32, biases {variant.biases}")
        found = answers(measured.quantized(variant.in_int8, corrected=variant.corrected))
        head = {
            "in_float32": variant.in_float32,
            "float32_share": variant.share,
            "biases": variant.biases,
        }
        rows.append({**head, **_metrics(found), **_moves(exact, found)})
    return {
        "kind": "int8",
        "calibrated_on": len(seen.frames),
        "images": len(images.frames),
        "scheme": chosen.scheme,
        "rows": rows,
    }


def _metrics(found: Answers) -> dict[str, float]:
    accuracy = found.accuracy()
    return {"image_auroc": accuracy.image_auroc, "pixel_ap": accuracy.pixel_ap}


def _moves(exact: Answers, found: Answers) -> dict[str, float]:
    """Return how far scores and maps are from float32's."""
    scores = found.scores - exact.scores
    maps = np.abs(found.maps - exact.maps)
    return {
        "score_rms": float(np.sqrt(np.mean(scores.astype(np.float64) ** 2))),
        "score_max_abs": float(np.abs(scores).max()),
        "map_mean_abs": float(maps.mean(dtype=np.float64)),
        "map_max_abs": float(maps.max()),
    }
