"""Resizes with constant scales, and none where nothing is resized.

``Resize`` to a size that was put together at run time from a tensor's shape and two constants is
one with constant scales, as long as target / source is held exactly by float32: both then read the
same places. A linear resize to the size at hand reads each pixel at itself, with weight 1::

    (i + 0.5) * 1 - 0.5 = i
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from destseg_export.fusions.graph import Graph, Outcome, Refusal
from destseg_export.fusions.interpolation import why_not_linear


def fix_resizes(graph: Graph) -> Outcome:
    """Take out resizes to the same size; give the others constant scales."""
    changed: list[str] = []
    refused: list[Refusal] = []
    for node in graph.nodes("Resize"):
        before, after = graph.plane(node.input[0]), graph.plane(node.output[0])
        reason = why_not_linear(graph, node)
        if reason or before is None or after is None:
            refused.append(Refusal(node.name, reason or "its size is not known"))
        elif before == after and not graph.is_output(node.output[0]):
            graph.redirect(node.output[0], node.input[0])
            graph.remove([node])
            changed.append(node.name)
        elif len(node.input) > 3 and node.input[3]:
            scales = exact_scales(before[1:], after[1:])
            if scales is None:
                refused.append(
                    Refusal(node.name, f"{after[1:]} / {before[1:]} is not exact in float32")
                )
                continue
            name = graph.add_constant(f"{node.output[0]}_scales", scales)
            del node.input[2:]
            node.input.append(name)
            changed.append(node.name)
    graph.sort()
    graph.prune()
    return Outcome(tuple(changed), tuple(refused))


def exact_scales(before: tuple[int, ...], after: tuple[int, ...]) -> np.ndarray | None:
    """Return float32 scales of (N, C, H, W), or None when float32 does not hold one of them."""
    scales = np.array([1, 1, *(b / a for a, b in zip(before, after, strict=True))], np.float32)
    held = [Fraction(float(scale)) for scale in scales[2:]]
    wanted = [Fraction(b, a) for a, b in zip(before, after, strict=True)]
    return scales if held == wanted else None
