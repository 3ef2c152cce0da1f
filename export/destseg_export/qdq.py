"""Q/DQ pairs put around chosen convolutions of an FP32 graph.

A value x becomes q = clip(round(x / scale) + zero) and is read back as (q - zero) * scale. Weights
are symmetric with a scale for each output channel, zero 0. Activations come in two schemes:

``u8``  uint8, asymmetric: low and high are the ends of the 256 steps, 0 is held exactly. What x86
        multiplies fast (uint8 by int8).
``s8``  int8, symmetric, zero 0: what TensorRT takes. After a ReLU half of the steps are never used.

They are written to two files, not one rewritten at load: a rewrite from u8 with another zero point
to s8 changes every rounding, so the accuracy that was checked would not be the accuracy that runs.

A pair stands at the input of each convolution, at its output behind the ReLU, and behind a residual
sum. That is where ONNX Runtime, OpenVINO and TensorRT look for it to
run the whole in integers; a bias stays float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from destseg_deploy.errors import ExportError
from destseg_export.fusions.graph import Floats, Graph
from destseg_export.fusions.macs import count_macs, macs_of

SCHEMES = ("u8", "s8")
QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger", "FakeQuantize")


@dataclass(frozen=True)
class Range:
    """What a tensor's values were on the calibration images.

    Attributes:
        low: Smallest value to be told from others; lower ones become it.
        high: Largest such value.
    """

    low: float
    high: float


def find_layers(proto: onnx.ModelProto, parts: Sequence[str]) -> list[str]:
    """Return the convolutions that may be quantised, by name, in the graph's order.

    Args:
        proto: An FP32 graph, fused or not; weights carry the checkpoint's names.
        parts: Beginnings of the names, such as ``segmentation_net``.

    Raises:
        ExportError: If the graph is quantised already, has an operator of another domain, or no
            such convolution.
    """
    for node in proto.graph.node:
        if node.op_type in QUANTIZED:
            raise ExportError(
                f"{node.name}: this graph is quantised already. Pass the fp32 export."
            )
        if node.domain not in ("", "ai.onnx"):
            raise ExportError(
                f"{node.name}: unknown operator {node.domain}::{node.op_type}. Pass a graph that "
                "destseg-export wrote in fp32."
            )
    final = _logit_layers(proto)
    found = [
        node.name
        for node in proto.graph.node
        if node.op_type == "Conv"
        and node.name not in final
        and node.input[1].removeprefix("model.").startswith(tuple(parts))
    ]
    if not found:
        raise ExportError(
            f"no convolution of {', '.join(parts)} in this graph. Pass a graph that destseg-export "
            "wrote."
        )
    return found


def tensors_around(proto: onnx.ModelProto, layers: Sequence[str]) -> list[str]:
    """Return the tensors whose ranges are needed to quantise layers."""
    graph = Graph(proto)
    found: dict[str, None] = {}
    for node in graph.nodes("Conv"):
        if node.name in layers:
            found.update(dict.fromkeys([node.input[0], *_behind(graph, node)]))
    return list(found)


def quantize_layers(
    proto: onnx.ModelProto, layers: Sequence[str], ranges: Mapping[str, Range], scheme: str
) -> onnx.ModelProto:
    """Return a copy of a graph in which some convolutions run in 8 bit.

    Args:
        proto: The FP32 graph, as given to ``tensors_around``.
        layers: Names of convolutions.
        ranges: Of every tensor that ``tensors_around`` named.
        scheme: One of ``SCHEMES``.

    Raises:
        ExportError: If the scheme is unknown or a range is missing.
    """
    if scheme not in SCHEMES:
        raise ExportError(f"scheme {scheme!r}: expected {' or '.join(SCHEMES)}.")
    copy: onnx.ModelProto = onnx.ModelProto.FromString(proto.SerializeToString())
    writer = _Writer(Graph(copy), ranges, scheme)
    chosen = [node for node in writer.graph.nodes("Conv") if node.name in layers]
    plan = [(node, node.input[0], _behind(writer.graph, node)) for node in chosen]
    for node, before, behind in plan:
        writer.quantize(node, before, behind)
    writer.graph.sort()
    writer.graph.prune()
    onnx.checker.check_model(copy)
    return copy


class _Writer:
    """Puts pairs into a graph, one for each tensor."""

    def __init__(self, graph: Graph, ranges: Mapping[str, Range], scheme: str) -> None:
        self.graph = graph
        self.ranges = ranges
        self.scheme = scheme
        self.pairs: dict[str, str] = {}

    def quantize(self, node: onnx.NodeProto, before: str, behind: Sequence[str]) -> None:
        """Put pairs at a convolution's input, weights and the tensors behind it."""
        self._read_quantized(node, before)
        node.input[1] = self._weight(node.input[1])
        for tensor in behind:
            for reader in self.graph.readers(tensor):
                if reader.op_type != "QuantizeLinear":
                    self._read_quantized(reader, tensor)

    def _read_quantized(self, reader: onnx.NodeProto, tensor: str) -> None:
        pair = self._pair(tensor)
        for i, name in enumerate(reader.input):
            if name == tensor:
                reader.input[i] = pair

    def _pair(self, tensor: str) -> str:
        if tensor not in self.pairs:
            if tensor not in self.ranges:
                raise ExportError(f"{tensor}: its range was not measured. Calibrate this graph.")
            scale, zero = steps_of(self.ranges[tensor], self.scheme)
            constants = [
                self.graph.add_constant(f"{tensor}_scale", np.array(scale, np.float32)),
                self.graph.add_constant(f"{tensor}_zero", zero),
            ]
            source = self._before_relu(tensor) if zero.dtype == np.uint8 and not zero else tensor
            quantized = self.graph.add_node(
                "QuantizeLinear", [source, *constants], f"{tensor}_quantized"
            )
            self.pairs[tensor] = self.graph.add_node(
                "DequantizeLinear", [quantized, *constants], f"{tensor}_dequantized"
            )
        return self.pairs[tensor]

    def _before_relu(self, tensor: str) -> str:
        """Return what a ReLU reads; with zero point 0 the clipping to [0, 255] is that ReLU."""
        relu = self.graph.maker(tensor, "Relu")
        return tensor if relu is None else relu.input[0]

    def _weight(self, name: str) -> str:
        weight = self.graph.floats(name)
        if weight is None:
            raise ExportError(
                f"{name}: computed weights cannot be quantised. Pass the fp32 export."
            )
        values, scales = quantize_weight(weight)
        inputs = [
            self.graph.add_constant(f"{name}_quantized", values),
            self.graph.add_constant(f"{name}_scale", scales),
            self.graph.add_constant(f"{name}_zero", np.zeros(len(scales), np.int8)),
        ]
        return self.graph.add_node("DequantizeLinear", inputs, f"{name}_dequantized", axis=0)


def steps_of(values: Range, scheme: str) -> tuple[float, np.ndarray]:
    """Return the scale, and the zero point as a scalar of the scheme's type."""
    low, high = min(values.low, 0.0), max(values.high, 0.0)
    if scheme == "s8":
        return (max(-low, high) / 127 or 1.0), np.array(0, np.int8)
    scale = (high - low) / 255 or 1.0
    return scale, np.array(round(-low / scale), np.uint8)


def quantize_weight(weight: Floats) -> tuple[np.ndarray, np.ndarray]:
    """Return int8 weights (O, ...) in [-127, 127] and float32 scales (O,)."""
    largest = np.abs(weight.reshape(len(weight), -1)).max(axis=1)
    scales = np.where(largest > 0, largest / 127, 1.0).astype(np.float32)
    broadcast = scales.astype(np.float64).reshape(-1, *[1] * (weight.ndim - 1))
    return np.clip(np.round(weight / broadcast), -127, 127).astype(np.int8), scales


def _behind(graph: Graph, node: onnx.NodeProto) -> list[str]:
    """Return what is quantised behind a convolution: its output, past ReLU and a residual sum."""
    output = node.output[0]
    relu = graph.reader(output, "Relu")
    if relu is not None:
        return [relu.output[0]]
    added = graph.reader(output, "Add")
    if added is None:
        return [output]
    after = graph.reader(added.output[0], "Relu")
    last = added if after is None else after
    return [output, last.output[0]]


def _logit_layers(proto: onnx.ModelProto) -> set[str]:
    """Return the convolutions whose output a sigmoid reads."""
    read = {name for node in proto.graph.node if node.op_type == "Sigmoid" for name in node.input}
    return {n.name for n in proto.graph.node if n.op_type == "Conv" and n.output[0] in read}


def macs_by_layer(proto: onnx.ModelProto, layers: Iterable[str]) -> dict[str, int]:
    """Return layer -> the multiply-accumulates that it does for an image."""
    chosen = set(layers)
    graph = Graph(proto)
    return {node.name: macs_of(graph, node) for node in graph.nodes("Conv") if node.name in chosen}


def share_of_macs(proto: onnx.ModelProto, layers: Iterable[str]) -> float:
    """Return which part of the graph's MACs the layers do."""
    return sum(macs_by_layer(proto, layers).values()) / count_macs(proto)
