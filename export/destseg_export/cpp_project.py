"""An artifact with a C++ project that runs it: for machines without Python.

The project holds the embedding library's sources (``cpp/`` of this repository), the two example
programs and the artifact with its spec. It builds with ``cmake -S DIR -B build``.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from destseg_deploy.errors import ExportError
from destseg_deploy.files import making, refuse_others, staging
from destseg_deploy.locks import locked
from destseg_deploy.spec import ModelSpec, name_lost_threshold, spec_path

PACKED = Path(__file__).resolve().with_name("cpp")
"""The library's sources in an installed wheel."""

SOURCE = PACKED if PACKED.is_dir() else Path(__file__).resolve().parents[2] / "cpp"
"""The library's sources: beside this file, or in a checkout."""

KINDS = (".onnx", ".engine")
"""Suffixes of the artifacts that the library opens."""

LIBRARY = ("CMakeLists.txt", "LICENSE", "README.md", "cmake", "csharp", "include", "src")
READERS = ("image.h", "bmp.h", "png.h", "pnm.h", "stb_image.h")
PROGRAMS = ("inspect.c", "inspect.cpp", "arguments.h", *READERS)

EDITED = (*PROGRAMS, "CMakeLists.txt")
"""Files that a user may change; existing ones stay."""

MADE_BY = "# Made by destseg-export"

CMAKE = f"""\
{MADE_BY}: cmake -S . -B build && cmake --build build
# Where the back ends are found, and what to set when they are not: destseg/README.md
cmake_minimum_required(VERSION 3.18)
project(inspection LANGUAGES C CXX)
set(CMAKE_C_STANDARD 99)
set(CMAKE_CXX_STANDARD 17)
add_subdirectory(destseg)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${{CMAKE_BINARY_DIR}})
set_target_properties(destseg PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${{CMAKE_BINARY_DIR}}) # a .dll

add_executable(inspect_one inspect.c)
target_link_libraries(inspect_one PRIVATE destseg::destseg)

add_executable(inspect_folder inspect.cpp)
target_link_libraries(inspect_folder PRIVATE destseg::destseg)
if(MINGW)  # else it needs MinGW's own DLLs beside it
  target_link_options(inspect_folder PRIVATE -static)
endif()
"""

README = """\
# {category}, {precision}: inspection without Python

    cmake -S . -B build && cmake --build build --config Release
    build/inspect_one model/{file} FRAME.png MAP.pgm
    build/inspect_folder model/{file} FOLDER

`model/` holds the artifact and its spec, which belong together. `destseg/` is the library; it loads
ONNX Runtime, OpenVINO or TensorRT when it runs, and its `README.md` says where it looks for them.
`inspect.c` and `inspect.cpp` are where to begin your own program; `destseg/csharp/` is for C#.
"""


def write_cpp_project(
    artifact: Path,
    folder: Path,
    *,
    source: Path = SOURCE,
    report: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Write a C++ project around an artifact.

    Args:
        artifact: ``.onnx`` or ``.engine``, its spec beside it.
        folder: Where to write; made if missing. Files of the same names are replaced, others stay.
            Nothing is written when anything fails.
        source: The folder ``cpp`` of this project's repository.
        report: Called with a line if a threshold that was set in the project is replaced.

    Returns:
        The files written, sorted.

    Raises:
        SpecError: If the spec is missing or was written for another file.
        ExportError: If the library cannot open such a file, or its sources are not there.
        OutputError: If a file of another project is there.
    """
    if artifact.suffix.lower() not in KINDS:
        raise ExportError(
            f"{artifact}: the C++ library opens {' and '.join(KINDS)}. Export the checkpoint "
            "first: destseg-export --checkpoint FILE"
        )
    spec = ModelSpec.read(artifact)
    spec.check_artifact(artifact)
    missing = [name for name in LIBRARY if not (source / name).exists()]
    if missing:
        raise ExportError(
            f"{source}: no {missing[0]}, so there are no C++ sources to copy. Install "
            "destseg-deploy again, or run destseg-export from a checkout."
        )
    refuse_others([folder / name for name in (*EDITED, "README.md")], _is_ours)
    with making(folder), locked(folder / "project", folder), staging(folder) as staged:
        name_lost_threshold(spec, folder / "model" / artifact.name, report)
        _fill(staged, artifact, spec, source)
        for name in EDITED:  # a user begins with these; changes are not undone
            if (folder / name).exists():
                (staged / name).unlink()
        written = [path.relative_to(staged) for path in staged.rglob("*") if path.is_file()]
    return sorted(folder / path for path in written)


def _is_ours(path: Path) -> bool:
    """Tell whether a file is of a project that this command wrote."""
    try:
        return path.with_name("CMakeLists.txt").read_text("utf-8").startswith(MADE_BY)
    except (OSError, ValueError):
        return False


def _fill(folder: Path, artifact: Path, spec: ModelSpec, source: Path) -> None:
    library, model = folder / "destseg", folder / "model"
    library.mkdir()
    model.mkdir()
    for name in LIBRARY:
        copy = shutil.copytree if (source / name).is_dir() else shutil.copy
        copy(source / name, library / name)
    for name in PROGRAMS:
        shutil.copy(source / "example" / name, folder / name)
    for path in (artifact, spec_path(artifact)):
        shutil.copy(path, model / path.name)
    text = README.format(category=spec.category, precision=spec.precision, file=artifact.name)
    (folder / "README.md").write_text(text, encoding="utf-8", errors="backslashreplace")
    (folder / "CMakeLists.txt").write_text(CMAKE, encoding="utf-8")
