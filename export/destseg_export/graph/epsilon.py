"""The epsilon of unit-length features, put back where the exporter dropped it.

Features are trained as x / (|x| + 1e-12). ONNX Script's optimizer takes 1e-12 for zero and removes
the sum. A pixel whose features are all zero, which a ReLU makes easily, is then 0 / 0 = NaN where
PyTorch gives 0, and the convolutions behind spread it over the map.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from destseg_export.graph.edit import add_constant, nodes, producer, required

EPSILON = 1e-12
"""Added to a feature vector's length by ``models.destseg.normalize``."""


def keep_epsilon(model: ir.Model) -> list[str]:
    """Put back the 1e-12 that the exporter dropped from the lengths of feature vectors, in place.

    Args:
        model: A graph; lengths are its ReduceL2. Those whose epsilon is there stay as they are.

    Returns:
        The names of the divisions that got it back.
    """
    bare = [node for node in nodes(model, "Div") if producer(node.inputs[1], "ReduceL2")]
    if not bare:
        return []
    epsilon = add_constant(model, "norm_epsilon", np.array(EPSILON, np.float32))
    for node in bare:
        length = required(node, 1)
        guarded = ir.val(f"{length.name}_guarded", type=length.type, shape=length.shape)
        add = ir.node("Add", [length, epsilon], outputs=[guarded], name=f"{node.name}_epsilon")
        node.prepend(add)
        node.replace_input_with(1, guarded)
    return [str(node.name) for node in bare]
