"""3x3 convolutions of upsampled planes, their taps applied before the upsampling.

Not in the issue's list, and its largest saving beside the pooled branch: the first convolutions of
the decoder's blocks and of the segmentation network read planes that were upsampled two- or
fourfold. Their taps, as 1x1 convolutions, need a quarter or a sixteenth of the MACs on the small
planes, and are then upsampled and shifted in one go by two matrix products::

    W * (U x V.T) = sum over k, l of (S_k U) (W_kl x) (S_l V).T

See ``below_upsampling``.

Fourfold upsampling saves nine tenths of such a convolution, twofold about half, and the two
products stay in float32 where the convolution may be in 8 bit. So they are two rewrites:
``quantize`` wants the fourfold ones alone.
"""

from __future__ import annotations

from destseg_export.fusions.below_upsampling import move_below
from destseg_export.fusions.graph import Graph, Outcome

FOURFOLD = 16
"""Pixels of the large plane for one of the small: four along each axis."""


def move_kernels(graph: Graph) -> Outcome:
    """Move larger kernels over planes upsampled at least fourfold below the upsampling."""
    return move_below(
        graph, lambda kernel, small, large: kernel > 1 and _growth(small, large) >= FOURFOLD
    )


def move_twofold_kernels(graph: Graph) -> Outcome:
    """Move the remaining ones, where that saves MACs."""
    return move_below(
        graph, lambda kernel, small, large: kernel > 1 and _growth(small, large) < FOURFOLD
    )


def _growth(small: tuple[int, int], large: tuple[int, int]) -> float:
    """Return the pixels of the large plane for each of the small one."""
    return large[0] * large[1] / (small[0] * small[1])
