"""The embedding library, built once; models small enough to compare every bit."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from destseg_deploy.spec import EngineRecord, ModelSpec
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
from tests.tiny import spec_of, write_packing_model

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


def write_engine(path: Path, size: tuple[int, int], word: str = "", **changes) -> ModelSpec:
    """Write an engine for the fake TensorRT, with the spec that its fake GPU asks for."""
    path.write_text(f"fake-engine {size[0]} {size[1]} {size[0]} {size[1]} {word}")
    spec = spec_of(path, "engine", size, engine=ENGINE)
    spec = replace(spec, **changes)
    spec.write(path)
    return spec


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
