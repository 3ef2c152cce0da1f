"""The accuracy budget of INT8: which layers may stay in 8 bit.

Layers are ranked by how far each alone moves the maps. All of them are quantised; while pixel AP or
image AUROC drops by more than allowed, the layer that moves them most is given back to float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from destseg_deploy.errors import ExportError
from destseg_deploy.metrics import image_auroc, pixel_metrics
from destseg_export.calibrate import Labelled
from destseg_export.qdq import Range, quantize_layers
from destseg_export.session import Run, open_session


@dataclass(frozen=True)
class Accuracy:
    """What is held to the budget, in [0, 1].

    Attributes:
        pixel_ap: Average precision of all pixels.
        image_auroc: Of the scores.
    """

    pixel_ap: float
    image_auroc: float

    def drop(self, below: Accuracy) -> float:
        """Return how many points the worse of the two lost, 100 points being all."""
        lost = (self.pixel_ap - below.pixel_ap, self.image_auroc - below.image_auroc)
        return 100 * max(lost)


@dataclass(frozen=True)
class Fit:
    """What the budget left.

    Attributes:
        layers: Convolutions in 8 bit.
        given_back: Those returned to float32, first the one that moved the maps most.
        accuracy: With ``layers`` in 8 bit.
        drop: Points lost by it.
    """

    layers: tuple[str, ...]
    given_back: tuple[str, ...]
    accuracy: Accuracy
    drop: float


def fit_budget(
    measure: Callable[[Sequence[str]], Accuracy],
    reference: Accuracy,
    ranked: Sequence[str],
    max_drop: float,
    report: Callable[[str], None] = lambda line: None,
) -> Fit:
    """Give layers back until the budget holds.

    Args:
        measure: Returns the accuracy with some layers in 8 bit.
        reference: That of the float32 graph.
        ranked: Layers, the most sensitive first.
        max_drop: Points that pixel AP and image AUROC may lose each.
        report: Called with a line for each attempt.

    Raises:
        ExportError: If it does not hold with a single layer left either; names the best found.
    """
    best: Fit | None = None
    for count in range(len(ranked)):
        kept, given_back = tuple(ranked[count:]), tuple(ranked[:count])
        accuracy = measure(kept)
        fit = Fit(kept, given_back, accuracy, reference.drop(accuracy))
        report(f"{len(kept)} of {len(ranked)} layers in int8: {fit.drop:+.2f} points lost")
        if fit.drop <= max_drop:
            return fit
        if best is None or fit.drop < best.drop:
            best = fit
    assert best is not None  # find_layers returns at least one
    raise ExportError(
        f"int8 loses more than {max_drop} points with any choice of layers. Best found: "
        f"{best.drop:.2f} points with {len(best.layers)} of {len(ranked)} layers. Nothing was "
        "written. Allow more with --max-drop, calibrate on more images, or use fp32."
    )


def measure_accuracy(run: Run, images: Labelled, masks: NDArray[np.bool_]) -> Accuracy:
    """Score labelled images with a graph that gives maps and scores.

    Args:
        run: The graph, giving map and score.
        images: The images.
        masks: bool (N, h, w): their defects at the size of the maps.
    """
    answers = [run(frame[None]) for frame in images.frames]
    maps = np.concatenate([answer[0] for answer in answers])
    scores = np.concatenate([answer[1] for answer in answers])
    return Accuracy(pixel_metrics(maps, masks).ap, image_auroc(scores, images.labels))


def rank_layers(
    proto: onnx.ModelProto,
    layers: Sequence[str],
    ranges: Mapping[str, Range],
    scheme: str,
    frames: NDArray[np.uint8],
    outputs: Sequence[str],
) -> dict[str, float]:
    """Return how far each layer alone in 8 bit moves the maps: layer -> mean difference.

    Args:
        proto: The FP32 graph.
        layers: Layers to try.
        ranges: See ``quantize_layers``.
        scheme: See ``quantize_layers``.
        frames: uint8 (N, H, W, 3), normal and anomalous.
        outputs: Names of map and score.

    Returns:
        The most sensitive first.
    """
    wanted = _maps(proto, outputs, frames)
    moved = {
        layer: float(
            np.abs(
                _maps(quantize_layers(proto, [layer], ranges, scheme), outputs, frames) - wanted
            ).mean()
        )
        for layer in layers
    }
    return dict(sorted(moved.items(), key=lambda item: -item[1]))


def _maps(
    proto: onnx.ModelProto, outputs: Sequence[str], frames: NDArray[np.uint8]
) -> NDArray[np.float32]:
    run = open_session(proto, outputs)
    return np.concatenate([run(frame[None])[0] for frame in frames])
