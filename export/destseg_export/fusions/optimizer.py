"""ONNX Script's optimizer, last: constants folded, what remains unused taken out.

Not all that it does is exact: it takes x + 1e-12 for x, as torch's exporter does, and a pixel of
zeros then becomes 0 / 0. So it works on a copy, and its result is taken only when no arithmetic
went missing.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import optimizer

from destseg_export.graph.edit import Outcome, changed, refused

ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "ReduceL2", "Conv", "MatMul", "Resize")


def optimize(model: ir.Model) -> Outcome:
    """Run the optimizer; the nodes that it took out are the ones changed."""
    trial = model.clone()
    optimizer.optimize(trial)
    left = {node.name for node in trial.graph}
    gone = [node for node in model.graph if node.name not in left]
    for node in gone:
        if node.op_type in ARITHMETIC:
            reason = f"the optimizer drops this {node.op_type}, so its result was not taken"
            return refused(node, reason)
    if gone:
        model.graph = trial.graph
    return changed(*gone)
