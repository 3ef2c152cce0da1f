"""Mixed precision in any graph: each node gets a type, and casts stand at the borders.

Nothing here depends on DeSTSeg; ``convert`` decides which node gets which type.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

FLOAT = ir.DataType.FLOAT
HALF_TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
"""Precision -> its ONNX type."""

_SUFFIX = {FLOAT: "fp32", **{kind: name for name, kind in HALF_TYPES.items()}}


def round_to_half(value: NDArray[np.float32], precision: str) -> NDArray[np.generic]:
    """Round to the nearest half value, ties to even; infinity beyond the range.

    Args:
        value: Any shape.
        precision: ``fp16`` or ``bf16``.

    Returns:
        The values in the half type.
    """
    with np.errstate(over="ignore"):
        return value.astype(HALF_TYPES[precision].numpy())


def half_values(model: ir.Model) -> list[ir.Value]:
    """Return the values of a graph that are half, constants included; all types must be known."""
    computed = (output for node in model.graph for output in node.outputs)
    values = (*model.graph.initializers.values(), *computed)
    return [value for value in values if value.dtype in HALF_TYPES.values()]


class Retyping:
    """One walk over a graph that gives each node its type; afterwards, what was made.

    Attributes:
        casts: Casts inserted.
        rounded: Name of a constant that became half -> its values before that.
    """

    def __init__(
        self, model: ir.Model, precision: str, wanted: Sequence[ir.DataType | None]
    ) -> None:
        """Change a graph in place.

        Args:
            model: Sorted topologically, all types known; all its floats are float32.
            precision: ``fp16`` or ``bf16``.
            wanted: For each node the type of its floats, or None for one that has no floats.
        """
        self.casts = 0
        self.rounded: dict[str, NDArray[np.float32]] = {}
        self._model = model
        self._precision = precision
        self._read_as: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        pairs = list(zip(model.graph, wanted, strict=True))
        self._read_in_float = {v for node, kind in pairs if kind == FLOAT for v in node.inputs}
        for node, kind in pairs:
            if kind is not None:
                self._set_type(node, kind)
        self._keep_outputs()

    def _set_type(self, node: ir.Node, kind: ir.DataType) -> None:
        if node.op_type == "Cast":
            node.attributes["to"] = ir.AttrInt64("to", kind)
        else:
            for index, value in enumerate(node.inputs):
                # The scales of a Resize are float32 whatever the type of its planes.
                if value is not None and (index == 0 or node.op_type != "Resize"):
                    node.replace_input_with(index, self._as(node, value, kind))
        # The first output only: the second one of TopK holds places, in int64.
        node.outputs[0].dtype = kind

    def _as(self, reader: ir.Node, value: ir.Value, kind: ir.DataType) -> ir.Value:
        """Return what holds a value in a type, made before its first reader if it is not there."""
        if value.dtype not in _SUFFIX or value.dtype == kind:
            return value
        if (value, kind) not in self._read_as:
            if value.is_initializer():
                made = self._round(value, kind)
            else:
                cast = self._cast(value, kind, f"{value.name}_{_SUFFIX[kind]}")
                reader.prepend(cast)
                made = cast.outputs[0]
            self._read_as[value, kind] = made
        return self._read_as[value, kind]

    def _cast(self, value: ir.Value, kind: ir.DataType, name: str) -> ir.Node:
        self.casts += 1
        made = ir.val(name, kind, value.shape)
        to = {"to": ir.AttrInt64("to", kind)}
        return ir.node("Cast", [value], to, outputs=[made], name=f"{name}_cast")

    def _round(self, constant: ir.Value, kind: ir.DataType) -> ir.Value:
        """Round a constant; beside the FP32 one where an FP32 node reads that too."""
        tensor, name = ir.convenience.get_const_tensor(constant), str(constant.name)
        assert tensor is not None  # it is an initializer
        value = tensor.numpy()
        if constant in self._read_in_float:
            # Rounding it in place would also round what the FP32 island reads.
            name = f"{name}_{self._precision}"
            constant = ir.val(name, kind, value.shape)
        constant.const_value = ir.tensor(round_to_half(value, self._precision), name=name)
        constant.dtype = kind
        self._model.graph.register_initializer(constant)
        self.rounded[name] = value
        return constant

    def _keep_outputs(self) -> None:
        """Give the graph's outputs that became half their float32 type back."""
        graph = self._model.graph
        for index, value in enumerate(list(graph.outputs)):
            if value.dtype in HALF_TYPES.values():
                name = str(value.name)
                value.name = f"{name}_{self._precision}"
                cast = self._cast(value, FLOAT, name)
                graph.append(cast)
                graph.outputs[index] = cast.outputs[0]
