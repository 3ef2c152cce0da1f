"""The mechanics of mixed precision: give each node of a graph a type, with casts at the borders.

Knows nothing of DeSTSeg; ``half`` decides which node gets which type.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

FLOAT = int(TensorProto.FLOAT)
HALF_TYPES = {"fp16": int(TensorProto.FLOAT16), "bf16": int(TensorProto.BFLOAT16)}
"""Precision -> its ONNX type."""

_SUFFIX = {FLOAT: "fp32", **{kind: name for name, kind in HALF_TYPES.items()}}


def round_to_half(value: NDArray[np.float32], precision: str) -> NDArray[np.float32]:
    """Round to the nearest half value, ties to even; infinity beyond the range.

    Args:
        value: Any shape, finite.
        precision: ``fp16`` or ``bf16``.

    Returns:
        The rounded values, as float32, which holds them all.
    """
    if precision == "fp16":
        with np.errstate(over="ignore"):
            return value.astype(np.float16).astype(np.float32)
    bits = np.ascontiguousarray(value, np.float32).view(np.uint32)
    even = bits + (0x7FFF + ((bits >> 16) & 1))
    return (even & np.uint32(0xFFFF0000)).view(np.float32).reshape(value.shape)


def half_tensors(graph: onnx.GraphProto) -> dict[str, int]:
    """Return the tensors of a graph that are half, constants included, with their ONNX type.

    Types follow from constants and casts through operators whose first output has the type of
    their first input, which is all that the graphs of this project have.
    """
    found = {t.name: t.data_type for t in graph.initializer if t.data_type in _SUFFIX}
    for node in graph.node:
        kind = found.get(node.input[0], 0) if node.input else 0
        if node.op_type == "Cast":
            kind = cast_type(node)
        if node.op_type != "Shape":
            found[node.output[0]] = kind
    return {name: kind for name, kind in found.items() if kind in HALF_TYPES.values()}


def cast_type(node: onnx.NodeProto) -> int:
    """Return the ONNX type that a Cast gives."""
    return next(int(a.i) for a in node.attribute if a.name == "to")


class Retyping:
    """One walk over a graph: the type of every float tensor so far, and what was made."""

    def __init__(
        self, graph: onnx.GraphProto, precision: str, wanted: Sequence[int | None]
    ) -> None:
        """Rewrite a graph in place.

        Args:
            graph: Sorted topologically; all its floats are float32.
            precision: ``fp16`` or ``bf16``.
            wanted: For each node the type of its floats, or None for one that has no floats.
        """
        self.casts = 0
        """Casts inserted."""
        self.rounded: dict[str, NDArray[np.float32]] = {}
        """Constants made half, with their values before that."""
        self._graph = graph
        self._precision = precision
        self._half = HALF_TYPES[precision]
        self._constants = {t.name: t for t in graph.initializer if t.data_type == FLOAT}
        self._types = dict.fromkeys(self._constants, FLOAT)
        self._read_as: dict[tuple[str, int], str] = {}
        self._nodes: list[onnx.NodeProto] = []
        pairs = list(zip(graph.node, wanted, strict=True))
        self._shared = {name for node, kind in pairs if kind == FLOAT for name in node.input}
        for node, kind in pairs:
            if kind is not None:
                self._set_type(node, kind)
            self._nodes.append(node)
        self._keep_outputs()
        self._replace_nodes()

    def _set_type(self, node: onnx.NodeProto, kind: int) -> None:
        if node.op_type == "Cast":
            next(a for a in node.attribute if a.name == "to").i = kind
        else:
            for i, name in enumerate(node.input):
                if i == 0 or node.op_type != "Resize":  # its scales are float32 in every type
                    node.input[i] = self._as(name, kind)
        self._types[node.output[0]] = kind

    def _as(self, name: str, kind: int) -> str:
        """Return the tensor that holds ``name`` in a type, made when it is not there yet."""
        if self._types.get(name, kind) == kind:
            return name
        if (name, kind) not in self._read_as:
            made = self._round(name) if name in self._constants else self._cast(name, kind)
            self._types[made] = kind
            self._read_as[name, kind] = made
        return self._read_as[name, kind]

    def _cast(self, name: str, kind: int, made: str | None = None) -> str:
        made = made or f"{name}_{_SUFFIX[kind]}"
        self._nodes.append(helper.make_node("Cast", [name], [made], f"{made}_cast", to=kind))
        self.casts += 1
        return made

    def _round(self, name: str) -> str:
        """Round a constant; beside the FP32 one where an FP32 node reads that too."""
        made = f"{name}_{self._precision}" if name in self._shared else name
        value = numpy_helper.to_array(self._constants[name])
        rounded = half_constant(value, self._precision, made)
        if made == name:
            self._constants[name].CopyFrom(rounded)
        else:
            self._graph.initializer.append(rounded)
        self.rounded[made] = value
        return made

    def _keep_outputs(self) -> None:
        """Give the graph's outputs that became half their float32 type back."""
        for value in self._graph.output:
            if self._types.get(value.name) != self._half:
                continue
            narrow = f"{value.name}_{self._precision}"
            for node in self._nodes:
                for names in (node.input, node.output):
                    names[:] = [narrow if name == value.name else name for name in names]
            self._types[narrow] = self._half
            self._types[self._cast(narrow, FLOAT, value.name)] = FLOAT

    def _replace_nodes(self) -> None:
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        for value in self._graph.value_info:
            if self._types.get(value.name) == self._half:
                value.type.tensor_type.elem_type = self._half


def half_constant(value: NDArray[np.float32], precision: str, name: str) -> onnx.TensorProto:
    """Make a constant from values rounded to half."""
    rounded = round_to_half(value, precision)
    if precision == "fp16":
        return numpy_helper.from_array(rounded.astype(np.float16), name)
    raw = (rounded.view(np.uint32) >> 16).astype("<u2").tobytes()
    return helper.make_tensor(name, TensorProto.BFLOAT16, value.shape, raw, raw=True)
