"""The formats of cameras: the library and Python see the same pixels, bit for bit."""

from ctypes import byref
from typing import get_args

import numpy as np
import pytest

from destseg_deploy.data.pixel_formats import MAXIMA, FrameFormat, to_rgb
from destseg_deploy.loading import load
from tests.cpp.library import Refused, empty_result, frame_of
from tests.tiny import unpacked

SIZE = (40, 24)
FORMATS = get_args(FrameFormat)


def camera(kind: str, size: tuple[int, int] = SIZE, seed: int = 0) -> np.ndarray:
    """Return noise of a format, of its whole range."""
    random = np.random.default_rng(seed)
    if kind in MAXIMA:
        return random.integers(0, MAXIMA[kind] + 1, size).astype(np.uint16)
    shape = {"rgb8_planar": (3, *size)}.get(kind, size)
    last = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "yuv422_8": 2, "yuv422_8_uyvy": 2}
    shape = (*shape, last[kind]) if kind in last else shape
    return random.integers(0, 256, shape, dtype=np.uint8)


def as_rgb(frame: np.ndarray) -> np.ndarray:
    return np.repeat(frame[..., None], 3, axis=2) if frame.ndim == 2 else frame


@pytest.fixture(scope="module")
def handle(library, packing):
    """The artifact whose map holds every bit of its input."""
    with library.open(packing[0], library.need("onnxruntime"), threads=1) as opened:
        yield opened


@pytest.mark.parametrize("kind", FORMATS)
def test_a_frame_of_the_inputs_size(handle, kind):
    frame = camera(kind)
    (found,), _ = handle.infer([frame_of(frame, kind)])
    assert np.array_equal(unpacked(found[None])[0], as_rgb(to_rgb(frame, kind)))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("size", [(81, 62), (16, 12), (40, 50)])
def test_a_frame_that_is_resized(handle, packing, kind, size):
    frame = camera(kind, size)
    maps, _ = handle.infer([frame_of(frame, kind)])
    with load(packing[0]) as python:
        assert np.array_equal(maps, python(frame, frame_format=kind).anomaly_map)


@pytest.mark.parametrize("kind", FORMATS)
def test_rows_with_gaps_and_bottom_up(handle, kind):
    """The same pixels with bytes between the rows, and stored from the last row on."""
    frame = camera(kind)
    planar = kind == "rgb8_planar"
    rows = np.concatenate(frame) if planar else frame
    data = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), -1)
    wide = np.zeros((len(rows), data.shape[1] + 7), np.uint8)
    wide[:, :-7] = data
    padded = frame_of(frame, kind, stride=wide.shape[1])
    padded.pixels = wide.ctypes.data
    turned = wide.reshape(3, 40, -1)[:, ::-1] if planar else wide[::-1]
    turned = np.ascontiguousarray(turned).reshape(len(rows), -1)
    upward = frame_of(frame, kind, stride=-wide.shape[1])
    upward.pixels = turned.ctypes.data + 39 * wide.shape[1]
    maps, _ = handle.infer([padded, upward])
    expected = as_rgb(to_rgb(frame, kind))
    for found in unpacked(maps):
        assert np.array_equal(found, expected)


def test_planes_with_a_distance_of_their_own(handle):
    memory = np.zeros(3 * 40 * 24 + 200, np.uint8)
    frame = camera("rgb8_planar")
    for i, plane in enumerate(frame):
        memory[i * 1060 : i * 1060 + 960] = plane.ravel()
    view = frame_of(frame, "rgb8_planar")
    view.pixels, view.plane = memory.ctypes.data, 1060
    maps, _ = handle.infer([view])
    assert np.array_equal(unpacked(maps)[0], frame.transpose(1, 2, 0))


@pytest.mark.parametrize("kind", MAXIMA)
@pytest.mark.parametrize("maximum", [1, 200, 1000, 4000, 65535])
def test_a_declared_maximum(handle, kind, maximum):
    frame = camera(kind)
    maps, _ = handle.infer([frame_of(frame, kind, maximum=maximum)])
    assert np.array_equal(unpacked(maps)[0], as_rgb(to_rgb(frame, kind, maximum)))


@pytest.mark.parametrize("kind", ["bayer_rg8", "bayer_bg8", "yuv422_8"])
def test_sizes_that_a_format_does_not_have(library, handle, kind):
    view = frame_of(camera(kind), kind)
    view.width = 1
    call = library.c.destseg_infer
    with pytest.raises(Refused, match=r"at least 2x2|an even width") as refused:
        library.check(call(handle.value, byref(view), 1, byref(empty_result()), None, 0))
    assert refused.value.status == "shape"


def test_a_wrong_rule_would_show(handle):
    """The control: two Bayer patterns, and two maxima, give other pixels."""
    frame = camera("bayer_rg8")
    (a,), _ = handle.infer([frame_of(frame, "bayer_rg8")])
    assert not np.array_equal(unpacked(a[None])[0], to_rgb(frame, "bayer_gr8"))
    wide = camera("mono12")
    (b,), _ = handle.infer([frame_of(wide, "mono12")])
    assert not np.array_equal(unpacked(b[None])[0], as_rgb(to_rgb(wide, "mono12", 4094)))
