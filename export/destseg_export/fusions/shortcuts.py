"""1x1 convolutions before the bilinear upsampling instead of behind it.

A 1x1 convolution mixes channels, upsampling mixes pixels, so they commute; a bias passes, because
the weights of an interpolation sum to 1::

    W up(x) + b = up(W x + b)

The shortcuts of the decoder's blocks and of the segmentation network's first block then work on a
quarter or a sixteenth of the pixels. See ``below_upsampling``.
"""

from __future__ import annotations

from destseg_export.fusions.below_upsampling import move_below
from destseg_export.fusions.graph import Graph, Outcome


def move_shortcuts(graph: Graph) -> Outcome:
    """Move each 1x1 convolution of upsampled planes below the upsampling."""
    return move_below(graph, lambda kernel, small, large: kernel == 1)
