"""What is asked of an ONNX graph, and how it is changed: a few steps on top of ``onnx_ir``.

``onnx_ir`` keeps for each value its producer, its readers, its type and its shape. A model is read
with ``open_model``, changed in place by a fusion or a conversion, and brought in order with
``tidy``. Files and other libraries get protobuf messages: ``ir.to_proto``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import (
    RemoveUnusedNodesPass,
    ShapeInferencePass,
    TopologicalSortPass,
)

from destseg_deploy.errors import ExportError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Refusal:
    """Why a fusion left a node as it was.

    Attributes:
        node: The node's name.
        reason: What the fusion needs and the node does not have.
    """

    node: str
    reason: str


@dataclass(frozen=True)
class Outcome:
    """What a fusion did.

    Attributes:
        changed: Names of the nodes that were replaced, in the graph's order.
        refused: Nodes that it looked at and left.
    """

    changed: tuple[str, ...] = ()
    refused: tuple[Refusal, ...] = ()


def changed(*gone: ir.Node) -> Outcome:
    """Return the outcome of nodes replaced."""
    return Outcome(tuple(str(node.name) for node in gone))


def refused(node: ir.Node, reason: str) -> Outcome:
    """Return the outcome of a node left as it was."""
    return Outcome((), (Refusal(str(node.name), reason),))


def together(outcomes: Iterable[Outcome]) -> Outcome:
    """Return the outcome of several steps."""
    steps = list(outcomes)
    return Outcome(
        tuple(name for step in steps for name in step.changed),
        tuple(refusal for step in steps for refusal in step.refused),
    )


Fusion = Callable[[ir.Model], Outcome]
"""Changes a model in place. ``tidy`` must follow: it may leave dead nodes and any node order."""


def open_model(proto: onnx.ModelProto) -> ir.Model:
    """Return a model whose values all have the type and shape that ONNX can infer.

    Args:
        proto: The graph. It stays as it is; large weights are shared with it, not copied.
    """
    model = ir.from_proto(proto)
    ShapeInferencePass()(model)
    return model


def tidy(model: ir.Model) -> None:
    """Sort the nodes, take out what no output needs, and infer the shapes of new values."""
    # The removal walks backwards and so needs sorted nodes.
    for step in (TopologicalSortPass(), RemoveUnusedNodesPass(), ShapeInferencePass()):
        step(model)


def nodes(model: ir.Model, *operators: str) -> list[ir.Node]:
    """Return the nodes with one of the operators, in order; the list stays when nodes are added."""
    return [node for node in model.graph if node.op_type in operators]


def producer(value: ir.Value | None, operator: str) -> ir.Node | None:
    """Return the node that makes a value if it has the operator, else None."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == operator else None


def only_reader(value: ir.Value, operator: str) -> ir.Node | None:
    """Return a value's reader if it is the only one, has the operator, and no output is the value.

    Only then may a fusion change the value: nobody else sees it.
    """
    readers = value.consumers()
    if len(readers) != 1 or readers[0].op_type != operator or value.is_graph_output():
        return None
    return readers[0]


def feeds(value: ir.Value, operator: str) -> bool:
    """Return whether a node with the operator reads a value, directly or through casts."""
    return any(
        node.op_type == operator or (node.op_type == "Cast" and feeds(node.outputs[0], operator))
        for node in value.consumers()
    )


def required(node: ir.Node, index: int) -> ir.Value:
    """Return an input that a node must have.

    Raises:
        ExportError: If the node lacks it, so that the graph is no valid one.
    """
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise ExportError(f"{node.name}: {node.op_type} without input {index}. Export it again.")
    return value


def floats(value: ir.Value | None) -> Floats | None:
    """Return a constant of floats in float64, or None for anything else."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    if tensor is None or not tensor.dtype.is_floating_point():
        return None
    return tensor.numpy().astype(np.float64)


def plane(value: ir.Value | None) -> tuple[int, int, int] | None:
    """Return channels, height and width of (N, C, H, W), or None where one is unknown."""
    shape = None if value is None else value.shape
    if shape is None or len(shape) != 4:
        return None
    channels, height, width = shape[1:]
    if isinstance(channels, int) and isinstance(height, int) and isinstance(width, int):
        return channels, height, width
    return None


def add_constant(model: ir.Model, name: str, value: NDArray[np.generic] | Floats) -> ir.Value:
    """Add a constant, float64 as float32; return the one that the graph has if they are equal.

    With tiles, the network may stand several times in a graph, each time with the same weights.

    Raises:
        ExportError: If the graph has another constant of that name, as after the same fusion.
    """
    if value.dtype == np.float64:
        value = value.astype(np.float32)
    if (known := model.graph.initializers.get(name)) is not None:
        if not _holds(known, value):
            raise ExportError(f"{name}: this graph was fused before. Pass the plain export.")
        return known
    tensor = ir.tensor(np.ascontiguousarray(value), name=name)
    constant = ir.val(name, const_value=tensor)
    model.graph.register_initializer(constant)
    return constant


def _holds(constant: ir.Value, value: NDArray[np.generic]) -> bool:
    tensor = ir.convenience.get_const_tensor(constant)
    return tensor is not None and np.array_equal(tensor.numpy(), value)


def add_node(
    model: ir.Model,
    operator: str,
    inputs: Sequence[ir.Value | None],
    output: str,
    attributes: Mapping[str, ir.Attr | int | Sequence[int]] | None = None,
) -> ir.Value:
    """Add a node at the end of the graph, named like its only output; return that output."""
    node = ir.node(operator, inputs, attributes, outputs=[ir.val(output)], name=output)
    model.graph.append(node)
    return node.outputs[0]


def substitute(old: ir.Value, new: ir.Value) -> None:
    """Let all readers of a value, and the graph's outputs, read a new one, under the old name.

    The node that made the old value is dead then; ``tidy`` takes it out.
    """
    node = new.producer()
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    new.name, new.type, new.shape = old.name, old.type, old.shape
    if node is not None and len(node.outputs) == 1:
        node.name = new.name
