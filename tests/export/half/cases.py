"""Graphs for tests of half: the shared network, its student's scale, and other opsets."""

import numpy as np
import onnx
from onnx import numpy_helper

from destseg_deploy.spec import Budget

SPREAD = Budget(6e-2, 2e-2, 6e-3)
"""What half may cost the shared random network, whose layers amplify every rounding: fp16 was
measured at 3.9e-2, 1.3e-2 and 3.1e-3. A trained network's budget is in ``parity.BUDGETS``."""

SCALE = 64.0
"""Of the student's features: their sum of squares is then 1.9e6, and fp16 ends at 65504."""


def scale_student(proto: onnx.ModelProto, scale: float) -> onnx.ModelProto:
    """Return the graph with the decoder's outputs times a power of two, and the same answers.

    What reads them is divided by as much, and unit-length features do not notice. No bit of the
    fp32 answer changes (but for epsilon), as the cosine loss does not when a student is trained.
    """
    scaled = onnx.ModelProto()
    scaled.CopyFrom(proto)
    up = (
        "0.conv2.weight",
        "0.conv2.bias",
        "0.downsample.0.weight",
        "0.downsample.0.bias",
        "1.conv2.weight",
        "1.conv2.bias",
    )
    factors = {f"decoder_layer{i}.{name}": scale for i in (1, 2, 3) for name in up}
    factors |= {f"decoder_layer{i}.1.conv1.weight": 1 / scale for i in (1, 2, 3)}
    # what reads a scaled level gives a scaled one: once less up where both meet in one weight
    factors |= {f"decoder_layer{i}.0.conv1.weight": 1 / scale for i in (1, 2)}
    factors |= {f"decoder_layer{i}.0.downsample.0.weight": 1.0 for i in (1, 2)}
    done = 0
    for tensor in scaled.graph.initializer:
        name = tensor.name.removeprefix("model.student_net.")
        if name in factors:
            value = numpy_helper.to_array(tensor) * np.float32(factors[name])
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
            done += 1
    assert done == len(factors), "the exporter names its weights otherwise"
    return scaled


def with_opset(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Return the graph at a newer opset; its operators mean the same there."""
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    changed.opset_import[0].version = opset
    onnx.checker.check_model(changed, full_check=True)
    return changed


def types(proto: onnx.ModelProto) -> dict[str, int]:
    """Return the type of every tensor, as ONNX infers it."""
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    values = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    found = {value.name: value.type.tensor_type.elem_type for value in values}
    return {**found, **{t.name: t.data_type for t in proto.graph.initializer}}
