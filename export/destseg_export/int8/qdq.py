"""Q/DQ pairs put around chosen convolutions of an FP32 graph.

A value x becomes q, and is read back as x'::

    q = clip(round(x / scale) + zero)        x' = (q - zero) * scale

Weights are symmetric with a scale for each output channel, zero 0. Activations come in two schemes:

``u8``  uint8, asymmetric: low and high are the ends of the 256 steps, and the value 0 is a step.
        x86 multiplies uint8 by int8 fast.
``s8``  int8, symmetric, zero 0: what TensorRT takes. After a ReLU half of the steps are never used.

They are written to two files. A change of scheme at load would change every rounding, so the
accuracy that was checked would not be the accuracy that runs.

A pair stands at the input of each convolution, at its output behind the ReLU, and behind a residual
sum. There ONNX Runtime, OpenVINO and TensorRT look for it to run the whole in integers; a bias
stays float32.

Rounding errors do not cancel. Where a part is flat, each pixel has nearly the same input, so the
same error. So the mean error of each output channel is measured and subtracted from the bias
(Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019,
section 4.2). ``add_twins`` makes the graph that measures it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx
import onnx_ir as ir

from destseg_deploy.errors import ExportError
from destseg_deploy.spec.records import SCHEMES
from destseg_export.graph import edit
from destseg_export.graph.macs import count_macs, macs_of

QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger", "FakeQuantize")


@dataclass(frozen=True)
class Range:
    """The range of a tensor that 8 bit represents; values beyond either end become that end.

    Attributes:
        low: The smallest.
        high: The largest.
    """

    low: float
    high: float


def find_layers(proto: onnx.ModelProto, parts: Sequence[str]) -> list[str]:
    """Return the convolutions that may be quantised, by name, in the graph's order.

    The last convolution, whose output the sigmoid reads, is never one of them: 256 steps would put
    all answers on one grid.

    Args:
        proto: An FP32 graph, fused or not; weights carry the checkpoint's names.
        parts: Beginnings of the names, such as ``segmentation_net``.

    Raises:
        ExportError: If the graph is quantised already, has an operator of another domain, or no
            such convolution.
    """
    model = ir.from_proto(proto)
    for node in model.graph:
        if node.op_type in QUANTIZED:
            raise ExportError(
                f"{node.name}: this graph is quantised already. Pass the fp32 export."
            )
        if node.domain not in ("", "ai.onnx"):
            raise ExportError(
                f"{node.name}: unknown operator {node.domain}::{node.op_type}. Pass a graph that "
                "destseg-export wrote in fp32."
            )
    found = [
        str(node.name)
        for node in edit.nodes(model, "Conv")
        if not edit.feeds(node.outputs[0], "Sigmoid")
        and str(edit.required(node, 1).name).removeprefix("model.").startswith(tuple(parts))
    ]
    if not found:
        raise ExportError(
            f"no convolution of {', '.join(parts)} in this graph. Pass a graph that destseg-export "
            "wrote."
        )
    return found


def tensors_around(proto: onnx.ModelProto, layers: Sequence[str]) -> list[str]:
    """Return the names of the values whose ranges are needed to quantise layers."""
    convolutions = (n for n in edit.nodes(ir.from_proto(proto), "Conv") if n.name in layers)
    values = (value for node in convolutions for value in (edit.required(node, 0), *_behind(node)))
    return list(dict.fromkeys(str(value.name) for value in values))


def quantize_layers(
    proto: onnx.ModelProto,
    layers: Sequence[str],
    ranges: Mapping[str, Range],
    scheme: str,
    shifts: Mapping[str, edit.Floats] = MappingProxyType({}),
) -> onnx.ModelProto:
    """Return a copy of a graph in which some convolutions run in 8 bit.

    Args:
        proto: The FP32 graph, as given to ``tensors_around``.
        layers: Names of convolutions.
        ranges: Of every value that ``tensors_around`` named.
        scheme: One of ``SCHEMES``.
        shifts: Layer -> float64 (O,), what 8 bit add to its output channels on average; another
            layer keeps its bias.

    Raises:
        ExportError: If the scheme is unknown or a range is missing.
    """
    model = ir.from_proto(proto)
    pairs = _Pairs(model, ranges, scheme)
    chosen = [node for node in edit.nodes(model, "Conv") if node.name in layers]
    # What is behind a convolution is looked up before any pair stands between it and its ReLU.
    plan = [(node, edit.required(node, 0), _behind(node)) for node in chosen]
    for node, before, behind in plan:
        pairs.read_quantized(node, before)
        node.replace_input_with(1, _add_weight(model, edit.required(node, 1)))
        if (shift := shifts.get(str(node.name))) is not None:
            _correct_bias(model, node, shift)
        for value in behind:
            for reader in value.consumers():
                if reader.op_type != "QuantizeLinear":
                    pairs.read_quantized(reader, value)
    edit.tidy(model)
    quantized = ir.to_proto(model)
    onnx.checker.check_model(quantized)
    return quantized


def add_twins(
    proto: onnx.ModelProto, layers: Sequence[str], ranges: Mapping[str, Range], scheme: str
) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Return a copy of a graph that also says what 8 bit add to each convolution.

    Beside each convolution stands a twin that reads the same values and weights in 8 bit. All
    values stay float32, so a layer's error has nothing of the layers before it, and holds whichever
    of them are quantised.

    Args:
        proto: See ``quantize_layers``.
        layers: See ``quantize_layers``.
        ranges: See ``quantize_layers``.
        scheme: See ``quantize_layers``.

    Returns:
        The graph, and layer -> the name of its new output (N, O): the mean difference over an
        image, for each output channel.
    """
    model = edit.open_model(proto)
    pairs = _Pairs(model, ranges, scheme)
    plane = edit.add_constant(model, "height_and_width", np.array([2, 3], np.int64))
    found: dict[str, str] = {}
    for node in [node for node in edit.nodes(model, "Conv") if node.name in layers]:
        value, weight = edit.required(node, 0), edit.required(node, 1)
        rounded = [pairs.rounded(value), _add_weight(model, weight)]
        twin = edit.add_node(model, "Conv", rounded, f"{node.name}_twin", node.attributes)
        # Without the bias, which both have.
        plain = edit.add_node(model, "Conv", [value, weight], f"{node.name}_plain", node.attributes)
        added = edit.add_node(model, "Sub", [twin, plain], f"{node.name}_added")
        mean = edit.add_node(
            model, "ReduceMean", [added, plane], f"{node.name}_shift", {"keepdims": 0}
        )
        mean.type = ir.TensorType(ir.DataType.FLOAT)
        model.graph.outputs.append(mean)
        found[str(node.name)] = str(mean.name)
    edit.tidy(model)
    return ir.to_proto(model), found


class _Pairs:
    """The pairs in a graph, one for each value, made when the first node asks for it."""

    def __init__(self, model: ir.Model, ranges: Mapping[str, Range], scheme: str) -> None:
        if scheme not in SCHEMES:
            raise ExportError(f"scheme {scheme!r}: expected {' or '.join(SCHEMES)}.")
        self._model = model
        self._ranges = ranges
        self._scheme = scheme
        self._made: dict[ir.Value, ir.Value] = {}

    def read_quantized(self, reader: ir.Node, value: ir.Value) -> None:
        """Let a node read a value through its pair."""
        rounded = self.rounded(value)
        for index, read in enumerate(reader.inputs):
            if read is value:
                reader.replace_input_with(index, rounded)

    def rounded(self, value: ir.Value) -> ir.Value:
        """Return a value as its pair gives it back."""
        if value not in self._made:
            self._made[value] = self._add(value)
        return self._made[value]

    def _add(self, value: ir.Value) -> ir.Value:
        name = str(value.name)
        if name not in self._ranges:
            raise ExportError(f"{name}: its range was not measured. Calibrate this graph.")
        scale, zero = steps_of(self._ranges[name], self._scheme)
        constants = [
            edit.add_constant(self._model, f"{name}_scale", np.array(scale, np.float32)),
            edit.add_constant(self._model, f"{name}_zero", zero),
        ]
        relu = edit.producer(value, "Relu")
        # With uint8 and zero point 0 the clipping to [0, 255] is the ReLU, which is left out then.
        clips = relu is not None and zero.dtype == np.uint8 and not zero
        source = relu.inputs[0] if relu is not None and clips else value
        inputs = [source, *constants]
        quantized = edit.add_node(self._model, "QuantizeLinear", inputs, f"{name}_quantized")
        inputs = [quantized, *constants]
        return edit.add_node(self._model, "DequantizeLinear", inputs, f"{name}_dequantized")


def _add_weight(model: ir.Model, value: ir.Value) -> ir.Value:
    weight, name = edit.floats(value), value.name
    if weight is None:
        raise ExportError(f"{name}: computed weights cannot be quantised. Pass the fp32 export.")
    values, scales = quantize_weight(weight)
    inputs = [
        edit.add_constant(model, f"{name}_quantized", values),
        edit.add_constant(model, f"{name}_scale", scales),
        edit.add_constant(model, f"{name}_zero", np.zeros(len(scales), np.int8)),
    ]
    return edit.add_node(model, "DequantizeLinear", inputs, f"{name}_dequantized", {"axis": 0})


def _correct_bias(model: ir.Model, node: ir.Node, shift: edit.Floats) -> None:
    """Subtract from a convolution's output what 8 bit add to it on average."""
    known = node.inputs[2] if len(node.inputs) > 2 else None
    bias = np.zeros(len(shift)) if known is None else edit.floats(known)
    if bias is None:
        raise ExportError(f"{node.name}: a computed bias. Pass the fp32 export.")
    node.resize_inputs(3)
    node.replace_input_with(
        2, edit.add_constant(model, f"{node.name}_corrected_bias", bias - shift)
    )


def steps_of(values: Range, scheme: str) -> tuple[float, np.ndarray]:
    """Return the scale, and the zero point as a scalar of the scheme's type."""
    low, high = min(values.low, 0.0), max(values.high, 0.0)
    if scheme == "s8":
        return (max(-low, high) / 127 or 1.0), np.array(0, np.int8)
    scale = (high - low) / 255 or 1.0
    return scale, np.array(round(-low / scale), np.uint8)


def quantize_weight(weight: edit.Floats) -> tuple[np.ndarray, np.ndarray]:
    """Return int8 weights (O, ...) in [-127, 127] and float32 scales (O,)."""
    largest = np.abs(weight.reshape(len(weight), -1)).max(axis=1)
    scales = np.where(largest > 0, largest / 127, 1.0).astype(np.float32)
    broadcast = scales.astype(np.float64).reshape(-1, *[1] * (weight.ndim - 1))
    return np.clip(np.round(weight / broadcast), -127, 127).astype(np.int8), scales


def _behind(node: ir.Node) -> list[ir.Value]:
    """Return what is quantised behind a convolution: its output, past ReLU and a residual sum."""
    output = node.outputs[0]
    relu = edit.only_reader(output, "Relu")
    if relu is not None:
        return [relu.outputs[0]]
    added = edit.only_reader(output, "Add")
    if added is None:
        return [output]
    return [output, (edit.only_reader(added.outputs[0], "Relu") or added).outputs[0]]


def macs_by_layer(proto: onnx.ModelProto, layers: Iterable[str]) -> dict[str, int]:
    """Return layer -> the multiply-accumulates that it does for an image."""
    chosen = set(layers)
    found = edit.nodes(edit.open_model(proto), "Conv")
    return {str(node.name): macs_of(node) for node in found if node.name in chosen}


def share_of_macs(proto: onnx.ModelProto, layers: Iterable[str]) -> float:
    """Return the share of the graph's MACs that the layers do, 0 to 1."""
    return sum(macs_by_layer(proto, layers).values()) / count_macs(edit.open_model(proto))
