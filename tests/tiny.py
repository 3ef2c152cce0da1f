"""Artifacts of a few bytes, for tests of what happens around a network and not in it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from destseg_deploy.spec import (
    BatchRange,
    FileRecord,
    InputSpec,
    ModelSpec,
    NetworkSpec,
    OutputSpec,
    Threshold,
)
from destseg_deploy.spec.contract import KEY, contract_of


def spec_of(path: Path, kind: str, size: tuple[int, int], **changes) -> ModelSpec:
    """Return the spec of a file that takes frames of a size and returns maps of that size."""
    record = FileRecord.of(path)
    spec = ModelSpec(
        kind=kind,
        category="tiny",
        precision="fp32",
        input=InputSpec(*size, BatchRange(1, 2, 4)),
        network=NetworkSpec(*size),
        output=OutputSpec(*size, top_k=1),
        artifact=record,
        checkpoint=record,
        threshold=Threshold(0.25, 0.5, "by hand"),
        tools={"onnx": "1"},
    )
    return replace(spec, **changes)


def write_packing_model(path: Path, size: tuple[int, int], **changes) -> ModelSpec:
    """Write an ONNX file whose map holds every bit of its input, with its spec.

    A pixel of the map is (R + 256 G + 65536 B) / 2^24, exact in float32; the score is the map's
    first pixel.
    """
    onnx = pytest.importorskip("onnx")
    helper, types = onnx.helper, onnx.TensorProto
    factors = np.array([1, 256, 65536], np.float32) / np.float32(2**24)
    constants = [
        onnx.numpy_helper.from_array(factors[:, None], "factors"),
        onnx.numpy_helper.from_array(np.array([-1], np.int64), "last"),
        onnx.numpy_helper.from_array(np.array([0, 0], np.int64), "corner"),
        onnx.numpy_helper.from_array(np.array([1, 1], np.int64), "beside"),
        onnx.numpy_helper.from_array(np.array([1, 2], np.int64), "axes"),
    ]
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=types.FLOAT),
        helper.make_node("MatMul", ["pixels", "factors"], ["packed"]),
        helper.make_node("Squeeze", ["packed", "last"], ["anomaly_map"]),
        helper.make_node("Slice", ["anomaly_map", "corner", "beside", "axes"], ["first"]),
        helper.make_node("Squeeze", ["first", "axes"], ["score"]),
    ]
    write_graph(path, nodes, size, constants)
    spec = spec_of(path, "onnx", size, **changes)
    spec.write(path)
    return spec


def stamp(path: Path, spec: ModelSpec) -> None:
    """Let an ONNX file say of itself what its spec says, as an export does."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {KEY: contract_of(spec.as_entries())})
    onnx.save(model, path)
    replace(spec, artifact=FileRecord.of(path)).write(path)


def write_graph(path: Path, nodes: list, size: tuple[int, int], constants: list) -> None:
    """Write an ONNX file with an artifact's input and outputs, from any nodes between them."""
    onnx = pytest.importorskip("onnx")
    helper, types = onnx.helper, onnx.TensorProto
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info("image", types.UINT8, ["n", *size, 3])],
        [
            helper.make_tensor_value_info("anomaly_map", types.FLOAT, ["n", *size]),
            helper.make_tensor_value_info("score", types.FLOAT, ["n"]),
        ],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, path)


def unpacked(maps: np.ndarray) -> np.ndarray:
    """Return the pixels uint8 (N, H, W, 3) that a packing model's maps hold."""
    packed = (maps * np.float32(2**24)).astype(np.int64)
    return np.stack([packed % 256, packed // 256 % 256, packed // 65536], -1).astype(np.uint8)
