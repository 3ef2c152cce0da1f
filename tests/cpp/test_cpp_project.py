"""A project written beside an artifact is whole: it builds and runs with nothing else."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from destseg_deploy.errors import ExportError, SpecError
from destseg_export.cpp_project import LIBRARY, SOURCE, write_cpp_project
from tests.cpp.conftest import write_engine, write_packing_model
from tests.cpp.library import build, need_tools, onnxruntime_options, run
from tests.unchanged import unchanged


@pytest.fixture
def artifact(tmp_path) -> Path:
    path = tmp_path / "artifacts" / "tiny.onnx"
    path.parent.mkdir()
    write_packing_model(path, (8, 6))
    return path


def test_the_files(artifact, tmp_path):
    folder = tmp_path / "new" / "project"
    written = write_cpp_project(artifact, folder)
    assert written == sorted(path for path in folder.rglob("*") if path.is_file())
    names = {str(path.relative_to(folder)) for path in written}
    assert {"CMakeLists.txt", "README.md", "inspect.c", "inspect.cpp", "pnm.h"} <= names
    assert {"model/tiny.onnx", "model/tiny.json", "destseg/include/destseg.h"} <= names
    assert not any("fuzz" in name or "fake" in name for name in names)
    assert (folder / "model/tiny.onnx").read_bytes() == artifact.read_bytes()
    assert "build/inspect_one model/tiny.onnx" in (folder / "README.md").read_text()


def test_a_second_writing_replaces_its_own_files_only(artifact, tmp_path):
    write_cpp_project(artifact, tmp_path / "project")
    (tmp_path / "project/mine.cpp").write_text("mine")
    (tmp_path / "project/inspect.c").write_text("changed")
    write_cpp_project(artifact, tmp_path / "project")
    assert (tmp_path / "project/mine.cpp").read_text() == "mine"
    assert (tmp_path / "project/inspect.c").read_text() != "changed"


def test_the_project_builds_and_runs(artifact, tmp_path):
    need_tools()
    options = onnxruntime_options(tmp_path / "onnxruntime")
    if not options:
        pytest.skip("no headers of ONNX Runtime; run cpp/get-onnxruntime-headers.sh")
    folder = tmp_path / "project"
    write_cpp_project(artifact, folder)
    off = ["-DDESTSEG_WITH_OPENVINO=OFF", "-DDESTSEG_WITH_TENSORRT=OFF"]
    flags = ["-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O0"]
    run("cmake", "-S", folder, "-B", tmp_path / "build", *options, *off, *flags)
    build(tmp_path / "build")
    frame = np.full((8, 6, 3), 200, np.uint8)
    (tmp_path / "frame.ppm").write_bytes(b"P6 6 8 255\n" + frame.tobytes())
    command = [tmp_path / "build/inspect_one", folder / "model/tiny.onnx", "frame.ppm", "map.pgm"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert done.stdout.endswith(" anomalous\n")
    assert (tmp_path / "map.pgm").stat().st_size == len(b"P5\n6 8\n255\n") + 48


def test_an_engine_is_taken_too(tmp_path):
    write_engine(tmp_path / "tiny.engine", (8, 6))
    written = write_cpp_project(tmp_path / "tiny.engine", tmp_path / "project")
    assert tmp_path / "project/model/tiny.engine" in written


def test_what_is_refused_writes_nothing(artifact, tmp_path):
    checkpoint = artifact.with_suffix(".safetensors")
    checkpoint.write_bytes(b"")
    bare = tmp_path / "bare"
    bare.mkdir()
    with unchanged(tmp_path):
        with pytest.raises(ExportError, match=r"opens \.onnx and \.engine"):
            write_cpp_project(checkpoint, tmp_path / "project")
        with pytest.raises(ExportError, match=r"no CMakeLists.txt, so there are no C\+\+"):
            write_cpp_project(artifact, tmp_path / "project", source=bare)
    artifact.write_bytes(b"another")
    with unchanged(tmp_path), pytest.raises(SpecError, match="mixed up"):
        write_cpp_project(artifact, tmp_path / "project")


def test_a_copy_that_fails_leaves_nothing(artifact, tmp_path):
    """The sources are there, an example is not."""
    source = tmp_path / "cpp"
    for name in LIBRARY:
        copy = shutil.copytree if (SOURCE / name).is_dir() else shutil.copy
        copy(SOURCE / name, (source / name).parent.mkdir(exist_ok=True) or source / name)
    with unchanged(tmp_path), pytest.raises(FileNotFoundError):
        write_cpp_project(artifact, tmp_path / "project", source=source)
