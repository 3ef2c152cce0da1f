"""A model without a network, which costs nothing: the map is the red channel, as in FakeRuntime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from destseg_deploy.spec import FileRecord
from destseg_deploy.testing import fake_spec
from destseg_deploy.thresholds import by_hand

SIDE = 32


def write_model(path: Path, limit: float | None = 0.5, bias: float = 0.0) -> Path:
    """Write an ONNX file that ONNX Runtime runs, and its spec.

    Args:
        path: The file.
        limit: Its threshold; None for none.
        bias: Added to the map; another one makes another file.
    """
    import onnx
    from onnx import TensorProto, helper

    spec = fake_spec(SIDE, SIDE)
    const = {
        "zero": np.array([0], np.int64),
        "one": np.array([1], np.int64),
        "last": np.array([3], np.int64),
        "white": np.array(255, np.float32),
        "bias": np.array(bias, np.float32),
        "flat": np.array([0, -1], np.int64),
        "k": np.array([spec.output.top_k], np.int64),
    }
    nodes = [
        helper.make_node("Slice", ["image", "zero", "one", "last"], ["red"]),
        helper.make_node("Cast", ["red"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Squeeze", ["float", "last"], ["plane"]),
        helper.make_node("Div", ["plane", "white"], ["share"]),
        helper.make_node("Add", ["share", "bias"], ["anomaly_map"]),
        helper.make_node("Reshape", ["anomaly_map", "flat"], ["pixels"]),
        helper.make_node("TopK", ["pixels", "k"], ["top", "indices"]),
        helper.make_node("ReduceMean", ["top", "one"], ["score"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "red",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIDE, SIDE, 3])],
        [
            helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, ["N", SIDE, SIDE]),
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"]),
        ],
        [onnx.numpy_helper.from_array(value, name) for name, value in const.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    threshold = None if limit is None else by_hand(limit, 0.8)
    replace(spec, artifact=FileRecord.of(path), threshold=threshold).write(path)
    return path


def write_image(path: Path, level: int, side: int = SIDE) -> Path:
    """Write a grey image; its score is level / 255."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((side, side, 3), level, np.uint8)).save(path)
    return path
