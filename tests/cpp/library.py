"""Builds the embedding library as a user would, and calls it through ctypes as a host would."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
from ctypes import (
    POINTER,
    Array,
    Structure,
    byref,
    c_char_p,
    c_double,
    c_float,
    c_int32,
    c_int64,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
)
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from destseg_deploy.data.defects import Defect
from destseg_deploy.data.pixel_formats import FrameFormat, layout_of

ROOT = Path(__file__).resolve().parents[2]
CPP = ROOT / "cpp"
STATUS = ("ok", "spec", "shape", "backend", "argument", "memory", "internal", "timeout")
FORMATS = {name: number for number, name in enumerate(get_args(FrameFormat), start=1)}


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


UNITY = ("-DCMAKE_UNITY_BUILD=ON", "-DCMAKE_UNITY_BUILD_BATCH_SIZE=30")
"""Compile all sources as one: a fifth of the time. The library of most tests is not built so."""


def configure(build: Path, *options: str, optimize: str = "-O1") -> None:
    """Configure the library; warnings are errors."""
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    flags = ["-DCMAKE_BUILD_TYPE=None", f"-DCMAKE_CXX_FLAGS={optimize}", "-DDESTSEG_WERROR=ON"]
    run("cmake", "-S", CPP, "-B", build, *generator, *flags, *options)


def build(folder: Path, *targets: str) -> None:
    """Build what was configured, on two cores."""
    chosen = ["--target", *targets] if targets else []
    run("cmake", "--build", folder, "--parallel", 2, *chosen)


WHEELS = {"onnxruntime": "capi", "openvino": "libs"}
"""Back ends whose pip wheels hold the library that is loaded, and in which folder of theirs."""


def wheel_folder(backend: str) -> Path | None:
    """Return the folder of the installed pip wheel that holds a back end's library."""
    found = importlib.util.find_spec(backend)
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent / WHEELS[backend]


def name_libraries(fake: Path) -> None:
    """Tell this process, and those it starts, where the back ends' libraries are.

    Args:
        fake: The fake TensorRT, which stands for the CUDA runtime as well.
    """
    for backend in WHEELS:
        folder = wheel_folder(backend)
        if folder is not None:
            os.environ[f"DESTSEG_{backend.upper()}_LIBRARY"] = str(folder)
    for name in ("TENSORRT", "CUDART"):
        os.environ[f"DESTSEG_{name}_LIBRARY"] = str(fake)


class Options(Structure):
    """destseg_options."""

    _fields_ = (
        ("struct_size", c_uint32),
        ("threads", c_int32),
        ("parallel", c_int32),
        ("tuned", c_int32),
        ("backend", c_char_p),
        ("device", c_char_p),
        ("precision", c_char_p),
        ("worker_cores", c_char_p),
        ("no_spinning", c_int32),
        ("queue", c_int32),
        ("log", c_void_p),
        ("log_context", c_void_p),
    )


LogFunction = ctypes.CFUNCTYPE(None, c_void_p, c_int32, c_char_p)
"""destseg_log_function."""


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
        ("struct_size", c_uint32),
        ("format", c_int32),
        ("pixels", c_void_p),
        ("stride", c_int64),
        ("height", c_int32),
        ("width", c_int32),
        ("maximum", c_int32),
        ("reserved", c_uint32),
        ("plane", c_int64),
    )


class Result(Structure):
    """destseg_result."""

    _fields_ = (
        ("struct_size", c_uint32),
        ("score", c_float),
        ("normalized_score", c_float),
        ("verdict", c_int32),
    )


def empty_result() -> Result:
    """Return a result as a host passes it."""
    return Result(ctypes.sizeof(Result))


class Times(Structure):
    """destseg_times."""

    _fields_ = (
        ("struct_size", c_uint32),
        ("frames", c_int32),
        ("waited_ms", c_double),
        ("prepared_ms", c_double),
        ("inferred_ms", c_double),
        ("finished_ms", c_double),
    )


class Point(Structure):
    """destseg_point."""

    _fields_ = (("x", c_int32), ("y", c_int32))


class FoundDefect(Structure):
    """destseg_defect."""

    _fields_ = (
        ("struct_size", c_uint32),
        ("x", c_int32),
        ("y", c_int32),
        ("width", c_int32),
        ("height", c_int32),
        ("peak", c_float),
        ("peak_x", c_int32),
        ("peak_y", c_int32),
        ("area", c_int64),
        ("centroid_x", c_double),
        ("centroid_y", c_double),
        ("first_point", c_int32),
        ("points", c_int32),
    )


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
        waiting = [c_int32, results, maps, c_size_t]
        self.c.destseg_submit.argtypes = [
            c_void_p,
            POINTER(Frame),
            c_int32,
            c_int32,
            POINTER(c_uint64),
        ]
        self.c.destseg_wait.argtypes = [c_void_p, c_uint64, c_int32, *waiting]
        self.c.destseg_crop.argtypes = [POINTER(Frame), *[c_int32] * 4, POINTER(Frame)]
        self.c.destseg_map_at_frame.argtypes = [
            c_void_p,
            c_void_p,
            c_int32,
            c_int32,
            c_void_p,
            c_size_t,
        ]
        self.c.destseg_judge.argtypes = [c_void_p, c_float, results]
        self.c.destseg_reload.argtypes = [c_void_p, c_char_p]
        self.c.destseg_warm_up.argtypes = [c_void_p]
        self.c.destseg_get_times.argtypes = [c_void_p, POINTER(Times)]
        self.c.destseg_defects.argtypes = [
            c_void_p,
            c_void_p,
            c_int32,
            c_int32,
            c_double,
            POINTER(FoundDefect),
            c_int32,
            POINTER(Point),
            c_int32,
            POINTER(c_int32),
            POINTER(c_int32),
        ]

    @property
    def backends(self) -> list[str]:
        """What was built in."""
        return self.c.destseg_backends().decode().split(", ")

    def need(self, backend: str) -> str:
        """Return a back end's name, or skip where its library is not installed."""
        assert backend in self.backends
        if backend in WHEELS:
            pytest.importorskip(backend)
        return backend

    def check(self, status: int) -> None:
        """Raise what a call returned."""
        if status != 0:
            raise Refused(status, self.c.destseg_last_error().decode("utf-8", "surrogatepass"))

    def open(self, path: Path | str, backend: str | None = None, **options: Any) -> Handle:
        """Open an artifact; options are those of destseg_options, texts as ``str``."""
        options["backend"] = backend
        encoded = {k: v.encode() if isinstance(v, str) else v for k, v in options.items()}
        given = Options(ctypes.sizeof(Options), **encoded)
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
        results = (Result * max(len(frames), 1))()
        results[0].struct_size = ctypes.sizeof(Result)
        maps = np.zeros((len(frames), self.info.map_height, self.info.map_width), np.float32)
        pointer = maps.ctypes.data_as(POINTER(c_float))
        status = self.library.c.destseg_infer(
            self.value, array, len(frames), results, pointer, maps.size
        )
        self.library.check(status)
        return maps, list(results)[: len(frames)]

    def submit(self, frames: list[Frame], timeout_ms: int = -1) -> int:
        """Hand frames over; return the ticket."""
        array, ticket = (Frame * len(frames))(*frames), c_uint64()
        submit = self.library.c.destseg_submit
        self.library.check(submit(self.value, array, len(frames), timeout_ms, byref(ticket)))
        return ticket.value

    def wait(
        self, ticket: int, count: int = 1, timeout_ms: int = -1
    ) -> tuple[np.ndarray, list[Result]]:
        """Collect the answers of a ticket: maps (N, H, W) and results."""
        results = (Result * count)(empty_result())
        maps = np.zeros((count, self.info.map_height, self.info.map_width), np.float32)
        pointer = maps.ctypes.data_as(POINTER(c_float))
        wait = self.library.c.destseg_wait
        self.library.check(wait(self.value, ticket, timeout_ms, count, results, pointer, maps.size))
        return maps, list(results)

    def times(self) -> Times:
        """Return where the time of the last call went."""
        times = Times(ctypes.sizeof(Times))
        self.library.check(self.library.c.destseg_get_times(self.value, byref(times)))
        return times

    def scores(self, images: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Score RGB or grey images of Python: maps and raw scores."""
        kept = [np.ascontiguousarray(image) for image in images]
        maps, results = self.infer([frame_of(image) for image in kept])
        return maps, np.array([result.score for result in results], np.float32)

    def defects(
        self, anomaly_map: np.ndarray, size: tuple[int, int], threshold: float = -1
    ) -> list[Defect]:
        """Return the defects in a map as Python has them."""
        count, point_count = c_int32(), c_int32()
        found: Array[FoundDefect] | None = None
        points: Array[Point] | None = None
        for _ in range(2):  # how many there are, then what they are
            room, points_room = count.value, point_count.value
            if room:
                found, points = (FoundDefect * room)(), (Point * points_room)()
                found[0].struct_size = ctypes.sizeof(FoundDefect)
            status = self.library.c.destseg_defects(
                self.value,
                np.ascontiguousarray(anomaly_map, np.float32).ctypes.data,
                *size,
                threshold,
                found,
                room,
                points,
                points_room,
                byref(count),
                byref(point_count),
            )
            self.library.check(status)
        contours = np.array([(point.x, point.y) for point in points or ()], np.int32)
        return [
            Defect(
                (defect.x, defect.y, defect.width, defect.height),
                defect.area,
                defect.peak,
                (defect.peak_x, defect.peak_y),
                (defect.centroid_x, defect.centroid_y),
                contours[defect.first_point : defect.first_point + defect.points],
            )
            for defect in found or ()
        ]


def frame_of(
    image: np.ndarray, kind: str | None = None, stride: int = 0, maximum: int | None = None
) -> Frame:
    """Return a view of an array of a format; the array must outlive it."""
    kind = kind or ("mono8" if image.ndim == 2 else "rgb8")
    frame = Frame(ctypes.sizeof(Frame), FORMATS[kind], image.ctypes.data, stride)
    channels = layout_of(kind).channels
    sides = [
        size for axis, size in enumerate(image.shape) if channels is None or axis != channels[0]
    ]
    frame.height, frame.width = sides
    frame.maximum = maximum or 0
    return frame
