"""Dead and duplicate nodes.

A node whose outputs nobody needs is taken out. Two nodes with the same operator, inputs and
attributes make the same value::

    f(x), f(x) = y, y        with y = f(x)
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, RemoveUnusedNodesPass

from destseg_export.graph.edit import Outcome


def drop_duplicates(model: ir.Model) -> Outcome:
    """Take out dead nodes and repetitions; the graph's outputs keep their names."""
    before = [node.name for node in model.graph]
    RemoveUnusedNodesPass()(model)
    CommonSubexpressionEliminationPass()(model)
    left = {node.name for node in model.graph}
    return Outcome(tuple(str(name) for name in before if name not in left))
