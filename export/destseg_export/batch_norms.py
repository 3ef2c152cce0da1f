"""BatchNorm folded into the convolution before it, in place.

y = gamma (w * x + b - mean) / sqrt(variance + epsilon) + beta becomes one convolution, w' = s w and
b' = s (b - mean) + beta with s = gamma / sqrt(variance + epsilon). It is folded in float64 and
rounded to float32 once. Half comes after that: a half BatchNorm beside a half convolution would
round twice, and in fp16 a small variance is 0.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from destseg_deploy.errors import ExportError


def fold_batch_norms(proto: onnx.ModelProto) -> list[str]:
    """Fold each BatchNorm behind a convolution into it, in place.

    torch 2.13's exporter folds all of them itself; others leave them.

    Args:
        proto: An FP32 graph in eval form. Weights keep their names; a convolution without bias
            gets one named ``<weight>_bias``, as the exporter names it.

    Returns:
        The names of the BatchNorms folded.

    Raises:
        ExportError: If a BatchNorm does not follow a convolution that it alone reads.
    """
    graph = proto.graph
    norms = [node for node in graph.node if node.op_type == "BatchNormalization"]
    for norm in norms:
        _fold(graph, norm)
        graph.node.remove(norm)
    return [norm.name for norm in norms]


def _fold(graph: onnx.GraphProto, norm: onnx.NodeProto) -> None:
    before = [node for node in graph.node if norm.input[0] in node.output]
    readers = [node for node in graph.node if norm.input[0] in node.input]
    if len(before) != 1 or before[0].op_type != "Conv" or len(readers) != 1:
        raise ExportError(
            f"{norm.name}: BatchNorm that follows no convolution of its own, so it cannot be "
            "folded. Export in fp32, or use the versions of constraints.txt."
        )
    convolution = before[0]
    constants = {tensor.name: tensor for tensor in graph.initializer}
    gamma, beta, mean, variance = (_value(constants[name]) for name in norm.input[1:5])
    epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
    scale = gamma / np.sqrt(variance + epsilon)
    weight = _value(constants[convolution.input[1]])
    bias = _value(constants[convolution.input[2]]) if len(convolution.input) > 2 else 0.0
    _set(graph, convolution.input[1], weight * scale[:, None, None, None])
    if len(convolution.input) < 3:
        convolution.input.append(f"{convolution.input[1]}_bias")
    _set(graph, convolution.input[2], scale * (bias - mean) + beta)
    convolution.output[0] = norm.output[0]


def _value(tensor: onnx.TensorProto) -> NDArray[np.float64]:
    return numpy_helper.to_array(tensor).astype(np.float64)


def _set(graph: onnx.GraphProto, name: str, value: NDArray[np.float64]) -> None:
    """Give a constant its value as float32, replacing what it was."""
    made = numpy_helper.from_array(np.asarray(value, np.float32), name)
    for tensor in graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(made)
            return
    graph.initializer.append(made)
