"""ONNX Script's optimizer, last: constants folded, what remains unused taken out.

It is no exact rewrite by itself: it takes x + 1e-12 for x, as torch's exporter does, and a pixel of
zeros then becomes 0 / 0. So it works on a copy, and its result is taken only when no arithmetic
went missing.
"""

from __future__ import annotations

import onnx
from onnxscript import optimizer

from destseg_export.fusions.graph import Graph, Outcome, Refusal

ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "ReduceL2", "Conv", "MatMul", "Resize")


def optimize(graph: Graph) -> Outcome:
    """Run the optimizer; the nodes that it took out are the ones changed."""
    proto = graph.proto
    optimized: onnx.ModelProto = optimizer.optimize(
        onnx.ModelProto.FromString(proto.SerializeToString())
    )
    left = {node.name for node in optimized.graph.node}
    gone = [node for node in proto.graph.node if node.name not in left]
    lost = [node for node in gone if node.op_type in ARITHMETIC]
    if lost:
        reason = f"the optimizer drops this {lost[0].op_type}, so its result was not taken"
        return Outcome((), tuple(Refusal(node.name, reason) for node in lost[:1]))
    if gone:
        proto.graph.CopyFrom(optimized.graph)
    return Outcome(tuple(node.name for node in gone))
