"""Small graphs around one pattern, run before and after a fusion."""

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from destseg_export.graph.edit import open_model, tidy

ROUNDING = 6e-6
"""Of values up to 10; the sums in these graphs have up to a few hundred terms."""


def make(nodes, inputs, outputs, constants, opset=18):
    """Return a checked model; shapes start with the symbolic batch unless given as a number."""

    def values(shapes):
        return [
            helper.make_tensor_value_info(name, kind, shape)
            for name, (kind, shape) in shapes.items()
        ]

    graph = helper.make_graph(
        nodes,
        "case",
        values(inputs),
        values(outputs),
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def floats(*shape):
    return TensorProto.FLOAT, list(shape)


def node(operator, inputs, output, **attributes):
    outputs = output if isinstance(output, list) else [output]
    return helper.make_node(operator, inputs, outputs, name=f"node_{outputs[0]}", **attributes)


def random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def fused(proto, fusion):
    """Return a fused copy and what the fusion says it did."""
    model = open_model(proto)
    outcome = fusion(model)
    tidy(model)
    made = ir.to_proto(model)
    onnx.checker.check_model(made, full_check=True)
    return made, outcome


def refusal(proto, fusion):
    """Return why a fusion left a graph as it was; empty where it says nothing."""
    left, outcome = fused(proto, fusion)
    assert operators(left) == operators(proto)
    assert outcome.changed == ()
    return "; ".join(f"{one.node}: {one.reason}" for one in outcome.refused)


def run(model, /, **feed):
    """Return the outputs, computed by ONNX Runtime without optimisations of its own."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feed)


def difference(model, other, /, **feed):
    """Return the largest absolute difference of any output, NaN counted as infinite."""
    pairs = zip(run(model, **feed), run(other, **feed), strict=True)
    return max(float(np.nan_to_num(np.abs(x - y), nan=np.inf).max()) for x, y in pairs)


def operators(model):
    return [made.op_type for made in model.graph.node]


def change_constant(model, name, change):
    """Return a copy in which a constant was changed: the negative control."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in copy.graph.initializer:
        if tensor.name == name:
            value = change(numpy_helper.to_array(tensor).copy())
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), name))
            return copy
    raise AssertionError(f"no constant {name}: {[t.name for t in copy.graph.initializer]}")


def upsampled_convolution(kernel, *, small=(4, 5), large=(8, 20), dilation=1, bias=True, **extra):
    """Return Conv(Concat(a, Resize(b))), what the segmentation network begins with."""
    pad = dilation * (kernel // 2)
    attributes = {"pads": [pad] * 4, "dilations": [dilation] * 2, **extra}
    scales = np.array([1, 1, large[0] / small[0], large[1] / small[1]], np.float32)
    return make(
        [
            node("Resize", ["b", "", "scales"], "up", mode="linear"),
            node("Concat", ["a", "up"], "joined", axis=1),
            node("Conv", ["joined", "w", "bias"] if bias else ["joined", "w"], "y", **attributes),
        ],
        {"a": floats("n", 3, *large), "b": floats("n", 6, *small)},
        {"y": floats("n", 4, *large)},
        {"scales": scales, "w": random(4, 9, kernel, kernel) / 3, "bias": random(4)},
    )


def upsampled_feed(count, small=(4, 5), large=(8, 20)):
    return {"a": random(count, 3, *large), "b": random(count, 6, *small, seed=1)}
