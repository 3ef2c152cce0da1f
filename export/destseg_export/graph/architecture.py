"""Whether the weights of one graph fit into the engine of another.

TensorRT replaces weights by name. All categories are exported from one architecture by one program,
which gives equal nodes and names. The hash and the comparison here check that on the files, without
a GPU.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import onnx
from onnx import TensorProto

WEIGHTS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
"""Types of constants that are weights; others, such as shapes, are part of the structure."""


def weight_shapes(proto: onnx.ModelProto) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the weights of a graph: name -> type and shape."""
    return {
        tensor.name: (TensorProto.DataType.Name(tensor.data_type), tuple(tensor.dims))
        for tensor in proto.graph.initializer
        if tensor.data_type in WEIGHTS
    }


def architecture_hash(proto: onnx.ModelProto) -> str:
    """Return the SHA-256 over a graph without the values of its weights and without metadata."""
    graph = proto.graph
    parts: list[Any] = [sorted((entry.domain, entry.version) for entry in proto.opset_import)]
    for node in graph.node:
        attributes = sorted(_plain(attribute) for attribute in node.attribute)
        parts.append([node.domain, node.op_type, *node.input, "->", *node.output, attributes])
    parts += [_plain(value) for value in (*graph.input, *graph.output)]
    parts.append(sorted(weight_shapes(proto).items()))
    constants = (tensor for tensor in graph.initializer if tensor.data_type not in WEIGHTS)
    parts.append(sorted((tensor.name, _plain(tensor)) for tensor in constants))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def weight_differences(ours: onnx.ModelProto, theirs: onnx.ModelProto) -> list[str]:
    """Say how the weights of two graphs differ in name, type or shape; [] if they match."""
    a, b = weight_shapes(ours), weight_shapes(theirs)
    missing = [f"{name} is missing" for name in sorted(set(a) - set(b))]
    unknown = [f"{name} is unknown" for name in sorted(set(b) - set(a))]
    other = [f"{n} is {_words(b[n])}, not {_words(a[n])}" for n in a if n in b and a[n] != b[n]]
    return missing + unknown + other


def unmatched_weights(network: Any, proto: onnx.ModelProto) -> list[str]:
    """Return the weights of a graph that a network parsed from it does not know by their name.

    Args:
        network: An ``INetworkDefinition``; its weights are marked refittable on the way.
        proto: The graph.
    """
    return [name for name in weight_shapes(proto) if not network.mark_weights_refittable(name)]


def _words(weight: tuple[str, tuple[int, ...]]) -> str:
    return f"{weight[0].lower()} {'x'.join(map(str, weight[1]))}"


def _plain(message: Any) -> str:
    """Return a protobuf message in a form that is equal for equal content."""
    return str(message.SerializeToString(deterministic=True).hex())
