"""The embedding library, built once; models small enough to compare every bit."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from destseg_deploy.spec import (
    BatchRange,
    EngineRecord,
    FileRecord,
    InputSpec,
    ModelSpec,
    NetworkSpec,
    OutputSpec,
    Threshold,
)
from tests.cpp.csharp import compile_
from tests.cpp.library import (
    CPP,
    Library,
    build,
    configure,
    name_libraries,
    need_tools,
    run,
)

ENGINE = EngineRecord(
    key="0",
    builder="tensorrt",
    version="11.4.0.106",
    gpu="Fake GPU",
    targets=("sm_90",),
    onnx="tiny.onnx",
    onnx_sha256="0",
    flags=(),
    convolutions=2,
    half_convolutions=1,
    precision_source="engine",
    build_seconds=1.0,
)
"""The record of an engine that fits the fake TensorRT and its GPU."""


@pytest.fixture(scope="session")
def prefix(tmp_path_factory) -> Path:
    """The library, installed, with every back end and the fake TensorRT.

    ``DESTSEG_CPP_BUILD`` names a folder to build in, which is then kept for the next time.
    """
    need_tools()
    kept = os.environ.get("DESTSEG_CPP_BUILD")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("cpp")
    installed = folder / "prefix"
    if not (folder / "build").is_dir():
        fake = "-DDESTSEG_FAKE_TENSORRT=ON"
        tools = "-DDESTSEG_BUILD_TOOLS=ON"
        configure(folder / "build", fake, tools, f"-DCMAKE_INSTALL_PREFIX={installed}")
    build(folder / "build")
    run("cmake", "--install", folder / "build")
    shutil.copy(folder / "build/test/destseg_stress", folder)
    name_libraries(folder / "build/libdestseg_fake_tensorrt.so")
    return installed


@pytest.fixture(scope="session")
def library(prefix) -> Library:
    """The installed library in this process."""
    (path,) = prefix.glob("lib*/**/libdestseg.so")
    return Library(path)


@pytest.fixture(scope="session")
def stress(prefix) -> Path:
    """The stress program, without sanitizers."""
    return prefix.parent / "destseg_stress"


@pytest.fixture(scope="session")
def examples(prefix, tmp_path_factory) -> Path:
    """The examples, compiled outside this project against the installed package."""
    folder = tmp_path_factory.mktemp("stranger")
    shutil.copytree(CPP / "example", folder / "example")
    flags = "-O1 -Wall -Wextra -Werror"
    run(
        "cmake",
        "-S",
        folder / "example",
        "-B",
        folder / "build",
        f"-DCMAKE_PREFIX_PATH={prefix}",
        f"-DCMAKE_C_FLAGS={flags}",
        f"-DCMAKE_CXX_FLAGS={flags}",
    )
    build(folder / "build")
    return folder / "build"


@pytest.fixture(scope="session")
def assembly(library, tmp_path_factory) -> Path:
    """Destseg.dll for C#, with its documentation and the library beside it."""
    for tool in ("mcs", "mono"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed; apt-get install mono-mcs mono-runtime")
    folder = tmp_path_factory.mktemp("csharp")
    documentation = folder / "Destseg.xml"
    sources = sorted((CPP / "csharp/Destseg").glob("*.cs"))
    compile_(folder / "Destseg.dll", "-target:library", f"-doc:{documentation}", *sources)
    shutil.copy(library.c._name, folder / "libdestseg.so")
    return folder / "Destseg.dll"


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


def write_engine(path: Path, size: tuple[int, int], word: str = "", **changes) -> ModelSpec:
    """Write an engine for the fake TensorRT, with the spec that its fake GPU asks for."""
    path.write_text(f"fake-engine {size[0]} {size[1]} {size[0]} {size[1]} {word}")
    spec = spec_of(path, "engine", size, engine=ENGINE)
    spec = replace(spec, **changes)
    spec.write(path)
    return spec


def unpacked(maps: np.ndarray) -> np.ndarray:
    """Return the pixels uint8 (N, H, W, 3) that a packing model's maps hold."""
    packed = (maps * np.float32(2**24)).astype(np.int64)
    return np.stack([packed % 256, packed // 256 % 256, packed // 65536], -1).astype(np.uint8)


@pytest.fixture(scope="session")
def packing(tmp_path_factory) -> tuple[Path, ModelSpec]:
    """A packing model of 40 x 24 pixels, which takes frames of any size."""
    path = tmp_path_factory.mktemp("packing") / "tiny.onnx"
    return path, write_packing_model(path, (40, 24))


@pytest.fixture
def engine(tmp_path) -> Path:
    """An engine for the fake TensorRT, 8 x 6 pixels."""
    path = tmp_path / "tiny.engine"
    write_engine(path, (8, 6))
    return path
