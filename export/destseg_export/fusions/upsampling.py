"""Constant upsampling as matrix products.

Bilinear interpolation to a constant size is linear and separable::

    resize(x) = rows @ x @ columns.T

with the two matrices of ``interpolation``. A product over an axis of h samples costs h MACs per
value where interpolation costs two, but runs as a matrix product. It is applied up to ``LARGEST``
samples.
"""

from __future__ import annotations

from destseg_export.fusions.graph import Graph, Outcome, Refusal
from destseg_export.fusions.interpolation import linear_matrix, why_not_linear

LARGEST = 32
"""Samples of an axis; beyond, the product costs more than it saves."""


def multiply_to_upsample(graph: Graph) -> Outcome:
    """Replace each linear resize of small planes by two matrix products."""
    changed: list[str] = []
    refused: list[Refusal] = []
    for node in graph.nodes("Resize"):
        before, after = graph.plane(node.input[0]), graph.plane(node.output[0])
        reason = why_not_linear(graph, node)
        if reason or before is None or after is None:
            refused.append(Refusal(node.name, reason or "its size is not known"))
            continue
        if max(before[1:]) > LARGEST:
            refused.append(Refusal(node.name, f"{before[1:]} samples, expected up to {LARGEST}"))
            continue
        graph.remove([node])
        multiply(graph, node.input[0], node.output[0], before[1:], after[1:])
        changed.append(node.name)
    graph.sort()
    graph.prune()
    return Outcome(tuple(changed), tuple(refused))


def multiply(
    graph: Graph, source: str, output: str, before: tuple[int, ...], after: tuple[int, ...]
) -> None:
    """Add the two products that resize ``source`` to ``output``."""
    rows = graph.add_constant(f"{output}_rows", linear_matrix(before[0], after[0]))
    columns = graph.add_constant(f"{output}_columns", linear_matrix(before[1], after[1]).T)
    wide = graph.add_node("MatMul", [source, columns], f"{output}_wide")
    graph.add_node("MatMul", [rows, wide], output)
