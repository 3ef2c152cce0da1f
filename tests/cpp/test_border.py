"""The C ABI: memory layouts, judging, misuse, threads. Every refusal is a status and one line."""

import ctypes
import math
import os
import threading
from ctypes import byref, c_float, c_size_t, c_void_p
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from destseg_deploy.errors import BackendError, DestsegError, ShapeError, SpecError
from destseg_deploy.loading import load
from destseg_deploy.options import OpenVinoOptions
from destseg_deploy.predictor import Predictor
from destseg_deploy.runtime.base import Prediction
from destseg_deploy.spec import BatchRange, InputSpec, NetworkSpec, Threshold
from destseg_deploy.testing import FakeRuntime, fake_spec
from tests.cpp.conftest import write_engine
from tests.cpp.library import Frame, Info, Options, Refused, Result, empty_result, frame_of, run
from tests.tiny import unpacked, write_packing_model


@pytest.fixture
def handle(library, engine):
    with library.open(engine) as opened:
        yield opened


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)


def refused(library, call, status: str) -> str:
    """Return the one line with which a call is refused."""
    with pytest.raises(Refused) as error:
        library.check(call()) if callable(call) else call
    assert error.value.status == status
    assert "\n" not in error.value.text
    return error.value.text


def raised(kind: type[DestsegError], call) -> str:
    with pytest.raises(kind) as error:
        call()
    return str(error.value)


def test_versions(library):
    assert library.c.destseg_abi_version() == 2
    assert library.c.destseg_version() == b"0.1.0"


def test_info(handle):
    info = handle.info
    assert (info.height, info.width, info.map_height, info.map_width) == (8, 6, 8, 6)
    assert (info.batch_min, info.batch_opt, info.batch_max) == (1, 2, 4)
    assert (info.any_size, info.network_height, info.network_width, info.top_k) == (1, 8, 6, 1)
    assert (info.has_threshold, info.threshold_score, info.threshold_pixel) == (1, 0.25, 0.5)


def test_every_layout_gives_the_same_pixels(handle, image):
    wide = np.zeros((8, 9, 3), np.uint8)
    wide[:, :6] = image
    bgr = np.ascontiguousarray(image[..., ::-1])
    upside = np.ascontiguousarray(image[::-1])
    bottom_up = frame_of(upside, stride=-18)
    bottom_up.pixels = upside.ctypes.data + 7 * 18
    padded = frame_of(wide, stride=27)
    padded.width = 6
    maps, _ = handle.infer([frame_of(image), padded, frame_of(bgr, "bgr8"), bottom_up])
    for found in unpacked(maps):
        assert np.array_equal(found, image)


def test_grey_pixels_become_three_equal_channels(handle, image):
    grey = np.ascontiguousarray(image[..., 1])
    maps, _ = handle.scores([grey])
    assert np.array_equal(unpacked(maps)[0], np.repeat(grey[..., None], 3, axis=2))


def test_more_frames_than_a_batch_keep_their_order(handle):
    images = [np.full((8, 6, 3), value, np.uint8) for value in range(11)]
    maps, scores = handle.scores(images)
    assert [found[0, 0, 0] for found in unpacked(maps)] == list(range(11))
    assert np.all(np.diff(scores) > 0)


def test_a_smallest_batch_is_filled_up(library, tmp_path, image):
    path = tmp_path / "tiny.engine"
    write_engine(path, (8, 6), input=InputSpec(8, 6, BatchRange(3, 3, 3)))
    with library.open(path) as handle:
        maps, _ = handle.scores([image, image, image, image])
        assert all(np.array_equal(found, image) for found in unpacked(maps))


def test_maps_may_be_left_out(library, handle, image):
    result = empty_result()
    call = library.c.destseg_infer(handle.value, byref(frame_of(image)), 1, byref(result), None, 0)
    assert call == 0
    assert result.score > 0


SCORES = [0.0, 0.1, 0.25, np.nextafter(np.float32(0.25), np.float32(1)), 0.3, 0.999, 1.0]


@pytest.mark.parametrize("threshold", [0.25, 0.1, 1.0, 0.0, 0.7, 0.9999999])
def test_scores_are_judged_as_in_python(library, tmp_path, threshold):
    path = tmp_path / "tiny.engine"
    spec = write_engine(path, (8, 6), threshold=Threshold(threshold, 0.5, "by hand"))
    predictor = Predictor(FakeRuntime(replace(fake_spec(), threshold=spec.threshold)))
    scores = np.array([*SCORES, threshold, np.float32(threshold)], np.float32)
    prediction = Prediction(np.zeros((len(scores), 1, 1), np.float32), scores)
    anomalous = predictor.is_anomalous(prediction)
    normalized = predictor.normalized_score(prediction)
    with library.open(path) as handle:
        for i, score in enumerate(scores):
            result = empty_result()
            library.check(library.c.destseg_judge(handle.value, c_float(score), byref(result)))
            assert result.verdict == anomalous[i], score
            assert np.float32(result.normalized_score) == normalized[i], score


def test_without_a_threshold_frames_are_undecided_and_judging_is_refused(library, tmp_path, image):
    path = tmp_path / "tiny.engine"
    spec = write_engine(path, (8, 6), threshold=None)
    with library.open(path) as handle:
        assert handle.info.has_threshold == 0
        assert math.isnan(handle.info.threshold_score)
        _, (result,) = handle.infer([frame_of(image)])
        assert result.verdict == -1
        assert math.isnan(result.normalized_score)
        text = refused(
            library,
            lambda: library.c.destseg_judge(handle.value, c_float(0.5), byref(empty_result())),
            "spec",
        )
    predictor = Predictor(FakeRuntime(replace(fake_spec(), artifact=spec.artifact)))
    prediction = Prediction(np.zeros((1, 1, 1), np.float32), np.zeros(1, np.float32))
    assert text == raised(SpecError, lambda: predictor.is_anomalous(prediction))


@pytest.mark.parametrize("shape", [(0, 6, 3), (8, 0, 3), (0, 0), (5, 0)])
def test_frames_without_pixels_are_refused_as_in_python(library, handle, shape):
    empty = np.zeros(shape, np.uint8)
    python = Predictor(FakeRuntime())
    view = frame_of(np.zeros((1, 1, 3)[: len(shape)], np.uint8))
    view.height, view.width = shape[:2]
    text = refused(library, lambda: call_infer(library, handle, view), "shape")
    if len(shape) == 3:
        # Python adds what to pass; what was wrong is said in the same words.
        assert raised(ShapeError, lambda: python(empty)).startswith(text)
    else:
        assert f"got uint8 {shape}" in text


def call_infer(library, handle, view: Frame, count: int = 1) -> int:
    return library.c.destseg_infer(handle.value, byref(view), count, byref(empty_result()), None, 0)


def test_no_frames_are_refused_as_in_python(library, handle, image):
    text = refused(library, lambda: call_infer(library, handle, frame_of(image), 0), "shape")
    assert text == raised(ShapeError, lambda: Predictor(FakeRuntime())([]))
    refused(library, lambda: call_infer(library, handle, frame_of(image), -5), "shape")


def test_another_size_than_the_camera_graphs_is_refused_as_in_python(library, tmp_path):
    path = tmp_path / "tiny.engine"
    spec = write_engine(path, (8, 6), network=NetworkSpec(16, 16))
    python = Predictor(FakeRuntime(spec))
    frame = np.zeros((7, 5, 3), np.uint8)
    with library.open(path) as handle:
        text = refused(library, lambda: call_infer(library, handle, frame_of(frame)), "shape")
    assert text == raised(ShapeError, lambda: python(frame))


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"format": 0}, "argument", "format 0, expected"),
        ({"format": 16}, "argument", "format 16, expected"),
        ({"struct_size": 0}, "argument", "struct_size 0, expected 48"),
        ({"maximum": 5}, "argument", "maximum 5 for format 2"),
        ({"plane": 5}, "argument", "plane 5 for format 2"),
        ({"pixels": None}, "argument", "pixels is null"),
        ({"reserved": 7}, "argument", "reserved 7, expected 0"),
        ({"stride": 17}, "argument", "a stride of 17 bytes, expected at least the 18"),
        ({"stride": -17}, "argument", "a stride of -17 bytes"),
        ({"stride": 2**62}, "argument", "at most 2^40"),
        ({"stride": -(2**63)}, "argument", "at most 2^40"),
        ({"height": -1}, "shape", "got uint8 (-1, 6, 3)"),
        ({"width": 2**31 - 1, "height": 2**31 - 1}, "shape", "expected 1 to 65536 on each side"),
    ],
)
def test_impossible_frames_are_refused(library, handle, image, change, status, words):
    view = frame_of(image)
    for name, value in change.items():
        setattr(view, name, value)
    assert words in refused(library, lambda: call_infer(library, handle, view), status)
    maps, _ = handle.scores([image])  # and the handle still works
    assert np.array_equal(unpacked(maps)[0], image)


def test_short_buffers_are_refused_and_not_touched(library, handle, image):
    maps = np.full(2 * 48, -1, np.float32)
    frames = (Frame * 2)(frame_of(image), frame_of(image))
    pointer = maps.ctypes.data_as(ctypes.POINTER(c_float))
    results = (Result * 2)(empty_result())
    call = library.c.destseg_infer
    text = refused(library, lambda: call(handle.value, frames, 2, results, pointer, 95), "argument")
    assert text == "maps: room for 95 floats, expected 96 (2 maps of 8 x 6)."
    assert np.all(maps == -1)
    buffer, needed = ctypes.create_string_buffer(b"x" * 4, 4), c_size_t()
    get = library.c.destseg_get_text
    call_text = (handle.value, b"category", buffer, 4, byref(needed))
    text = refused(library, lambda: get(*call_text), "argument")
    assert text == "buffer: 4 bytes, expected at least 5."
    assert (buffer.raw, needed.value) == (b"\0xxx", 5)


def test_null_pointers_are_refused(library, handle, engine, image):
    c, frame, result = library.c, byref(frame_of(image)), byref(empty_result())
    value, path = handle.value, str(engine).encode()
    calls = [
        lambda: c.destseg_open(None, None, byref(c_void_p())),
        lambda: c.destseg_open(path, None, None),
        lambda: c.destseg_get_info(value, None),
        lambda: c.destseg_get_info(None, byref(Info(ctypes.sizeof(Info)))),
        lambda: c.destseg_get_text(value, None, None, 0, None),
        lambda: c.destseg_get_text(value, b"category", None, 5, None),
        lambda: c.destseg_infer(None, frame, 1, result, None, 0),
        lambda: c.destseg_infer(value, None, 1, result, None, 0),
        lambda: c.destseg_infer(value, frame, 1, None, None, 0),
        lambda: c.destseg_judge(value, c_float(1), None),
    ]
    for call in calls:
        assert "null" in refused(library, call, "argument")
    c.destseg_close(None)


def test_structs_of_another_size(library, handle, engine):
    """An older header's shorter struct is taken; what is no size is refused."""
    short = Info(8)
    short.height = -7
    library.check(library.c.destseg_get_info(handle.value, byref(short)))
    assert (short.any_size, short.height) == (1, -7)
    for size in (0, 3, 5000):
        asked = (handle.value, byref(Info(size)))
        opened = (str(engine).encode(), byref(Options(size)), byref(c_void_p()))
        text = refused(library, partial(library.c.destseg_get_info, *asked), "argument")
        assert f"struct_size {size}" in text
        refused(library, partial(library.c.destseg_open, *opened), "argument")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threads": -1}, "threads -1"),
        ({"threads": 5000}, "threads 5000"),
        ({"parallel": 65}, "65"),
        ({"tuned": 9}, "tuned 9, expected 0 to 1"),
    ],
)
def test_impossible_options_are_refused(library, engine, options, words):
    with pytest.raises(Refused, match=words) as error:
        library.open(engine, **options)
    assert error.value.status == "argument"


@pytest.mark.parametrize("size", [4, 16, 20, 33, 39])
def test_options_cut_in_a_pointer_are_refused(library, engine, size):
    """Half a pointer would be followed; only sizes of a release are taken."""
    cut = Options(size)
    cut.backend = b"tensorrt"
    call = partial(library.c.destseg_open, str(engine).encode(), byref(cut), byref(c_void_p()))
    assert f"struct_size {size}, expected" in refused(library, call, "argument")


@pytest.mark.parametrize("value", [0, 1])
def test_options_of_a_newer_header_are_taken_only_when_zero(library, engine, value):
    longer = (ctypes.c_uint8 * (ctypes.sizeof(Options) + 8))()
    longer[ctypes.sizeof(Options) + 7] = value
    options = ctypes.cast(longer, ctypes.POINTER(Options))
    options.contents.struct_size = len(longer)
    handle = c_void_p()
    call = partial(library.c.destseg_open, str(engine).encode(), options, byref(handle))
    if value:
        assert "newer than this library" in refused(library, call, "argument")
    else:
        library.check(call())
    library.c.destseg_close(handle)


def test_precision_is_openvinos_and_one_of_two(library, engine, packing):
    with pytest.raises(Refused, match="precision 'fp32' was given, but the back end is 'tensorrt'"):
        library.open(engine, precision="fp32")
    text = raised(BackendError, lambda: OpenVinoOptions(precision="fp16"))
    with pytest.raises(Refused) as error:
        library.open(packing[0], library.need("openvino"), precision="fp16")
    assert error.value.status == "backend"
    assert error.value.text.startswith(text.rstrip("."))


def test_a_closed_handle_is_refused_everywhere(library, engine, image):
    handle = library.open(engine)
    handle.close()
    handle.close()
    other = library.open(engine)  # does not get the old handle's number
    calls = [
        lambda: library.c.destseg_get_info(handle.value, byref(Info(ctypes.sizeof(Info)))),
        lambda: library.c.destseg_get_text(handle.value, b"category", None, 0, None),
        lambda: call_infer(library, handle, frame_of(image)),
        lambda: library.c.destseg_judge(handle.value, c_float(1), byref(empty_result())),
        lambda: library.c.destseg_judge(c_void_p(2**47), c_float(1), byref(empty_result())),
    ]
    for call in calls:
        assert "the runtime is closed" in refused(library, call, "backend")
    other.close()


def test_a_failed_open_leaves_null(library, tmp_path):
    value = c_void_p(5)
    missing = str(tmp_path / "none.onnx").encode()
    assert library.c.destseg_open(missing, None, byref(value)) == 3
    assert value.value is None


def test_the_last_error_is_of_the_thread(library, handle):
    refused(library, lambda: library.c.destseg_get_info(handle.value, None), "argument")
    seen = []
    thread = threading.Thread(target=lambda: seen.append(library.c.destseg_last_error()))
    thread.start()
    thread.join()
    assert seen == [b""]
    assert b"info: null" in library.c.destseg_last_error()


def test_paths_and_devices_are_refused_as_in_python(library, tmp_path, packing):
    path, _ = packing
    missing = tmp_path / "none.onnx"
    text = refused(library, lambda: open_status(library, missing), "backend")
    expected = raised(BackendError, lambda: load(missing))
    assert text == narrowed(expected)
    other = tmp_path / "a.bin"
    other.write_bytes(b"")
    text = refused(library, lambda: open_status(library, other), "backend")
    assert text == narrowed(raised(BackendError, lambda: load(other)))
    for device in ("gpu", "cuda:", "cuda:x", "cuda:99999", "CPU", ""):
        with pytest.raises(Refused) as error:
            library.open(path, device=device)
        assert error.value.status == "backend"
        assert repr(device) in error.value.text
        if device not in ("gpu", "cuda:99999"):  # Python's OpenVINO has gpu; no machine so many
            assert raised(BackendError, lambda d=device: load(path, device=d)).startswith(
                f"device {device!r}: expected cpu, cuda"
            )
            assert error.value.text.startswith(f"device {device!r}: expected cpu, cuda")


def narrowed(text: str) -> str:
    """Return Python's list of suffixes without the checkpoints, which only Python opens."""
    assert ".onnx, .engine or .safetensors" in text
    return text.replace(".onnx, .engine or .safetensors", ".onnx or .engine")


def open_status(library, path) -> int:
    return library.c.destseg_open(str(path).encode(), None, byref(c_void_p()))


def test_back_ends_that_do_not_fit_are_refused(library, engine, packing):
    for path, backend in ((engine, "openvino"), (packing[0], "tensorrt"), (packing[0], "opencv")):
        with pytest.raises(Refused, match=backend) as error:
            library.open(path, backend)
        assert error.value.status == "backend"


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_file_that_is_no_model_is_refused(library, tmp_path, packing, backend):
    path = tmp_path / "tiny.onnx"
    for content in (b"", b"\0" * 100, packing[0].read_bytes()[:200]):
        path.write_bytes(content)
        spec = packing[1]
        record = type(spec.artifact).of(path)
        replace(spec, artifact=record).write(path)
        with pytest.raises(Refused, match=r"cannot open it|not those of its spec") as error:
            library.open(path, library.need(backend))
        assert error.value.status == "backend"
        assert "\n" not in error.value.text


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("change", ["input", "output", "name"])
def test_a_model_of_other_tensors_than_its_spec_is_refused(library, tmp_path, backend, change):
    path = tmp_path / "tiny.onnx"
    spec = write_packing_model(path, (8, 6))
    changes = {
        "input": {"input": replace(spec.input, height=9)},
        "output": {"output": replace(spec.output, width=9)},
        "name": {"output": replace(spec.output, score_name="other")},
    }
    replace(spec, **changes[change]).write(path)
    with pytest.raises(Refused, match="tensors are not those of its spec"):
        library.open(path, library.need(backend))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_threads_on_one_handle_and_on_many(stress, library, packing, backend):
    library.need(backend)
    run(stress, "threads", packing[0], 20, env={**os.environ, "DESTSEG_STRESS_BACKEND": backend})


@pytest.mark.parametrize("path", [b"caf\xe9.onnx", b"\xff.onnx", b"\xed\xa0\x80.onnx"])
def test_a_path_that_is_not_utf8_is_an_argument_error(library, path):
    """The third is half of a surrogate pair, which file names of Windows may hold."""
    call = partial(library.c.destseg_open, path, None, byref(c_void_p()))
    assert "is not UTF-8. Pass the path in UTF-8" in refused(library, call, "argument")


def test_frames_of_an_array_have_one_size(library, handle, image):
    frames = (Frame * 2)(frame_of(image), frame_of(image))
    frames[1].struct_size += 8
    call = partial(library.c.destseg_infer, handle.value, frames, 2, byref(empty_result()), None, 0)
    assert "expected the same in each frame" in refused(library, call, "argument")


@pytest.mark.parametrize("value", [0, 1])
def test_frames_and_results_of_a_newer_header(library, handle, image, value):
    """The elements of arrays are as long as their struct_size says; what is unknown must be 0."""

    class NewFrame(ctypes.Structure):
        _fields_ = (("known", Frame), ("more", ctypes.c_int64))

    class NewResult(ctypes.Structure):
        _fields_ = (("known", Result), ("more", ctypes.c_int64))

    other = np.ascontiguousarray(image[::-1])
    frames, results = (NewFrame * 2)(), (NewResult * 2)()
    for frame, pixels in zip(frames, (image, other), strict=True):
        frame.known = frame_of(pixels)
        frame.known.struct_size = ctypes.sizeof(NewFrame)
    frames[1].more = value
    results[0].known.struct_size = ctypes.sizeof(NewResult)
    given = (ctypes.cast(frames, ctypes.POINTER(Frame)), 2)
    taken = (ctypes.cast(results, ctypes.POINTER(Result)), None, 0)
    call = partial(library.c.destseg_infer, handle.value, *given, *taken)
    if value:
        assert "newer than this library" in refused(library, call, "argument")
        return
    library.check(call())
    _, expected = handle.scores([image, other])
    assert [result.known.score for result in results] == list(expected)
    assert [result.more for result in results] == [0, 0]
