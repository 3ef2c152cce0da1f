"""What is installed: symbols, headers, CMake package, pkg-config file, C# declarations."""

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import get_args

import pytest

from destseg_deploy.data.pixel_formats import FrameFormat
from tests.cpp.library import (
    CPP,
    FoundDefect,
    Frame,
    Info,
    Library,
    Options,
    Point,
    Result,
    Times,
    configure,
    run,
    wheel_folder,
)

HEADER = (CPP / "include/destseg.h").read_text()
FUNCTIONS = set(re.findall(r"\b(destseg_\w+)\(", re.sub(r"/\*.*?\*/", "", HEADER, flags=re.S)))


def test_only_the_functions_of_the_header_are_exported(library, prefix):
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    path = library.c._name
    listed = run("nm", "-D", "--defined-only", path).stdout.splitlines()
    exported = {line.split()[-1].split("@")[0] for line in listed} - {"DESTSEG_2"}
    assert exported == FUNCTIONS
    assert len(FUNCTIONS) == 18


def test_the_files_of_an_installation(prefix):
    names = {str(path.relative_to(prefix)) for path in prefix.rglob("*") if path.is_file()}
    stems = {re.sub(r"^lib[^/]*/(\w+-linux-gnu/)?", "lib/", name) for name in names}
    expected = {
        "include/destseg.h",
        "include/destseg.hpp",
        "lib/libdestseg.so",
        "lib/libdestseg.so.2",
        "lib/libdestseg.so.0.1.0",
        "lib/pkgconfig/destseg.pc",
        "lib/cmake/destseg/destsegConfig.cmake",
        "lib/cmake/destseg/destsegConfigVersion.cmake",
        "lib/cmake/destseg/destsegTargets.cmake",
        "lib/cmake/destseg/destsegTargets-none.cmake",
    }
    documents = {name for name in stems if name.startswith("share/")}
    assert stems - documents == expected
    assert {"share/doc/destseg/LICENSE", "share/destseg/example/inspect.c"} <= documents
    assert "share/destseg/csharp/Destseg/Predictor.cs" in documents
    assert not any("onnxruntime" in name for name in names), "only on demand"


def test_the_licence_is_the_projects():
    assert (CPP / "LICENSE").read_bytes() == (CPP.parent / "LICENSE").read_bytes()


@pytest.fixture
def bundled(library, prefix):
    """The build, told to install ONNX Runtime beside the library; as it was afterwards."""
    library.need("onnxruntime")
    folder, wheel = prefix.parent / "build", wheel_folder("onnxruntime").parent
    name = "-DDESTSEG_BUNDLE_ONNXRUNTIME="
    run("cmake", "-S", CPP, "-B", folder, name + str(wheel))
    yield folder
    run("cmake", "-S", CPP, "-B", folder, name)


def test_an_installation_that_is_moved_runs_with_nothing_else(bundled, examples, packing, tmp_path):
    """ONNX Runtime is found beside the library, without a variable; without it, the run fails."""
    run("cmake", "--install", bundled, "--prefix", tmp_path / "first")
    moved = (tmp_path / "first").rename(tmp_path / "moved")
    (library,) = moved.rglob("libdestseg.so.2")
    (runtime,) = library.parent.glob("libonnxruntime.so*")
    assert (moved / "share/doc/destseg/onnxruntime/LICENSE").is_file()
    (tmp_path / "frame.ppm").write_bytes(b"P6 24 40 255\n" + bytes(40 * 24 * 3))
    command = [examples / "inspect_one", packing[0], "frame.ppm", "map.pgm"]
    bare = {"PATH": "/usr/bin:/bin", "LD_LIBRARY_PATH": str(library.parent)}
    options = {"cwd": tmp_path, "env": bare, "capture_output": True, "text": True, "timeout": 60}
    assert subprocess.run(command, **options).stdout.startswith("score 0 ")
    runtime.unlink()
    done = subprocess.run(command, **options)
    assert done.returncode == 1
    assert f"{library.parent} (no libonnxruntime.so*)" in done.stderr


def test_archives_and_the_layout_of_nuget(bundled, tmp_path):
    """The .tar.gz is the installed tree; what NuGet takes lies in its folders for this system."""
    run("cpack", "--config", bundled / "CPackConfig.cmake", "-B", tmp_path)
    (archive,) = tmp_path.glob("destseg-*-linux-*.tar.gz")
    listed = run("tar", "tzf", archive).stdout
    for wanted in ("libdestseg.so.2", "libonnxruntime.so", "destseg.hpp", "onnxruntime/LICENSE"):
        assert wanted in listed
    nuget = tmp_path / "nuget"
    run("cmake", "--install", bundled, "--component", "nuget", "--prefix", nuget)
    names = {str(path.relative_to(nuget)) for path in nuget.rglob("*") if path.is_file()}
    (native,) = nuget.glob("runtimes/linux-*/native")
    assert {"destseg.nuspec", "LICENSE", "README.md"} <= names
    assert {path.name.split(".so")[0] for path in native.iterdir()} == {
        "libdestseg",
        "libonnxruntime",
    }
    Library(native / "libdestseg.so")  # a file, not a link to one that is not there


STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", "-I", CPP / "include"]


@pytest.mark.parametrize("standard", ["c99", "c11", "c17"])
def test_the_header_is_strict_c(prefix, standard, tmp_path):
    source = tmp_path / "host.c"
    source.write_text("#include <destseg.h>\nint main(void) { return destseg_version() == 0; }\n")
    run("cc", f"-std={standard}", *STRICT, source)


OPENCV = """
#include <cstddef>
#include <cstdint>
#define CV_VERSION "fake"
#define CV_8UC1 0
#define CV_8UC3 16
#define CV_32FC1 5
namespace cv {
struct Step { std::size_t operator[](int) const { return 30; } };
struct Mat {
  Mat(int, int, int, void *) {}
  int dims = 2, rows = 4, cols = 5;
  std::uint8_t *data = nullptr;
  Step step;
  int type() const { return CV_8UC3; }
  int channels() const { return 3; }
  Mat clone() const { return *this; }
};
}
"""
WITH_MAT = """
#include <destseg.hpp>
void use(const destseg::Predictor &predictor, const cv::Mat &mat) {
  const destseg::Prediction found = predictor.infer(mat);
  (void)found.map_mat(0);
}
"""


@pytest.mark.parametrize("standard", ["c++17", "c++20"])
def test_the_wrapper_is_strict_cpp_and_takes_mats_only_with_opencv(prefix, tmp_path, standard):
    """The fake cv::Mat has the members that the overload uses; OpenCV itself is not needed."""
    source = tmp_path / "host.cpp"
    flags = (f"-std={standard}", "-Wshadow", "-Wconversion", *STRICT, source)
    source.write_text("#include <destseg.hpp>\n")
    run("c++", *flags)
    source.write_text(OPENCV + WITH_MAT)
    run("c++", *flags)
    source.write_text(WITH_MAT)
    with pytest.raises(AssertionError, match="cv"):
        run("c++", *flags)


def test_a_host_is_built_by_pkg_config(prefix, library, tmp_path, engine):
    if shutil.which("pkg-config") is None:
        pytest.skip("pkg-config is not installed")
    (folder,) = prefix.rglob("pkgconfig")
    environment = {**os.environ, "PKG_CONFIG_PATH": str(folder)}
    flags = run("pkg-config", "--cflags", "--libs", "destseg", env=environment).stdout.split()
    source, program = tmp_path / "host.cpp", tmp_path / "host"
    source.write_text(
        "#include <cstdio>\n#include <destseg.hpp>\n#include <utility>\n"
        "int main(int, char **argv) try {\n"
        "  destseg::Predictor first(argv[1]);\n"
        "  const destseg::Predictor predictor(std::move(first));\n"
        "  std::uint8_t pixels[8 * 6 * 3] = {64};\n"
        "  const auto found = predictor.infer(destseg::rgb(pixels, 8, 6));\n"
        '  std::printf("%s %d %g\\n", predictor.text("category").c_str(),\n'
        "              predictor.info().height, double(found.map(0)[0]) * (1 << 24));\n"
        "  const std::filesystem::path named = argv[1];\n"
        "  const destseg::Predictor wide(named.wstring()), same(named);\n"
        "  const auto defects = wide.defects(found.map(0), 8, 6, 0);\n"
        '  std::printf("%zu %zu\\n", defects.size(), defects[0].contour.size());\n'
        "  predictor.infer(destseg::rgb(pixels, 0, 6));\n"
        "} catch (const destseg::ShapeError &error) {\n"
        '  std::printf("%d %s\\n", error.status(), error.what());\n'
        "}\n"
    )
    run("c++", "-std=c++17", source, *flags, "-o", program)
    paths = {**os.environ, "LD_LIBRARY_PATH": str(Path(library.c._name).parent)}
    done = subprocess.run([program, engine], capture_output=True, text=True, env=paths, timeout=60)
    first, counts, second = done.stdout.splitlines()
    assert (first, counts) == ("tiny 8 64", "1 1")
    assert second == "2 frame: expected uint8 (H, W, 3) or (H, W), got uint8 (0, 6, 3)."


def test_pkg_config_follows_an_installation_to_another_prefix(prefix, tmp_path):
    """As the README installs: the prefix is first named by cmake --install."""
    if shutil.which("pkg-config") is None:
        pytest.skip("pkg-config is not installed")
    other = tmp_path / "opt"
    run("cmake", "--install", prefix.parent / "build", "--prefix", other)
    (folder,) = other.rglob("pkgconfig")
    environment = {**os.environ, "PKG_CONFIG_PATH": str(folder)}
    found = run("pkg-config", "--variable=includedir", "destseg", env=environment).stdout.strip()
    assert Path(found).resolve() == other / "include"
    assert (Path(found) / "destseg.h").is_file()
    assert str(prefix) not in next(folder.glob("*.pc")).read_text()


def test_pkg_config_leaves_absolute_folders_as_they_are(prefix, tmp_path):
    """As distributions set them."""
    if shutil.which("pkg-config") is None:
        pytest.skip("pkg-config is not installed")
    folders = {"libdir": tmp_path / "arch/lib", "includedir": tmp_path / "headers"}
    given = [f"-DCMAKE_INSTALL_{name.upper()}={folder}" for name, folder in folders.items()]
    configure(tmp_path / "build", f"-DCMAKE_INSTALL_PREFIX={tmp_path / 'usr'}", *given)
    environment = {**os.environ, "PKG_CONFIG_PATH": str(tmp_path / "build")}
    for name, folder in {**folders, "prefix": tmp_path / "usr"}.items():
        found = run("pkg-config", f"--variable={name}", "destseg", env=environment).stdout
        assert found.strip() == str(folder)


CSHARP = (CPP / "csharp/Destseg/Native.cs").read_text()
ENUMS = (CPP / "csharp/Destseg/Types.cs").read_text()
TYPES = {
    "uint": ctypes.c_uint32,
    "int": ctypes.c_int32,
    "long": ctypes.c_int64,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
    "IntPtr": ctypes.c_void_p,
}


def fields_of_c(name: str) -> list[str]:
    """Return the names of a struct's fields in destseg.h, in CamelCase."""
    body = re.search(rf"typedef struct {name} {{(.*?)}} {name};", HEADER, re.S).group(1)
    body = re.sub(r"/\*.*?\*/", "", body, flags=re.S)
    names = re.findall(r"\w[\s*]+(\w+);", body)
    return ["".join(part.capitalize() for part in field.split("_")) for field in names]


@pytest.mark.parametrize(
    ("name", "twin", "python"),
    [
        ("Options", "destseg_options", Options),
        ("Info", "destseg_info", Info),
        ("Frame", "destseg_frame", Frame),
        ("Result", "destseg_result", Result),
        ("Defect", "destseg_defect", FoundDefect),
        ("Times", "destseg_times", Times),
    ],
)
def test_csharp_and_python_structs_are_those_of_the_header(name, twin, python):
    body = re.search(rf"internal struct Native{name}\n    {{(.*?)\n    }}", CSHARP, re.S).group(1)
    fields = re.findall(r"public (\w+) (\w+);", body)
    assert [field for _, field in fields] == fields_of_c(twin)
    kinds = [ctypes.c_void_p if k is ctypes.c_char_p else k for _, k in python._fields_]
    assert [TYPES[kind] for kind, _ in fields] == kinds
    names = ["".join(p.capitalize() for p in field.split("_")) for field, _ in python._fields_]
    assert names == fields_of_c(twin)


def test_the_sizes_of_structs_are_what_the_compiler_says(prefix, tmp_path):
    source, program = tmp_path / "sizes.c", tmp_path / "sizes"
    names = ("options", "info", "frame", "result", "defect", "point")
    sizes = ", ".join(f"sizeof(destseg_{name})" for name in names)
    source.write_text(
        "#include <destseg.h>\n#include <stdio.h>\nint main(void) {\n"
        f'  printf("%zu %zu %zu %zu %zu %zu", {sizes});\n  return 0;\n}}\n'
    )
    run("cc", "-I", CPP / "include", source, "-o", program)
    found = [int(size) for size in run(program).stdout.split()]
    assert found == [
        ctypes.sizeof(kind) for kind in (Options, Info, Frame, Result, FoundDefect, Point)
    ]


def numbers_of(enum: str) -> dict[str, int]:
    """Return the names of an enum in C#, without case and dividers, with their numbers."""
    body = re.search(rf"enum {enum} : int\n    {{(.*?)\n    }}", ENUMS, re.S).group(1)
    names = re.findall(r"^ +(\w+)(?: = (-?\d+))?,?$", body, re.M)
    return {name.lower(): int(number or i) for i, (name, number) in enumerate(names)}


def test_csharp_declares_functions_and_constants_of_the_header():
    declared = set(re.findall(r"static extern \w+ (destseg_\w+)\(", CSHARP))
    assert declared == FUNCTIONS
    version = re.search(r"AbiVersion = (\d+)", CSHARP).group(1)
    assert f"#define DESTSEG_ABI_VERSION {version}\n" in HEADER
    for name, number in numbers_of("Status").items():
        prefix_ = "DESTSEG_" if number == 0 else "DESTSEG_ERROR_"
        assert re.search(rf"#define {prefix_}{name.upper()} {number}\b", HEADER)
    for name, number in numbers_of("Verdict").items():
        assert re.search(rf"#define DESTSEG_{name.upper()} \(?{number}\b", HEADER)


def test_pixel_formats_have_the_same_numbers_in_c_csharp_and_python():
    defined = dict(re.findall(r"#define DESTSEG_(\w+\d\w*) (\d+)", HEADER))
    of_c = {name.lower().replace("grey8", "mono8"): int(n) for name, n in defined.items()}
    of_python = {name: i for i, name in enumerate(get_args(FrameFormat), start=1)}
    assert of_c == of_python
    of_csharp = numbers_of("PixelFormat")
    assert len(of_csharp) == len(of_python)
    for name, number in of_python.items():
        assert of_csharp[name.replace("_8", "").replace("_", "")] == number


def test_the_library_of_the_build_is_the_one_installed(library):
    assert isinstance(library, Library)
    assert "prefix" in library.c._name
