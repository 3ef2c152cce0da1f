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

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from destseg_deploy.predictor import Predictor
from destseg_deploy.runtime.ort import OrtRuntime
from destseg_deploy.spec import FileRecord, ModelSpec
from destseg_export.retype import FLOAT, HALF_TYPES, half_tensors


def emulate(proto: onnx.ModelProto, *, rounded: bool = True) -> onnx.ModelProto:
    """Return a float32 graph that rounds wherever the half graph stores a half tensor.

    Args:
        proto: A graph of ``to_half``, or a broken one; it stays as it is.
        rounded: False to round the weights alone, and see how large the activations are.
    """
    emulated = onnx.ModelProto()
    emulated.CopyFrom(proto)
    graph = emulated.graph
    halves = half_tensors(graph)
    for tensor in graph.initializer:
        if tensor.name in halves:
            wide = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
    stores = halves if rounded else {}
    nodes = [made for node in graph.node for made in _stored(_widened(node), stores)]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return emulated


def _widened(node: onnx.NodeProto) -> onnx.NodeProto:
    """Return a node that gives float32 where it gave half."""
    wide = onnx.NodeProto()
    wide.CopyFrom(node)
    for attribute in wide.attribute:
        if wide.op_type == "Cast" and attribute.i in HALF_TYPES.values():
            attribute.i = FLOAT
    return wide


def _stored(node: onnx.NodeProto, halves: dict[str, int]) -> list[onnx.NodeProto]:
    """Return the operators that stand for one node."""
    name = node.output[0]
    if name not in halves or node.op_type == "Shape":
        return [node]
    kind = halves[name]
    if node.op_type == "ReduceL2":
        return _stored_length(node, kind)
    node.output[0] = f"{name}_wide"
    return [node, *_store(node.output[0], name, kind)]


def _stored_length(node: onnx.NodeProto, kind: int) -> list[onnx.NodeProto]:
    name, x = node.output[0], node.input[0]
    total = onnx.NodeProto()
    total.CopyFrom(node)
    total.op_type = "ReduceSum"
    total.input[0], total.output[0] = f"{name}_square", f"{name}_sum_wide"
    return [
        helper.make_node("Mul", [x, x], [f"{name}_square_wide"]),
        *_store(f"{name}_square_wide", f"{name}_square", kind),
        total,
        *_store(f"{name}_sum_wide", f"{name}_sum", kind),
        helper.make_node("Sqrt", [f"{name}_sum"], [f"{name}_wide"]),
        *_store(f"{name}_wide", name, kind),
    ]


def _store(source: str, name: str, kind: int) -> list[onnx.NodeProto]:
    """Round a float32 tensor by storing it in half and reading it back."""
    return [
        helper.make_node("Cast", [source], [f"{name}_stored"], to=kind),
        helper.make_node("Cast", [f"{name}_stored"], [name], to=FLOAT),
    ]


@contextmanager
def open_graph(
    proto: onnx.ModelProto, spec: ModelSpec, *, emulated: bool = True, threads: int = 0
) -> Iterator[Predictor]:
    """Run a graph in ONNX Runtime, by default as a GPU rounds it.

    Args:
        proto: The graph.
        spec: Its contract.
        emulated: Whether its half tensors are rounded.
        threads: Threads within an operator; 0 leaves the choice to ONNX Runtime.

    Yields:
        A predictor that takes ``spec``'s frames.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, spec.artifact.file or "graph.onnx").with_suffix(".onnx")
        onnx.save_model(emulate(proto) if emulated else proto, path)
        replace(spec, artifact=FileRecord.of(path)).write(path)
        with Predictor(OrtRuntime(path, threads=threads)) as predictor:
            yield predictor
