"""An ONNX graph that can be asked who makes and who reads a tensor, and edited."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from destseg_deploy.errors import ExportError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Refusal:
    """Why a rewrite left a node as it was.

    Attributes:
        node: The node's name.
        reason: What it lacks.
    """

    node: str
    reason: str


@dataclass(frozen=True)
class Outcome:
    """What a rewrite did.

    Attributes:
        changed: Names of the nodes that were replaced, in the graph's order.
        refused: Nodes that it looked at and left.
    """

    changed: tuple[str, ...] = ()
    refused: tuple[Refusal, ...] = ()


class Graph:
    """A model being rewritten, in place.

    Shapes are those of the tensors as they were when the object was made; a tensor made since has
    none.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        """Take a model and infer the shapes of its tensors.

        Raises:
            ExportError: If the shapes contradict each other.
        """
        self.proto = proto
        self.graph = proto.graph
        inferred = infer_shapes(proto)
        values = [*inferred.value_info, *inferred.input, *inferred.output]
        self._shapes = {value.name: _dimensions(value) for value in values}
        self._shapes |= {tensor.name: list(tensor.dims) for tensor in self.graph.initializer}

    def nodes(self, *operators: str) -> list[onnx.NodeProto]:
        """Return the nodes with one of the operators, or all; the list does not change."""
        return [node for node in self.graph.node if not operators or node.op_type in operators]

    def maker(self, tensor: str, operator: str = "") -> onnx.NodeProto | None:
        """Return the node that makes a tensor, or None where none, or another operator, does."""
        for node in self.graph.node:
            if tensor in node.output:
                return node if operator in ("", node.op_type) else None
        return None

    def readers(self, tensor: str) -> list[onnx.NodeProto]:
        """Return the nodes that read a tensor."""
        return [node for node in self.graph.node if tensor in node.input]

    def reader(self, tensor: str, operator: str) -> onnx.NodeProto | None:
        """Return the only reader of a tensor if it has the operator and nobody else wants it."""
        readers = self.readers(tensor)
        if len(readers) != 1 or readers[0].op_type != operator or self.is_output(tensor):
            return None
        return readers[0]

    def is_output(self, tensor: str) -> bool:
        """Return whether a tensor leaves the graph."""
        return any(value.name == tensor for value in self.graph.output)

    def constant(self, tensor: str) -> NDArray[np.generic] | None:
        """Return a constant's value, or None for a computed tensor."""
        for held in self.graph.initializer:
            if held.name == tensor:
                return numpy_helper.to_array(held)
        made = self.maker(tensor, "Constant")
        if made is None:
            return None
        return numpy_helper.to_array(helper.get_node_attr_value(made, "value"))

    def floats(self, tensor: str) -> Floats | None:
        """Return a constant of floats in float64, or None for anything else."""
        value = self.constant(tensor)
        if value is None or not np.issubdtype(value.dtype, np.floating):
            return None
        return value.astype(np.float64)

    def plane(self, tensor: str) -> tuple[int, int, int] | None:
        """Return channels, height and width of (N, C, H, W), or None where one is unknown."""
        shape = self._shapes.get(tensor, [])
        if len(shape) != 4 or not all(isinstance(size, int) for size in shape[1:]):
            return None
        channels, height, width = (int(size) for size in shape[1:])
        return channels, height, width

    def shape(self, tensor: str) -> list[int | str] | None:
        """Return a tensor's shape, with names for what is known at run time only."""
        return self._shapes.get(tensor)

    def add_constant(self, name: str, value: NDArray[np.generic] | Floats) -> str:
        """Add a constant, float64 as float32; return its name."""
        if value.dtype == np.float64:
            value = value.astype(np.float32)
        if any(held.name == name for held in self.graph.initializer):
            raise ExportError(f"{name}: this graph was rewritten before. Pass the plain export.")
        self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def add_node(
        self,
        operator: str,
        inputs: Sequence[str],
        output: str,
        **attributes: Any,
    ) -> str:
        """Add a node named like its output, with ``sort`` to be called at the end; return that."""
        self.graph.node.append(
            helper.make_node(operator, list(inputs), [output], name=output, **attributes)
        )
        return output

    def remove(self, nodes: Iterable[onnx.NodeProto]) -> None:
        """Take nodes out."""
        for node in nodes:
            self.graph.node.remove(node)

    def redirect(self, tensor: str, to: str) -> None:
        """Let everyone who reads a tensor read another."""
        for node in self.graph.node:
            for i, name in enumerate(node.input):
                if name == tensor:
                    node.input[i] = to

    def rename(self, tensor: str, to: str) -> None:
        """Give a tensor that a node makes another name."""
        self.redirect(tensor, to)
        for node in self.graph.node:
            for i, name in enumerate(node.output):
                if name == tensor:
                    node.output[i] = to

    def sort(self) -> None:
        """Bring nodes into an order in which each reads what was made before."""
        waiting = [onnx.NodeProto.FromString(n.SerializeToString()) for n in self.graph.node]
        known = {value.name for value in self.graph.input}
        known |= {tensor.name for tensor in self.graph.initializer} | {""}
        ordered: list[onnx.NodeProto] = []
        while waiting:
            ready = next((i for i, n in enumerate(waiting) if known.issuperset(n.input)), None)
            if ready is None:
                raise ExportError(f"{waiting[0].name}: reads a tensor that nothing makes.")
            ordered.append(waiting.pop(ready))
            known.update(ordered[-1].output)
        del self.graph.node[:]
        self.graph.node.extend(ordered)

    def prune(self) -> list[str]:
        """Take out nodes and constants that no output needs; return the nodes' names."""
        needed = {value.name for value in self.graph.output}
        dead = []
        for node in reversed(self.graph.node):
            if needed.isdisjoint(node.output):
                dead.append(node)
            else:
                needed.update(node.input)
        self.remove(dead)
        for held in [t for t in self.graph.initializer if t.name not in needed]:
            self.graph.initializer.remove(held)
        for value in [v for v in self.graph.value_info if v.name not in needed]:
            self.graph.value_info.remove(value)
        return [node.name for node in reversed(dead)]


Rewrite = Callable[[Graph], Outcome]


def attribute(node: onnx.NodeProto, name: str, default: object) -> object:
    """Return a node's attribute, text as str, or the operator's default."""
    for held in node.attribute:
        if held.name == name:
            value = helper.get_attribute_value(held)
            return value.decode() if isinstance(value, bytes) else value
    return default


SMALL = 4096
"""Bytes of a constant that shape inference is given; shapes and scales have fewer."""


def _without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose large constants are inputs: copying weights is what takes the time."""
    graph = proto.graph
    light = onnx.ModelProto(ir_version=proto.ir_version)
    light.opset_import.extend(proto.opset_import)
    light.graph.name = graph.name
    light.graph.node.extend(graph.node)
    light.graph.input.extend(graph.input)
    light.graph.output.extend(graph.output)
    for tensor in graph.initializer:
        if len(tensor.raw_data) <= SMALL:
            light.graph.initializer.append(tensor)
            continue
        light.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        )
    return light


def infer_shapes(proto: onnx.ModelProto) -> onnx.GraphProto:
    """Return a graph whose ``value_info`` holds the shape of every tensor; without large weights.

    Raises:
        ExportError: If the shapes contradict each other.
    """
    try:
        light = _without_weights(proto)
        inferred = onnx.shape_inference.infer_shapes(light, strict_mode=True, data_prop=True)
    except Exception as error:  # its errors share no base class
        reason = " ".join(str(error).split())[:200]
        raise ExportError(f"graph: its shapes do not fit ({reason}). Export it again.") from error
    return inferred.graph


def _dimensions(value: onnx.ValueInfoProto) -> list[int | str]:
    dims = value.type.tensor_type.shape.dim
    return [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in dims]
