"""The library and its examples for Windows: cross-compiled with MinGW, run under Wine.

ONNX Runtime is the one of the Windows wheel, so all but the kernel is what runs on a Windows PC.
"""

import importlib.metadata
import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest

from destseg_export.cpp_project import write_cpp_project
from tests.cpp.library import CPP, UNITY, build, run
from tests.cpp.test_loading import wheel
from tests.cpp.test_package import FUNCTIONS
from tests.cpp.test_parity import noise, read, real_images, references, write_ppm

COMPILER = "x86_64-w64-mingw32-g++-posix"
FOLDER = "Prüfteil 検査"
"""A name that no single code page of Windows holds."""


@pytest.fixture(scope="module")
def programs(onnx_artifact, tmp_path_factory) -> Path:
    """The project that ``--with-cpp`` writes, built for Windows, with ONNX Runtime beside it."""
    if shutil.which(COMPILER) is None:
        pytest.skip(f"{COMPILER} is not installed; apt-get install g++-mingw-w64-x86-64")
    folder = tmp_path_factory.mktemp("windows")
    write_cpp_project(onnx_artifact, folder / FOLDER)
    toolchain = f"-DCMAKE_TOOLCHAIN_FILE={CPP / 'cmake/mingw.cmake'}"
    flags = ["-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1", "-DDESTSEG_WERROR=ON", *UNITY]
    run("cmake", "-S", folder / FOLDER, "-B", folder / "build", toolchain, *flags)
    build(folder / "build")
    return folder / "build"


@pytest.fixture(scope="module")
def wine(programs, tmp_path_factory):
    """Return a function that runs one of the programs."""
    if shutil.which("wine") is None:
        pytest.skip("wine is not installed; apt-get install wine64")
    with zipfile.ZipFile(wheel(importlib.metadata.version("onnxruntime"), "win_amd64")) as archive:
        (programs / "onnxruntime.dll").write_bytes(archive.read("onnxruntime/capi/onnxruntime.dll"))
    prefix = tmp_path_factory.mktemp("wine")
    kept = {k: v for k, v in os.environ.items() if not re.match("DESTSEG_.*_LIBRARY", k)}
    environment = {**kept, "WINEPREFIX": str(prefix), "WINEDEBUG": "-all"}

    def call(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = ["wine", str(programs / program), *map(str, arguments)]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=300, encoding="utf-8"
        )

    yield call
    subprocess.run(["wineserver", "-k"], env=environment, capture_output=True)


def write_frames(folder: Path, frames: list[np.ndarray]) -> None:
    folder.mkdir()
    for i, frame in enumerate(frames):
        write_ppm(folder / f"ü{i:03d}.ppm", frame)


def scores_of(done: subprocess.CompletedProcess[str]) -> dict[str, np.float32]:
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if ".ppm " in line]
    return {name: np.float32(score) for name, score, _ in lines}


def test_the_dll_exports_its_functions_and_has_a_version(programs):
    dll = programs / "destseg.dll"
    listed = run("x86_64-w64-mingw32-objdump", "-p", dll).stdout
    assert set(re.findall(r"\bdestseg_\w+", listed)) == FUNCTIONS
    assert set(re.findall(r"DLL Name: (\S+)", listed)) <= {
        "ADVAPI32.dll",  # the registry, where the processor's name is
        "KERNEL32.dll",
        "msvcrt.dll",
    }
    assert "FileVersion".encode("utf-16-le") in dll.read_bytes()


def test_its_part_of_a_nuget_package(programs, tmp_path):
    run("cmake", "--install", programs, "--component", "nuget", "--prefix", tmp_path)
    assert (tmp_path / "runtimes/win-x64/native/destseg.dll").is_file()


def test_scores_and_map_are_pythons_under_names_of_any_script(
    programs, wine, onnx_artifact, tmp_path
):
    """Names of files and folders in Japanese and German; the map, too, bit for bit as written."""
    model = programs.parent / FOLDER / "model" / onnx_artifact.name
    frames = [noise((64, 64), 0), noise((90, 70), 1)]
    write_frames(tmp_path / FOLDER, frames)
    score = references("onnxruntime", onnx_artifact)
    found = scores_of(wine("inspect_folder.exe", model, tmp_path / FOLDER))
    assert list(found.values()) == [score(frame)[1] for frame in frames]
    map_path = tmp_path / FOLDER / "karte.pgm"
    done = wine("inspect_one.exe", model, tmp_path / FOLDER / "ü001.ppm", map_path)
    assert done.returncode in (0, 2), done.stderr
    grey = (score(frames[1])[0] * np.float32(255) + np.float32(0.5)).astype(np.uint8)
    assert map_path.read_bytes() == b"P5\n64 64\n255\n" + grey.tobytes()


def test_a_tiled_artifact_has_pythons_scores(wine, tiled_artifact, tmp_path):
    frames = [noise((90, 108), seed) for seed in range(3)]
    write_frames(tmp_path / "tiles", frames)
    score = references("onnxruntime", tiled_artifact)
    found = scores_of(wine("inspect_folder.exe", tiled_artifact, tmp_path / "tiles"))
    assert list(found.values()) == [score(frame)[1] for frame in frames]
    assert len(set(found.values())) == 3


def test_a_missing_artifact_is_named_in_utf8(wine, tmp_path):
    frame = tmp_path / "frame.ppm"
    write_ppm(frame, noise((4, 4), 0))
    done = wine("inspect_one.exe", f"{FOLDER}.onnx", frame, tmp_path / "map.pgm")
    assert done.returncode == 1
    assert f"Error: {FOLDER}.onnx: no such file." in done.stderr


def test_real_images_have_pythons_scores(programs, wine, onnx_artifact, shared, tmp_path):
    """``DESTSEG_CPP_IMAGES`` sets how many; 160 were compared by hand."""
    count = int(os.environ.get("DESTSEG_CPP_IMAGES", "8"))
    paths = real_images(shared / "datasets/mvtec/screw")
    if not paths:
        pytest.skip(f"no images in {shared}/datasets/mvtec/screw")
    frames = [read(path) for path in paths[:: max(1, len(paths) // count)][:count]]
    write_frames(tmp_path / "screw", frames)
    found = scores_of(wine("inspect_folder.exe", onnx_artifact, tmp_path / "screw"))
    score = references("onnxruntime", onnx_artifact)
    assert list(found.values()) == [score(frame)[1] for frame in frames]
    assert len(found) == len(frames)
    print(f"{len(found)} images: the same bits under Wine as in Python")
