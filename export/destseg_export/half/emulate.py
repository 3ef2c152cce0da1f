"""What a GPU rounds, emulated: a half graph as float32 operators with every half tensor stored.

ONNX Runtime's CPU provider has few half kernels. It casts a half graph's constants to float32 once
and computes in float32 from end to end, where 300 * 300 stays 90000, so its answers say nothing
about half: they are right for graphs that are wrong on every GPU. Casts that the graph itself holds
are kept, though. ``emulate`` therefore turns each half operator into its float32 one and sends its
result through Cast(half) and Cast(float32): half storage, float32 accumulation, as the tensor cores
of a GPU do. TensorRT fuses operators and so rounds less often; this is the pessimistic side.

A half ReduceL2 becomes square, sum and square root, each stored, because that is what TensorRT's
ONNX parser makes of it, and the square is where half overflows.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from destseg_deploy.errors import ExportError
from destseg_deploy.predictor import Predictor
from destseg_deploy.spec import ModelSpec
from destseg_export.graph.edit import add_node, nodes, open_model, substitute, tidy
from destseg_export.graph.run import GraphRuntime
from destseg_export.half.retype import FLOAT, HALF_TYPES, half_values

Constants = Mapping[str, NDArray[np.float32]]
"""Name of each constant that was rounded to half -> its float32 values."""


def emulate(
    proto: onnx.ModelProto, *, rounded: bool = True, originals: Constants | None = None
) -> onnx.ModelProto:
    """Return a float32 graph that rounds wherever the half graph stores a half tensor.

    Args:
        proto: A graph of ``to_half``, or a broken one; it stays as it is.
        rounded: False to round the weights alone, and see how large the activations are.
        originals: Values for the half constants; their own unless given.
    """
    model = open_model(proto)
    if rounded:
        _split_lengths(model)
    for value in half_values(model):
        node, tensor, kind = value.producer(), value.const_value, value.dtype
        value.dtype = FLOAT
        if tensor is not None:
            values = originals[str(value.name)] if originals else tensor.numpy().astype(np.float32)
            value.const_value = ir.tensor(values, name=value.name)
        if node is not None and node.op_type == "Cast":
            node.attributes["to"] = ir.AttrInt64("to", FLOAT)
        if node is not None and kind is not None and rounded:
            _store(node, value, kind)
    return ir.to_proto(model)


def undo(proto: onnx.ModelProto, originals: Constants) -> onnx.ModelProto:
    """Return the float32 graph that a half graph was before it was rounded.

    It must answer as closely as any float32 graph, so it shows every mistake of the conversion that
    the half graph's own answers hide behind their rounding.

    Args:
        proto: A graph of ``to_half``, or a broken one; it stays as it is.
        originals: Values for the half constants.

    Raises:
        ExportError: If the half constants are not the nearest to the originals, or not the same.
    """
    model = open_model(proto)
    halves = {str(v.name): v for v in half_values(model) if v.const_value is not None}
    if astray := sorted(halves.keys() ^ originals.keys()):
        raise ExportError(
            f"{astray[0]}: {len(halves)} constants of the graph are half, and {len(originals)} "
            "were rounded; this one is among one of them only. Export in fp32, and report this."
        )
    for name, value in halves.items():
        assert value.const_value is not None  # as chosen above
        assert value.dtype is not None
        nearest = originals[name].astype(value.dtype.numpy())
        if not np.array_equal(value.const_value.numpy(), nearest):
            raise ExportError(
                f"{name}: its half values are not the nearest to its float32 values. Export in "
                "fp32, and report this."
            )
    return emulate(proto, rounded=False, originals=originals)


def _split_lengths(model: ir.Model) -> None:
    """Replace each half ReduceL2 by square, sum and root, all of them half."""
    for node in nodes(model, "ReduceL2"):
        if (length := node.outputs[0]).dtype in HALF_TYPES.values():
            name, x, *axes = length.name, *node.inputs
            square = add_node(model, "Mul", [x, x], f"{name}_square")
            total = add_node(model, "ReduceSum", [square, *axes], f"{name}_sum", node.attributes)
            substitute(length, add_node(model, "Sqrt", [total], f"{name}_root"))
    tidy(model)


def _store(node: ir.Node, value: ir.Value, kind: ir.DataType) -> None:
    """Let all readers of a value see what is left of it after it was stored in half."""
    name = value.name
    back = ir.val(name, FLOAT, value.shape)
    value.replace_all_uses_with(back, replace_graph_outputs=True)
    value.name = f"{name}_wide"
    stored = ir.val(f"{name}_stored", kind, value.shape)
    steps = [(value, stored, kind), (stored, back, FLOAT)]
    node.append(
        [ir.node("Cast", [x], {"to": ir.AttrInt64("to", to)}, outputs=[y]) for x, y, to in steps]
    )


def open_graph(
    proto: onnx.ModelProto, spec: ModelSpec, *, emulated: bool = True, threads: int = 0
) -> Predictor:
    """Open a graph in ONNX Runtime, by default as a GPU rounds it.

    Args:
        proto: The graph; it stays as it is.
        spec: Its contract.
        emulated: Whether its half tensors are rounded.
        threads: Threads within an operator; 0 leaves the choice to ONNX Runtime.

    Raises:
        ExportError: If ONNX Runtime refuses the graph.
    """
    graph = emulate(proto) if emulated else proto
    return Predictor(GraphRuntime(graph, spec, threads))
