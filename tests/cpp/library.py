"""Builds the embedding library as a user would, and calls it through ctypes as a host would."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
from ctypes import (
    POINTER,
    Structure,
    byref,
    c_char_p,
    c_double,
    c_float,
    c_int32,
    c_int64,
    c_size_t,
    c_uint32,
    c_void_p,
)
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
CPP = ROOT / "cpp"
STATUS = ("ok", "spec", "shape", "backend", "argument", "memory", "internal")
FORMATS = {"grey": 1, "rgb": 2, "bgr": 3}


def run(*command: object, **options) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; a failure shows what it printed."""
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=600, **options
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done


def need_tools() -> None:
    """Skip where no C++ can be built."""
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed; apt-get install cmake g++")


def configure(build: Path, *options: str, optimize: str = "-O1") -> None:
    """Configure the library; warnings are errors."""
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    flags = ["-DCMAKE_BUILD_TYPE=None", f"-DCMAKE_CXX_FLAGS={optimize}", "-DDESTSEG_WERROR=ON"]
    run("cmake", "-S", CPP, "-B", build, *generator, *flags, *options)


def build(folder: Path, *targets: str) -> None:
    """Build what was configured, on two cores."""
    chosen = ["--target", *targets] if targets else []
    run("cmake", "--build", folder, "--parallel", 2, *chosen)


def openvino_options() -> list[str]:
    """Where the OpenVINO of the pip wheel is; empty without one."""
    found = importlib.util.find_spec("openvino")
    if found is None or found.origin is None:
        return []
    return [f"-DOpenVINO_DIR={Path(found.origin).parent / 'cmake'}"]


def onnxruntime_options(folder: Path) -> list[str]:
    """Make a release package's layout of the wheel's library and some headers; else empty.

    The wheel has no headers. ``DESTSEG_ORT_INCLUDE`` names them, or they lie where
    ``cpp/get-onnxruntime-headers.sh`` puts them.
    """
    wheel = importlib.util.find_spec("onnxruntime")
    default = ROOT / ".venv/include/onnxruntime"
    headers = Path(os.environ.get("DESTSEG_ORT_INCLUDE", default))
    if wheel is None or wheel.origin is None or not (headers / "onnxruntime_c_api.h").is_file():
        return []
    (library,) = (Path(wheel.origin).parent / "capi").glob("libonnxruntime.so.*")
    (folder / "lib").mkdir(parents=True)
    (folder / "include").symlink_to(headers)
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / "lib" / name).symlink_to(library)
    return [f"-DONNXRUNTIME_ROOT={folder}"]


class Options(Structure):
    """destseg_options."""

    _fields_ = (
        ("struct_size", c_uint32),
        ("threads", c_int32),
        ("parallel", c_int32),
        ("reserved", c_uint32),
        ("backend", c_char_p),
        ("device", c_char_p),
        ("precision", c_char_p),
    )


class Info(Structure):
    """destseg_info."""

    _fields_ = (
        ("struct_size", c_uint32),
        *(
            (name, c_int32)
            for name in (
                "any_size height width network_height network_width map_height map_width "
                "batch_min batch_opt batch_max top_k has_threshold threshold_images"
            ).split()
        ),
        ("threshold_score", c_double),
        ("threshold_pixel", c_double),
    )


class Frame(Structure):
    """destseg_frame."""

    _fields_ = (
        ("pixels", c_void_p),
        ("stride", c_int64),
        ("height", c_int32),
        ("width", c_int32),
        ("format", c_int32),
        ("reserved", c_uint32),
    )


class Result(Structure):
    """destseg_result."""

    _fields_ = (("score", c_float), ("normalized_score", c_float), ("verdict", c_int32))


class Refused(Exception):
    """A call that failed: its status by name, and the last error."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = STATUS[status]
        self.text = text


class Library:
    """The shared library."""

    def __init__(self, path: Path) -> None:
        self.c = ctypes.CDLL(str(path))
        for name in ("destseg_version", "destseg_backends", "destseg_last_error"):
            getattr(self.c, name).restype = c_char_p
        self.c.destseg_close.argtypes = [c_void_p]
        self.c.destseg_close.restype = None
        self.c.destseg_open.argtypes = [c_char_p, POINTER(Options), POINTER(c_void_p)]
        self.c.destseg_get_info.argtypes = [c_void_p, POINTER(Info)]
        self.c.destseg_get_text.argtypes = [
            c_void_p,
            c_char_p,
            c_char_p,
            c_size_t,
            POINTER(c_size_t),
        ]
        results, maps = POINTER(Result), POINTER(c_float)
        self.c.destseg_infer.argtypes = [
            c_void_p,
            POINTER(Frame),
            c_int32,
            results,
            maps,
            c_size_t,
        ]
        self.c.destseg_judge.argtypes = [c_void_p, c_float, results]

    @property
    def backends(self) -> list[str]:
        """What was built in."""
        return self.c.destseg_backends().decode().split(", ")

    def need(self, backend: str) -> str:
        """Return a back end's name, or skip where it was not built in."""
        if backend not in self.backends:
            pytest.skip(f"{backend} was not found when the library was built")
        return backend

    def check(self, status: int) -> None:
        """Raise what a call returned."""
        if status != 0:
            raise Refused(status, self.c.destseg_last_error().decode("utf-8", "surrogatepass"))

    def open(self, path: Path | str, backend: str | None = None, **options: int) -> Handle:
        """Open an artifact."""
        device, precision = options.pop("device", None), options.pop("precision", None)
        given = Options(ctypes.sizeof(Options), **options)
        given.precision = None if precision is None else str(precision).encode()
        given.backend = None if backend is None else backend.encode()
        given.device = None if device is None else str(device).encode()
        handle = c_void_p()
        self.check(self.c.destseg_open(str(path).encode(), byref(given), byref(handle)))
        return Handle(self, handle)


class Handle:
    """An open artifact."""

    def __init__(self, library: Library, value: c_void_p) -> None:
        self.library = library
        self.value = value
        self.info = Info(ctypes.sizeof(Info))
        library.check(library.c.destseg_get_info(value, byref(self.info)))

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close; a second call does nothing."""
        self.library.c.destseg_close(self.value)

    def text(self, name: str) -> str:
        """Return a text of the artifact."""
        needed = c_size_t()
        get = self.library.c.destseg_get_text
        self.library.check(get(self.value, name.encode(), None, 0, byref(needed)))
        buffer = ctypes.create_string_buffer(needed.value)
        self.library.check(get(self.value, name.encode(), buffer, needed.value, None))
        return buffer.value.decode()

    def infer(self, frames: list[Frame]) -> tuple[np.ndarray, list[Result]]:
        """Score frames: their maps (N, H, W) and results."""
        array = (Frame * len(frames))(*frames)
        results = (Result * len(frames))()
        maps = np.zeros((len(frames), self.info.map_height, self.info.map_width), np.float32)
        pointer = maps.ctypes.data_as(POINTER(c_float))
        status = self.library.c.destseg_infer(
            self.value, array, len(frames), results, pointer, maps.size
        )
        self.library.check(status)
        return maps, list(results)

    def scores(self, images: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Score RGB or grey images of Python: maps and raw scores."""
        kept = [np.ascontiguousarray(image) for image in images]
        maps, results = self.infer([frame_of(image) for image in kept])
        return maps, np.array([result.score for result in results], np.float32)


def frame_of(image: np.ndarray, kind: str | None = None, stride: int = 0) -> Frame:
    """Return a view of a uint8 array (H, W) or (H, W, 3); the array must outlive it."""
    kind = kind or ("grey" if image.ndim == 2 else "rgb")
    return Frame(image.ctypes.data, stride, image.shape[0], image.shape[1], FORMATS[kind], 0)
