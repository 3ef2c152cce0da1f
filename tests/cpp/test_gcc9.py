"""The library built by GCC 9 and run on Debian 11, whose C++ library cannot read floats.

``make test-gcc9`` makes that system in a folder and runs this; it needs root and debootstrap.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from destseg_export.cpp_project import write_cpp_project
from tests.cpp.library import CPP, run, wheel_folder
from tests.cpp.test_numbers import PROGRAM, assert_pythons, texts_of_numbers
from tests.cpp.test_parity import noise, references
from tests.cpp.test_windows import scores_of, write_frames

INSIDE = "/destseg"
"""The folder of this test in the other system."""


@pytest.fixture(scope="module")
def system():
    """The root folder of Debian 11, with an empty folder for the test."""
    if "DESTSEG_GCC9" not in os.environ:
        pytest.skip("it needs another system; make test-gcc9")
    root = Path(os.environ["DESTSEG_GCC9"])
    folder = root / INSIDE[1:]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    yield root
    shutil.rmtree(folder)


def inside(system: Path, *command: str, **options) -> subprocess.CompletedProcess[str]:
    """Run a program of the other system, in the test's folder there."""
    return run("chroot", system, "env", "-C", INSIDE, *command, **options)


def test_its_library_cannot_read_floats(system):
    """What the other tests are for; a newer GCC reads them."""
    source = """
    #include <charconv>
    int main() { double number; std::from_chars(nullptr, nullptr, number); }
    """
    with pytest.raises(AssertionError, match="no matching function"):
        inside(system, "g++-9", "-std=c++17", "-fsyntax-only", "-xc++", "-", input=source)


def test_numbers_are_pythons(system):
    folder = system / INSIDE[1:]
    for part in ("src", "include"):
        shutil.copytree(CPP / part, folder / part)
    (folder / "numbers.cpp").write_text(PROGRAM)
    sources = ("numbers.cpp", "src/json.cpp", "src/text.cpp")
    inside(system, "g++-9", "-std=c++17", "-Isrc", "-Iinclude", *sources, "-o", "numbers")
    texts = texts_of_numbers()
    assert_pythons(texts, inside(system, "./numbers", input="\n".join(texts) + "\n").stdout)


@pytest.fixture(scope="module")
def built(system, onnx_artifact) -> Path:
    """The project around the artifact, a release without warnings."""
    write_cpp_project(onnx_artifact, system / INSIDE[1:] / "project")
    compilers = ("-DCMAKE_C_COMPILER=gcc-9", "-DCMAKE_CXX_COMPILER=g++-9")
    options = ("-DCMAKE_BUILD_TYPE=Release", "-DDESTSEG_WERROR=ON")
    inside(system, "cmake", "-S", "project", "-B", "build", *compilers, *options)
    inside(system, "cmake", "--build", "build")
    return system / INSIDE[1:]


def test_the_layout_of_nuget_is_right_with_the_oldest_cmake(system, built):
    """CMake 3.18, which is the oldest supported, is that system's."""
    component = ("--component", "nuget", "--prefix", "nuget")
    inside(system, "cmake", "--install", "build/destseg", *component)
    (library,) = (built / "nuget/runtimes").rglob("*native/*")
    assert library.name == "libdestseg.so"


def test_scores_are_pythons(system, built, onnx_artifact):
    """With ONNX Runtime beside the library, to the last bit."""
    runtime = wheel_folder("onnxruntime")
    if runtime is None:
        pytest.skip("onnxruntime is not installed")
    (library,) = runtime.glob("libonnxruntime.so.*")
    shutil.copy(library, built / "build/destseg")
    frames = [noise((64, 64), 0), noise((90, 70), 1)]
    write_frames(built / "frames", frames)
    model = f"project/model/{onnx_artifact.name}"
    found = scores_of(inside(system, "build/inspect_folder", model, "frames"))
    reference = references("onnxruntime", onnx_artifact)
    assert list(found.values()) == [reference(frame)[1] for frame in frames]
    assert len(set(found.values())) == 2
