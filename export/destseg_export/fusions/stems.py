"""Teacher and student stems in one convolution.

Convolutions of the same input with the same geometry are one with their weights stacked, and ReLU
and max-pooling act on each channel alone::

    [pool(relu(w1 * x + b1)), pool(relu(w2 * x + b2))] = split(pool(relu([w1; w2] * x + [b1; b2])))

The input is then read, and laid out for the matrix product, once. The MACs stay the same.
"""

from __future__ import annotations

import numpy as np
import onnx

from destseg_export.fusions.graph import Graph, Outcome, Refusal


def join_stems(graph: Graph) -> Outcome:
    """Join each pair of convolution, ReLU and max-pooling that reads the same tensor."""
    changed: list[str] = []
    refused: list[Refusal] = []
    sources = dict.fromkeys(node.input[0] for node in graph.nodes("Conv"))
    for source in sources:
        stems = [stem for node in graph.readers(source) if (stem := _stem(graph, node))]
        if len(stems) < 2:
            continue
        if reason := _why_not(graph, stems):
            refused.append(Refusal(stems[0][0].name, reason))
            continue
        changed += [node.name for stem in stems for node in stem]
        _join(graph, stems)
    graph.sort()
    graph.prune()
    return Outcome(tuple(changed), tuple(refused))


def _stem(graph: Graph, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Return convolution, ReLU and max-pooling, or nothing when one is missing."""
    if node.op_type != "Conv":
        return []
    relu = graph.reader(node.output[0], "Relu")
    pool = graph.reader(relu.output[0], "MaxPool") if relu is not None else None
    return [node, relu, pool] if relu is not None and pool is not None else []


def _why_not(graph: Graph, stems: list[list[onnx.NodeProto]]) -> str | None:
    first = stems[0]
    for stem in stems:
        if any(list(a.attribute) != list(b.attribute) for a, b in zip(first, stem, strict=True)):
            return f"{stem[0].name} has another kernel, stride or padding"
        if len(stem[0].input) < 3 or any(graph.floats(n) is None for n in stem[0].input[1:]):
            return f"{stem[0].name} has no constant weights and bias"
        if len(stem[2].output) > 1:
            return f"{stem[2].name} also returns indices"
    return None


def _join(graph: Graph, stems: list[list[onnx.NodeProto]]) -> None:
    first = stems[0]
    parts = [[graph.floats(n) for n in stem[0].input[1:]] for stem in stems]
    stacked = [np.concatenate([p[i] for p in parts if p[i] is not None]) for i in range(2)]
    name = first[0].output[0]
    weight = graph.add_constant(f"{first[0].input[1]}_stems", stacked[0])
    bias = graph.add_constant(f"{first[0].input[2]}_stems", stacked[1])
    tensor = first[0].input[0]
    for node in first:
        inputs = [tensor, weight, bias] if node.op_type == "Conv" else [tensor]
        tensor = graph.add_node(node.op_type, inputs, f"{node.output[0]}_stems")
        graph.graph.node[-1].attribute.extend(node.attribute)
    sizes = np.array([len(p[0]) for p in parts if p[0] is not None], np.int64)
    outputs = [stem[2].output[0] for stem in stems]
    graph.graph.node.append(
        onnx.helper.make_node(
            "Split",
            [tensor, graph.add_constant(f"{name}_channels", sizes)],
            outputs,
            name=f"{name}_split",
            axis=1,
        )
    )
    graph.remove(node for stem in stems for node in stem)
