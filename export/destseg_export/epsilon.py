"""The epsilon of unit-length features, put back where the exporter dropped it.

Features are trained as x / (|x| + 1e-12). ONNX Script's optimizer takes 1e-12 for zero and removes
the sum. A pixel whose features are all zero, which a ReLU makes easily, is then 0 / 0 = NaN where
PyTorch gives 0, and the convolutions behind spread it over the map.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

EPSILON = 1e-12
"""Added to a feature vector's length by ``models.destseg.normalize``."""


def keep_epsilon(proto: onnx.ModelProto) -> list[str]:
    """Put back the 1e-12 that the exporter dropped from the lengths of feature vectors, in place.

    Args:
        proto: A graph; lengths are its ReduceL2. Those whose epsilon is there stay as they are.

    Returns:
        The names of the divisions that got it back.
    """
    graph = proto.graph
    lengths = {node.output[0] for node in graph.node if node.op_type == "ReduceL2"}
    changed = []
    for node in list(graph.node):
        if node.op_type != "Div" or node.input[1] not in lengths:
            continue
        guarded = f"{node.input[1]}_guarded"
        add = helper.make_node(
            "Add", [node.input[1], "norm_epsilon"], [guarded], f"{node.name}_epsilon"
        )
        graph.node.insert(list(graph.node).index(node), add)
        node.input[1] = guarded
        changed.append(node.name)
    if changed:
        graph.initializer.append(
            numpy_helper.from_array(np.array(EPSILON, np.float32), "norm_epsilon")
        )
    return changed
