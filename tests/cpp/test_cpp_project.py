"""A project written beside an artifact is whole: it builds and runs with nothing else."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from destseg_deploy.errors import ExportError, SpecError
from destseg_deploy.thresholds import by_hand, set_threshold
from destseg_export.cli import export
from destseg_export.cpp_project import LIBRARY, SOURCE, write_cpp_project
from tests.cpp.conftest import write_engine
from tests.cpp.library import UNITY, need_tools, wheel_folder
from tests.tiny import write_packing_model
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
    assert {
        "CMakeLists.txt",
        "README.md",
        "inspect.c",
        "inspect.cpp",
        "image.h",
        "stb_image.h",
    } <= names
    assert {"destseg/csharp/Destseg/Predictor.cs", "arguments.h"} <= names
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
    assert (tmp_path / "project/inspect.c").read_text() == "changed", "the user's own beginning"


def test_a_threshold_that_was_set_in_the_project_is_named(artifact, tmp_path):
    lines = []
    write_cpp_project(artifact, tmp_path / "project", report=lines.append)
    write_cpp_project(artifact, tmp_path / "project", report=lines.append)
    assert lines == []
    set_threshold(tmp_path / "project/model/tiny.onnx", by_hand(0.75))
    write_cpp_project(artifact, tmp_path / "project", report=lines.append)
    assert len(lines) == 1
    assert "its threshold 0.750000 (set by hand) is replaced" in lines[0]
    assert "--value 0.75 --pixel 0.75" in lines[0]


def steps() -> list[str]:
    """Return the README's commands from an artifact to a score, those of C++ and of C#."""
    text = (SOURCE / "README.md").read_text("utf-8")
    _, told = text.split("These commands score an image", 1)
    cpp, csharp = re.findall(r"```sh\n(.*?)```", told, re.S)[:2]
    return [*cpp.splitlines(), *csharp.splitlines()]


def test_the_steps_of_the_readme_give_a_score(artifact, tmp_path):
    """On a machine without Python: an empty folder, and an environment with PATH alone.

    Only the compiler's flags are ours, to be fast.
    """
    need_tools()
    pytest.importorskip("onnxruntime")
    write_cpp_project(artifact, tmp_path / "inspection")
    (tmp_path / "onnxruntime-linux-x64").symlink_to(wheel_folder("onnxruntime").parent)
    frame = Image.fromarray(np.full((8, 6, 3), 200, np.uint8))
    for name in ("frame.png", "frame.bmp"):
        frame.save(tmp_path / name)
    flags = shlex.join(["-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O0", *UNITY])
    text = "\n".join(steps()).replace("cable-fp32.onnx", "tiny.onnx")
    *lines, compiled, shown = text.replace(
        "-S inspection", f"-S inspection {flags}", 1
    ).splitlines()
    assert len(lines) == 4
    if shutil.which("mcs") is None or shutil.which("mono") is None:
        compiled = shown = "true"
    script = "\n".join(["set -e", *lines[:-1], lines[-1] + " || test $? = 2", compiled, shown])
    bare = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LC_ALL": "C.UTF-8"}
    options = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 300, "env": bare}
    done = subprocess.run(["bash", "-c", script], **options)
    assert done.returncode in (0, 2), done.stderr
    (score,) = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("score ")]
    assert (tmp_path / "map.pgm").stat().st_size == len(b"P5\n6 8\n255\n") + 48
    if compiled != "true":
        assert f"frame.bmp {score} NG" in done.stdout


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


def test_the_command_writes_it_beside_an_artifact(artifact, tmp_path):
    """A checkpoint is not needed."""
    runner, folder = CliRunner(), tmp_path / "project"
    done = runner.invoke(export, ["cpp", str(artifact), str(folder)])
    assert done.exit_code == 0, done.output
    assert (folder / "CMakeLists.txt").is_file()
    done = runner.invoke(export, ["cpp", str(tmp_path / "none.onnx"), str(folder)])
    assert done.exit_code != 0
    assert done.output.count("\n") <= 4
    assert "none.onnx" in done.output
