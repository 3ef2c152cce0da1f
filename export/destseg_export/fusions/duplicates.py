"""Dead and duplicate nodes.

A node whose outputs nobody needs, and the constants that only it read, are taken out. Two nodes
with the same operator, inputs and attributes make the same tensor; the second's readers read the
first's.
"""

from __future__ import annotations

from destseg_export.fusions.graph import Graph, Outcome

RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli")


def drop_duplicates(graph: Graph) -> Outcome:
    """Take out dead nodes and repetitions; outputs of the graph keep their makers."""
    changed = graph.prune()
    seen: dict[tuple[object, ...], list[str]] = {}
    for node in graph.nodes():
        key = (
            node.domain,
            node.op_type,
            tuple(node.input),
            tuple(sorted(a.SerializeToString(deterministic=True) for a in node.attribute)),
        )
        if node.op_type in RANDOM or any(graph.is_output(name) for name in node.output):
            continue
        first = seen.setdefault(key, list(node.output))
        if first != list(node.output):
            for old, new in zip(node.output, first, strict=True):
                graph.redirect(old, new)
            changed.append(node.name)
            graph.remove([node])
    graph.sort()
    return Outcome(tuple(changed))
