"""The accuracy budget of INT8: which layers may stay in 8 bit.

Layers are ranked by their harm: how far each alone moves the maps, divided by the MACs that it
does, since a small layer saves little. The most harmful ones stay in float32 in any case, as far as
they do a fiftieth of the arithmetic. All others are quantised first. While pixel AP or image
AUROC may drop by more than allowed, or an answer moves too far, the most harmful ones are given
back to float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from destseg_deploy.errors import ExportError
from destseg_export.graph.run import open_session

CHOSEN_WITHIN = 0.8
"""Share of each limit that the layers are chosen within: the images that judge are others, and may
lose more than those that chose."""

SPARED = 0.02
"""Share of the layers' MACs that stays in float32 in any case. Drawn anomalies are easier to find
than real defects, so that what these layers lose may not show on them."""


@dataclass(frozen=True)
class Cost:
    """What some layers in 8 bit cost.

    Attributes:
        lost: Points that the worse of pixel AP and image AUROC loses, with the error of the
            measurement added.
        moved: How far the answer that moves most does, divided by the limit.
    """

    lost: float
    moved: float

    def within(self, max_drop: float) -> bool:
        """Return whether layers with this cost may be chosen; NaN may not."""
        return self.lost <= CHOSEN_WITHIN * max_drop and self.moved <= CHOSEN_WITHIN


@dataclass(frozen=True)
class Fit:
    """What the budget left.

    Attributes:
        layers: Convolutions in 8 bit.
        given_back: Those returned to float32, the most harmful first.
        cost: Of ``layers`` in 8 bit.
    """

    layers: tuple[str, ...]
    given_back: tuple[str, ...]
    cost: Cost


def fit_budget(
    measure: Callable[[Sequence[str]], Cost],
    ranked: Sequence[str],
    max_drop: float,
    report: Callable[[str], None] = lambda line: None,
) -> Fit:
    """Give layers back until the budget holds, and no more than that.

    An attempt costs a pass over the labelled images, so the number given back is found by doubling
    it, 0, 1, 2, 4, ..., and then halving the gap to the last attempt that failed. What is returned
    was measured. A smaller number that was not tried might do as well, since the loss does not
    always grow with each layer.

    Args:
        measure: Returns what some layers in 8 bit cost.
        ranked: Layers, the first to give back first.
        max_drop: Points that pixel AP and image AUROC may lose each; see ``CHOSEN_WITHIN``.
        report: Called with a line for each attempt.

    Raises:
        ExportError: If it does not hold even with a single layer left; names the best found.
    """
    tried: list[Fit] = []

    def attempt(count: int) -> Fit:
        kept, given_back = tuple(ranked[count:]), tuple(ranked[:count])
        fit = Fit(kept, given_back, measure(kept))
        report(
            f"{len(kept)} of {len(ranked)} layers in int8: up to {fit.cost.lost:.2f} points "
            f"lost, answers move by {fit.cost.moved:.0%} of the limit"
        )
        tried.append(fit)
        return fit

    failed = -1
    for count in doubling(len(ranked)):
        fit = attempt(count)
        if fit.cost.within(max_drop):
            return _fewer(attempt, fit, failed, max_drop)
        failed = count
    best = min(tried, key=lambda fit: (max(fit.cost.moved, CHOSEN_WITHIN), fit.cost.lost))
    raise ExportError(
        f"int8 may lose more than {CHOSEN_WITHIN * max_drop:g} points ({CHOSEN_WITHIN:.0%} of "
        "those allowed), or moves answers too far, with any choice of layers. Best found: "
        f"{best.cost.lost:.2f} points and {best.cost.moved:.0%} of the limit with "
        f"{len(best.layers)} of {len(ranked)} layers. Nothing was written. Allow more with "
        "--max-drop, calibrate on more images, or use fp32."
    )


def doubling(below: int) -> list[int]:
    """Return 0, 1, 2, 4, ... and, at the end, the largest number below ``below``."""
    powers = (1 << bit for bit in range(below.bit_length()))
    return sorted({0, below - 1, *(count for count in powers if count < below)})


def _fewer(attempt: Callable[[int], Fit], fit: Fit, failed: int, max_drop: float) -> Fit:
    """Return a fit that gives fewer layers back, down to one more than an attempt that failed."""
    while len(fit.given_back) - failed > 1:
        tried = attempt((len(fit.given_back) + failed) // 2)
        if tried.cost.within(max_drop):
            fit = tried
        else:
            failed = len(tried.given_back)
    return fit


def spared(ranked: Sequence[str], macs: Mapping[str, int], share: float = SPARED) -> int:
    """Return how many of the first layers stay in float32 in any case; at least one is left.

    Args:
        ranked: Layers, the most harmful first.
        macs: Layer -> the multiply-accumulates that it does for an image.
        share: Of all their multiply-accumulates, at most.
    """
    shares = np.cumsum([macs[layer] for layer in ranked]) / sum(macs[layer] for layer in ranked)
    return int((shares <= share).sum())


def rank_layers(
    proto: onnx.ModelProto,
    layers: Sequence[str],
    quantized: Callable[[Sequence[str]], onnx.ModelProto],
    frames: NDArray[np.uint8],
    outputs: Sequence[str],
    report: Callable[[int, int, str], None] = lambda done, total, layer: None,
) -> dict[str, float]:
    """Return how far each layer alone in 8 bit moves the maps: layer -> mean difference.

    Args:
        proto: The FP32 graph.
        layers: Layers to try.
        quantized: Returns the graph with some layers in 8 bit.
        frames: uint8 (N, H, W, 3), normal and anomalous.
        outputs: Names of map and score.
        report: Called with the layers done, all of them, and the layer.

    Returns:
        The most sensitive first.
    """
    wanted = _maps(proto, outputs, frames)
    moved: dict[str, float] = {}
    for done, layer in enumerate(layers, 1):
        moved[layer] = float(np.abs(_maps(quantized([layer]), outputs, frames) - wanted).mean())
        report(done, len(layers), layer)
    return dict(sorted(moved.items(), key=lambda item: -item[1]))


def by_harm(moved: Mapping[str, float], macs: Mapping[str, int]) -> list[str]:
    """Return layers, the most harmful first: the one that moves the maps most for each MAC.

    Args:
        moved: Layer -> how far it alone moves the maps.
        macs: Layer -> the multiply-accumulates that it does for an image.
    """
    return sorted(moved, key=lambda layer: -moved[layer] / macs[layer])


def _maps(
    proto: onnx.ModelProto, outputs: Sequence[str], frames: NDArray[np.uint8]
) -> NDArray[np.float32]:
    run = open_session(proto, outputs)
    return np.concatenate([run(frame[None])[0] for frame in frames])
