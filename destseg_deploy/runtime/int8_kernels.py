"""Finds out whether a back end's INT8 kernels add without overflow on this CPU.

An x86 CPU multiplies uint8 by int8 and adds pairs of products. A CPU without VNNI (AVX512-VNNI or
AVX-VNNI) does this with ``vpmaddubsw``, which adds in 16 bit and stops at 32767. Two products reach
2 * 255 * 127 = 64770, so a large sum comes out up to half too small, without an error. ONNX Runtime
and OpenVINO both use this instruction there. Neither says which kernels it chose. So we let each
multiply two matrices whose product we know. This works on every system, and in virtual machines
that hide what their CPU can do.

ONNX Runtime also has exact kernels. ``EXACT`` turns int8 weights into uint8. That costs a third of
the speed or more, also on CPUs with VNNI, so we set it only where the product is wrong. OpenVINO
has no exact kernels: there, INT8 layers are computed in float32 on the same rounded values.

``destseg-export quantize`` writes two kinds of files: ``u8`` (uint8 activations) for CPUs, and
``s8`` (int8 with zero point 0) for TensorRT, which takes nothing else. We do not convert one into
the other at load: the scales would change, and with them the accuracy that was checked. A CPU also
runs an ``s8`` file, but badly. ONNX Runtime ran 2 of 11 quantised convolutions in INT8, because it
finds the clipping of a ReLU only in uint8. OpenVINO moved a score of 0.064 by 0.005, where ``u8``
moved it by 0.0003. So loading such a file on a CPU logs a warning.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from destseg_deploy.runtime.ort.providers import CPU
from destseg_deploy.spec import ModelSpec

logger = logging.getLogger(__name__)

EXACT = "session.x64quantprecision"
"""ONNX Runtime's option for uint8 weights. All versions that this project supports have it."""

AS_FLOAT = "LP_TRANSFORMS_MODE"
"""OpenVINO's option; ``NO`` keeps a quantised graph in float32. Only its CPU plugin has it, and the
documentation does not list it."""

TERMS = 64
PRODUCT = TERMS * 255 * 127
"""Sum of the largest products, far below int32's limit. Kernels that stop at 16 bit give half."""


def warn_of_scheme(spec: ModelSpec) -> None:
    """Say that an INT8 artifact was made for TensorRT when a CPU is about to run it."""
    if spec.quantization is not None and spec.quantization.scheme == "s8":
        logger.warning(
            "%s: quantised for TensorRT; a CPU runs few of its layers in INT8, or less accurately. "
            "Make one for CPUs: destseg-export quantize --for cpu",
            spec.artifact.file,
        )


def ort_saturates(ort: Any) -> bool:
    """Return whether ONNX Runtime's sums of uint8 by int8 stop at 16 bit on this CPU.

    Args:
        ort: The module ``onnxruntime``.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(probe_graph(), options, providers=[(CPU, {})])
    left, right = np.full((4, TERMS), 255, np.uint8), np.full((TERMS, 16), 127, np.int8)
    (found,) = session.run(None, {"a": left, "b": right})
    return bool(np.any(found != PRODUCT))


def openvino_saturates(openvino: Any, core: Any) -> bool:
    """Return whether OpenVINO's sums of uint8 by int8 stop at 16 bit on this CPU.

    Args:
        openvino: The module ``openvino``.
        core: Its ``Core``.
    """
    ops = openvino.opset13
    images = ops.parameter([1, TERMS, 1, 1], np.float32)
    low, high = np.float32(0), np.float32(255)
    steps = ops.fake_quantize(images, low, high, low, high, 256)
    weights = ops.convert(ops.constant(np.full((16, TERMS, 1, 1), 127, np.int8)), np.float32)
    scaled = ops.multiply(weights, np.ones((16, 1, 1, 1), np.float32))
    sums = ops.convolution(steps, scaled, [1, 1], [0, 0], [0, 0], [1, 1])
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(openvino.Model([sums], [images], "probe"), "CPU", config)
    found = compiled(np.full((1, TERMS, 1, 1), 255, np.float32))[0]
    return bool(np.any(found != PRODUCT))


def probe_graph() -> bytes:
    """Return an ONNX file, y = MatMulInteger(a: uint8, b: int8), made without the package onnx."""
    node = _field(1, b"a") + _field(1, b"b") + _field(2, b"y") + _field(4, b"MatMulInteger")
    tensors = _tensor(11, b"a", 2) + _tensor(11, b"b", 3) + _tensor(12, b"y", 6)
    graph = _field(1, node) + _field(2, b"probe") + tensors
    version, opset = b"\x08\x08", _field(8, b"\x10\x11")  # IR 8, opset 17
    return version + _field(7, graph) + opset


def _tensor(number: int, name: bytes, kind: int) -> bytes:
    """Return an input (field 11) or output (12) of a graph: a matrix of any size.

    ``kind`` is ONNX's number of a type.
    """
    any_size = _field(1, b"") * 2
    tensor = bytes([8, kind]) + _field(2, any_size)
    return _field(number, _field(1, name) + _field(2, _field(1, tensor)))


def _field(number: int, content: bytes) -> bytes:
    """Return a field of protobuf that holds up to 127 bytes."""
    return bytes([number << 3 | 2, len(content)]) + content
