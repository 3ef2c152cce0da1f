"""Around the calls: the log, cores and spinning, too little memory, parts of frames, large maps."""

import ctypes
import os
import sys
import time
from ctypes import POINTER, byref, c_float
from pathlib import Path

import numpy as np
import pytest

from destseg_deploy.data.defects import enlarge_map
from destseg_deploy.data.pixel_formats import layout_of
from destseg_deploy.errors import BackendError
from destseg_deploy.options import OrtOptions
from destseg_deploy.spec import QuantizationRecord
from tests.cpp.library import (
    ROOT,
    Frame,
    LogFunction,
    Refused,
    Result,
    empty_result,
    frame_of,
    need_tools,
    run,
)
from tests.tiny import spec_of, unpacked, write_packing_model


def reported(library, path: Path, backend: str, **options) -> list[tuple[int, str]]:
    """Open an artifact; return what the log received."""
    lines: list[tuple[int, str]] = []
    log = LogFunction(lambda _, level, line: lines.append((level, line.decode())))
    pointer = ctypes.cast(log, ctypes.c_void_p).value
    library.open(path, backend, log=pointer, threads=1, **options).close()
    return lines


def test_the_log_says_who_opened_it_and_what_the_back_end_warns_of(library, tmp_path, packing):
    backend = library.need("onnxruntime")
    onnx = pytest.importorskip("onnx")
    ((level, line),) = reported(library, packing[0], backend, parallel=3)
    assert level == 1
    assert line.startswith(f"{packing[0]}: opened by onnxruntime 1.")
    assert line.endswith(" on cpu, 3 calls at once.")
    write_packing_model(tmp_path / "odd.onnx", (8, 6))
    model = onnx.load(tmp_path / "odd.onnx")
    unused = onnx.numpy_helper.from_array(np.zeros(3, np.float32), "needless")
    model.graph.initializer.append(unused)
    onnx.save_model(model, tmp_path / "odd.onnx")
    spec_of(tmp_path / "odd.onnx", "onnx", (8, 6)).write(tmp_path / "odd.onnx")
    lines = reported(library, tmp_path / "odd.onnx", backend)
    assert any(level == 2 and "needless" in line for level, line in lines)
    assert all("\n" not in line for _, line in lines)


def test_the_log_warns_of_an_artifact_made_for_tensorrt(library, packing, tmp_path):
    """As Python does; one for CPUs is not warned of."""
    backend = library.need("onnxruntime")
    for scheme, warned in (("s8", True), ("u8", False)):
        path = tmp_path / f"{scheme}.onnx"
        record = QuantizationRecord(quantiser="destseg", scheme=scheme, layers=("a",))
        write_packing_model(path, (8, 6), precision="int8", quantization=record)
        lines = reported(library, path, backend)
        assert any("quantised for TensorRT" in line for _, line in lines) == warned


def core_lists(before: set[str]) -> set[str]:
    """Return the sets of cores that this process's new threads may run on.

    Args:
        before: The threads that are not asked: some of other tests may be pinned, too.
    """
    tasks = set(os.listdir("/proc/self/task")) - before
    found = set()
    for task in tasks:
        lines = (Path("/proc/self/task") / task / "status").read_text().splitlines()
        found |= {line.split()[1] for line in lines if line.startswith("Cpus_allowed_list")}
    return found


def test_threads_are_pinned_to_the_worker_cores(library, packing):
    backend = library.need("onnxruntime")
    if not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core only")
    core, before = max(os.sched_getaffinity(0)), set(os.listdir("/proc/self/task"))
    with library.open(packing[0], backend, threads=2):
        assert str(core) not in core_lists(before)
    before = set(os.listdir("/proc/self/task"))
    with library.open(packing[0], backend, worker_cores=str(core)) as handle:
        deadline = time.monotonic() + 20  # a thread pins itself once it runs
        while str(core) not in core_lists(before) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert str(core) in core_lists(before)
        image = np.zeros((40, 24, 3), np.uint8)
        assert np.array_equal(unpacked(handle.scores([image])[0])[0], image)
    for options, words in (
        ({"worker_cores": "9999"}, "this process may not run on 9999, expected some of"),
        (
            {"worker_cores": str(core), "threads": 3},
            "threads 3 with 1 worker_cores",
        ),
    ):
        with pytest.raises(Refused, match=words):
            library.open(packing[0], backend, **options)


def test_a_core_that_is_named_twice_is_refused_as_in_python(library, packing):
    core = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    with pytest.raises(BackendError) as expected:
        OrtOptions(worker_cores=(core, core))
    backend, cores = library.need("onnxruntime"), f"{core},{core}"
    with pytest.raises(Refused) as refused:
        library.open(packing[0], backend, worker_cores=cores)
    assert refused.value.status == "backend"
    _, words = str(expected.value).split("): ", 1)
    assert refused.value.text == f"worker_cores '{cores}': {words}"


NO_THREADS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
typedef int Create(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
int pthread_create(pthread_t *thread, const pthread_attr_t *how, void *(*run)(void *), void *data) {
  if (getenv("NO_THREADS") != NULL) return EAGAIN;
  return ((Create *)dlsym(RTLD_NEXT, "pthread_create"))(thread, how, run, data);
}
"""
THREADLESS = """
import os, sys
from pathlib import Path
import numpy as np
from tests.cpp.library import Library, Refused, frame_of
library, artifact, backend = sys.argv[1:]
image = np.zeros((40, 24, 3), np.uint8)
it = Library(Path(library))
handle = it.open(artifact, backend, threads=1, parallel=3)
os.environ["NO_THREADS"] = "1"
calls = (lambda: handle.submit([frame_of(image)]), lambda: it.open(artifact, backend, threads=4))
for call in calls:
    try:
        call()
    except Refused as refused:
        print(refused.status, refused.text)
del os.environ["NO_THREADS"]
handle.wait(handle.submit([frame_of(image)]))
handle.close()
print("works")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD is of Linux")
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_threads_that_cannot_be_started_are_named(library, packing, tmp_path, backend):
    """It is no bug of the library, and no reason to export again."""
    library.need(backend)
    need_tools()
    (tmp_path / "none.c").write_text(NO_THREADS)
    run("cc", "-shared", "-fPIC", tmp_path / "none.c", "-o", tmp_path / "none.so", "-ldl")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LD_PRELOAD": str(tmp_path / "none.so")}
    given = [library.c._name, packing[0], backend]
    done = run(sys.executable, "-c", THREADLESS, *given, env=environment)
    queue, opening, last = done.stdout.splitlines()
    assert queue.startswith("backend queue: 3 threads cannot be started (")
    assert queue.endswith("). Pass a smaller parallel, or raise the limit of threads.")
    assert opening.startswith(f"backend {packing[0]}: threads cannot be started (")
    assert opening.endswith("). Set threads to a smaller number, or raise the limit of threads.")
    assert last == "works"


SPIN = """
import sys, time
from pathlib import Path
import numpy as np
from tests.cpp.library import Library
library, artifact, no_spinning = sys.argv[1:]
images = [np.zeros((512, 512, 3), np.uint8)]
options = {"threads": 2, "no_spinning": int(no_spinning)}
with Library(Path(library)).open(artifact, "onnxruntime", **options) as it:
    before = time.process_time()
    for _ in range(40):
        it.scores(images)
        time.sleep(0.005)
    print(time.process_time() - before)
"""


def test_threads_that_do_not_spin_take_less_time(library, tmp_path):
    library.need("onnxruntime")
    write_packing_model(tmp_path / "tiny.onnx", (512, 512))
    path = [library.c._name, tmp_path / "tiny.onnx"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    spun, slept = (
        float(run(sys.executable, "-c", SPIN, *path, no, env=environment).stdout) for no in (0, 1)
    )
    print(f"spinning {spun:.3f} s, sleeping {slept:.3f} s")
    assert slept < spun


HUNGRY = """
import resource, sys
from pathlib import Path
from tests.cpp.library import Library, Refused
library, small, large, backend = sys.argv[1:]
it = Library(Path(library))
it.open(small, backend, threads=1).close()
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (40 << 20),) * 2)
try:
    it.open(large, backend, threads=1)
except Refused as refused:
    print(refused.status, refused.text)
"""


def test_too_little_memory_is_named(library, packing, tmp_path):
    """Not a file that should be exported again; 24 MiB of weights, 40 MiB of room."""
    library.need("onnxruntime")
    onnx = pytest.importorskip("onnx")
    write_packing_model(tmp_path / "large.onnx", (40, 24))
    model = onnx.load(tmp_path / "large.onnx")
    weights = onnx.numpy_helper.from_array(np.zeros(6 << 20, np.float32), "weights")
    model.graph.initializer.append(weights)
    model.graph.output.append(onnx.helper.make_tensor_value_info("weights", 1, [6 << 20]))
    onnx.save_model(model, tmp_path / "large.onnx")
    spec_of(tmp_path / "large.onnx", "onnx", (40, 24)).write(tmp_path / "large.onnx")
    paths = [library.c._name, packing[0], tmp_path / "large.onnx", "onnxruntime"]
    done = run(sys.executable, "-c", HUNGRY, *paths, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.stdout.startswith(f"memory {tmp_path / 'large.onnx'}: not enough memory (")
    assert "take a machine with more" in done.stdout


def crop(library, frame: Frame, x: int, y: int, width: int, height: int) -> Frame:
    part = Frame()
    library.check(library.c.destseg_crop(byref(frame), x, y, width, height, byref(part)))
    return part


@pytest.mark.parametrize("kind", ["mono8", "bgr8", "rgba8", "mono12", "rgb8_planar", "yuv422_8"])
@pytest.mark.parametrize("upward", [False, True])
def test_a_part_is_what_a_copy_of_it_is(library, packing, kind, upward):
    """Of every kind of memory, top down and bottom up; the part has the input's size."""
    backend = library.need("onnxruntime")
    x, y = 6, 9
    channels = layout_of(kind).channels
    random = np.random.default_rng(1)
    high = 4096 if kind == "mono12" else 256
    kind_type = np.uint16 if kind == "mono12" else np.uint8
    depth = () if channels is None else (channels[1],)
    whole = random.integers(0, high, (70, 50, *depth), dtype=kind_type)
    copy = np.ascontiguousarray(whole[y : y + 40, x : x + 24])
    if channels is not None and channels[0] == 0:
        whole, copy = (np.ascontiguousarray(a.transpose(2, 0, 1)) for a in (whole, copy))
    if upward and kind != "rgb8_planar":
        flipped = np.ascontiguousarray(whole[::-1])
        frame = frame_of(flipped, kind)
        frame.pixels = flipped[-1].ctypes.data
        frame.stride = -flipped.strides[0]
    else:
        frame = frame_of(whole, kind)
    with library.open(packing[0], backend, threads=1) as handle:
        parts = [crop(library, frame, x, y, 24, 40), frame_of(copy, kind)]
        found, expected = (handle.infer([part])[0] for part in parts)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(("x", "y"), [(0, 0), (1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("kind", ["bayer_rg8", "bayer_gb8", "bayer_gr8", "bayer_bg8"])
def test_a_part_of_a_bayer_frame_keeps_its_colours(library, packing, kind, x, y):
    """But for its outermost pixels, which see no neighbours outside of it."""
    backend = library.need("onnxruntime")
    whole = np.random.default_rng(2).integers(0, 256, (60, 60), dtype=np.uint8)
    frame = frame_of(whole, kind)
    with library.open(packing[0], backend, threads=1) as handle:
        parts = [
            crop(library, frame, x + 2, y + 2, 24, 40),
            crop(library, frame, x + 3, y + 3, 24, 40),
        ]
        first, second = (unpacked(handle.infer([part])[0])[0] for part in parts)
    assert np.array_equal(first[2:-1, 2:-1], second[1:-2, 1:-2])


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ((-1, 0, 5, 5), "part: 5x5 pixels at (-1, 0), expected it inside of the frame of 50x70"),
        ((46, 0, 5, 5), "expected it inside"),
        ((0, 66, 5, 5), "expected it inside"),
        ((0, 0, 0, 5), "expected it inside"),
        ((2**31 - 1, 0, 2**31 - 1, 5), "expected it inside"),
        ((1, 0, 4, 5), "x 1 in YUV422, expected an even number"),
        ((0, 0, 5, 5), "pixels of YUV422, expected an even width"),
    ],
)
def test_parts_that_are_refused(library, part, words):
    frame = frame_of(np.zeros((70, 50, 2), np.uint8), "yuv422_8")
    with pytest.raises(Refused) as refused:
        crop(library, frame, *part)
    assert words in refused.value.text


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("mono8", {"height": -5}, "frame: 50x-5 pixels, expected 1 to 65536 on each side."),
        ("mono8", {"height": -(2**31)}, "expected 1 to 65536 on each side"),
        ("mono8", {"width": 0}, "expected 1 to 65536 on each side"),
        ("rgb8_planar", {"height": 2**31 - 1, "stride": 2**40}, "expected 1 to 65536 on each side"),
        ("mono8", {"width": 65537}, "expected 1 to 65536 on each side"),
        ("mono8", {"stride": 2**40 + 1}, "expected at most 2^40"),
    ],
)
def test_impossible_frames_have_no_parts(library, kind, changes, words):
    """They are refused before anything is computed from them, which could overflow."""
    frame = frame_of(np.zeros((3, 70, 50) if kind == "rgb8_planar" else (70, 50), np.uint8), kind)
    for name, value in changes.items():
        setattr(frame, name, value)
    with pytest.raises(Refused) as refused:
        crop(library, frame, 0, 3, 1, 1)
    assert words in refused.value.text


def test_a_part_has_the_size_of_its_frame(library, packing):
    """Of a newer header, too, in an array; what follows the part is not written."""

    class Longer(ctypes.Structure):
        _fields_ = (("known", Frame), ("more", ctypes.c_int64))

    image = np.random.default_rng(3).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    whole = Longer(frame_of(image))
    whole.known.struct_size = ctypes.sizeof(Longer)
    parts = (Longer * 3)()
    ctypes.memset(parts, 0xAA, ctypes.sizeof(parts))
    pointer = ctypes.POINTER(Frame)
    for i in range(2):
        given, taken = (ctypes.cast(byref(one), pointer) for one in (whole, parts[i]))
        library.check(library.c.destseg_crop(given, 5 + i, 7, 24, 40, taken))
    assert [part.known.struct_size for part in parts[:2]] == [ctypes.sizeof(Longer)] * 2
    assert [part.more for part in parts[:2]] == [0, 0]
    assert bytes(parts[2]) == b"\xaa" * ctypes.sizeof(Longer)
    maps = np.zeros((2, 40, 24), np.float32)
    results, floats = (Result * 2)(empty_result()), maps.ctypes.data_as(POINTER(c_float))
    with library.open(packing[0], library.need("onnxruntime"), threads=1) as handle:
        given = (ctypes.cast(parts, pointer), 2, results, floats, maps.size)
        library.check(library.c.destseg_infer(handle.value, *given))
    for i, found in enumerate(unpacked(maps)):
        assert np.array_equal(found, image[7:47, 5 + i : 29 + i])


def test_a_map_at_the_frames_size_holds_the_defects(library, engine):
    """Where it is above the threshold is the area of the defects; it is what Python resizes to."""
    low = np.random.default_rng(5).random((8, 6), dtype=np.float32)
    with library.open(engine) as handle:
        target = np.zeros((37, 29), np.float32)
        at = library.c.destseg_map_at_frame
        arguments = [handle.value, low.ctypes.data, 37, 29, target.ctypes.data]
        library.check(at(*arguments, target.size))
        found = handle.defects(low, (37, 29), 0.6)
        assert sum(defect.area for defect in found) == (target > np.float32(0.6)).sum() > 0
        for defect in found:
            assert target[defect.peak_at[1], defect.peak_at[0]] == np.float32(defect.peak)
        with pytest.raises(Refused, match="room for 1072 floats, expected 1073"):
            library.check(at(*arguments, target.size - 1))
        same = np.zeros((8, 6), np.float32)
        library.check(at(handle.value, low.ctypes.data, 8, 6, same.ctypes.data, 48))
        assert np.array_equal(same, low)
    assert np.array_equal(target, enlarge_map(low, (37, 29)))
