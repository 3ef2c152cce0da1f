"""What a CPU multiplies at best in each precision, by the libraries that run the artifacts.

Chains of 3x3 convolutions of DeSTSeg's shapes run in ONNX Runtime and OpenVINO; PyTorch multiplies
matrices. The fastest of all is the machine's rate in a precision: how near a network comes to it
says what is left to gain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from destseg_bench.timing import SETTLE, Advance, ignore, interleave
from destseg_deploy.runtime.offline import import_onnxruntime, openvino_core

SHAPES = ((64, 64), (128, 32), (256, 16), (512, 8), (256, 32), (256, 64))
"""Channels, and height and width, of the convolutions. The first four are the teacher's at 256 px,
the last two the segmentation network's at 128 and at 256 px."""

LAYERS = 8
"""Convolutions of a chain: enough that its two ends do not count."""

SIDE = 1024
"""Rows and columns of the matrices."""

HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
"""Precision -> what OpenVINO is told; INT8 is in the graph."""


@dataclass(frozen=True)
class Rate:
    """The best rate of a library in a precision.

    Attributes:
        precision: ``fp32``, ``bf16`` or ``int8``.
        library: ``onnxruntime``, ``openvino`` or ``torch``.
        work: What was fastest, such as ``3x3, 256 channels, 64x64``.
        gmac_per_second: 1e9 multiply-accumulates a second, of the fastest call.
    """

    precision: str
    library: str
    work: str
    gmac_per_second: float


def measure_cpu_rates(*, rounds: int = 10, report: Advance = ignore) -> list[Rate]:
    """Return the best rate of each library in each precision that the CPU computes.

    Args:
        rounds: Timed calls of each piece of work, in turns; the fastest counts, as what disturbs a
            measurement only slows it down.
        report: Called with the calls done, all of them, and the work.
    """
    works = {f"{one.precision}, {one.library}, {one.work}": one for one in _works()}
    calls = {name: one.call for name, one in works.items()}
    seconds = interleave(calls, rounds=rounds, warmup=2, settle=SETTLE / 4, report=report)
    rates = [
        Rate(one.precision, one.library, one.work, one.macs / min(seconds[name]) / 1e9)
        for name, one in works.items()
    ]
    best: dict[tuple[str, str], Rate] = {}
    for rate in sorted(rates, key=lambda one: one.gmac_per_second):
        best[rate.precision, rate.library] = rate
    return sorted(best.values(), key=lambda one: (one.precision, -one.gmac_per_second))


def machine_rate(rates: Sequence[Rate], precision: str) -> float | None:
    """Return the machine's rate in a precision, in 1e9 MAC a second; None if it has none."""
    found = [one.gmac_per_second for one in rates if one.precision == precision]
    return max(found, default=None)


@dataclass(frozen=True)
class _Work:
    precision: str
    library: str
    work: str
    macs: int
    call: Callable[[], object]


def _works() -> Iterator[_Work]:
    for channels, side in SHAPES:
        macs = LAYERS * channels**2 * 9 * side**2
        image = np.random.default_rng(0).random((1, channels, side, side), np.float32)
        for quantised in (False, True):
            graph = chain(channels, side, quantised=quantised).SerializeToString()
            for precision, library, call in _ways(graph, image, quantised):
                yield _Work(
                    precision, library, f"3x3, {channels} channels, {side}x{side}", macs, call
                )
    yield from _products()


def _ways(
    graph: bytes, image: np.ndarray, quantised: bool
) -> Iterator[tuple[str, str, Callable[[], object]]]:
    """Yield precision, library and a call for each way to run a chain."""
    usual = "int8" if quantised else "fp32"
    session = import_onnxruntime().InferenceSession(graph, providers=["CPUExecutionProvider"])
    yield usual, "onnxruntime", partial(session.run, None, {"x": image})
    try:
        core = openvino_core()
    except ImportError:
        return
    able = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    model = core.read_model(graph)
    for precision in [usual] + ["bf16"] * (able and not quantised):
        config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": HINTS[precision]}
        request = core.compile_model(model, "CPU", config).create_infer_request()
        yield precision, "openvino", partial(request.infer, {0: image})


def _products() -> Iterator[_Work]:
    try:
        import torch
    except ImportError:
        return
    for precision, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(SIDE, SIDE).to(kind) for _ in range(2))
        work = f"matrices of {SIDE}x{SIDE}"
        yield _Work(precision, "torch", work, SIDE**3, partial(torch.mm, a, b))


def chain(channels: int, side: int, *, quantised: bool) -> onnx.ModelProto:
    """Return a graph of 3x3 convolutions, each with a ReLU, on float32 (1, channels, side, side).

    Args:
        channels: In and out of each convolution.
        side: Height and width of its input and output.
        quantised: Whether a Q/DQ pair stands at each input, weight and output, as the exporter
            puts them.
    """
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, NDArray[Any]] = {}
    if quantised:  # steps that keep values as large from layer to layer
        constants["scale"] = np.array(1 / 64, np.float32)
        constants["zero"] = np.array(0, np.uint8)
        constants["scales"] = np.full(channels, 0.25 / channels**0.5, np.float32)
        constants["zeros"] = np.zeros(channels, np.int8)

    def add(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def pair(value: str) -> str:
        if not quantised:
            return value
        step = add("QuantizeLinear", [value, "scale", "zero"], f"{value}_q")
        return add("DequantizeLinear", [step, "scale", "zero"], f"{value}_d")

    value = pair("x")
    for layer in range(LAYERS):
        weight = f"w{layer}"
        shape = (channels, channels, 3, 3)
        if quantised:
            constants[weight] = rng.integers(-3, 4, shape).astype(np.int8)
            weight = add("DequantizeLinear", [weight, "scales", "zeros"], f"{weight}_d", axis=0)
        else:
            constants[weight] = rng.normal(0, 0.02, shape).astype(np.float32)
        found = add("Conv", [value, weight], f"c{layer}", pads=[1, 1, 1, 1])
        value = pair(add("Relu", [found], f"y{layer}"))
    size = [1, channels, side, side]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, size)],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, size)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)
