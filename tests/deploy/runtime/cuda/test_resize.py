"""What surrounds resize.cu: bands, launches and memory."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from destseg_deploy.data.resize import SCALE, resize_matrix
from destseg_deploy.errors import BackendError, ShapeError
from destseg_deploy.runtime.cuda.bands import BandCache, GpuBands, frame_bands
from destseg_deploy.runtime.cuda.memory import array_at
from destseg_deploy.runtime.cuda.resize import (
    BLOCK,
    ROWS,
    FrameResize,
    FramesOnGpu,
    ResizeKernels,
)
from tests.deploy.runtime.cuda.resize_cases import expected, noise, upload

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture
def stream(device):
    opened = device.stream()
    yield opened
    opened.close()


@pytest.fixture
def kernels(device, stream):
    opened = ResizeKernels(device)
    yield opened
    opened.close()


def made(device):
    """Return how many pieces of memory were allocated so far."""
    return [name for name, _ in device.calls if name.startswith("allocate")]


# ---------------------------------------------------------------------------- bands


@settings(max_examples=80, deadline=None)
@given(source=st.integers(1, 700), target=st.integers(1, 300))
def test_bands_are_the_matrix(source, target):
    bands = frame_bands(source, target)
    whole = np.zeros((target, source), np.uint64)
    for k, row in enumerate(bands.weights):
        whole[np.arange(target), bands.starts + k] += row
    assert (whole == resize_matrix(source, target).astype(np.float64) * SCALE).all()
    assert bands.starts.min() >= 0
    assert bands.starts.max() + bands.taps <= source
    assert (np.diff(bands.starts) >= 0).all()
    assert bands.weights[0].any() or bands.weights[-1].any(), "no longer than they must be"


def test_bands_are_short_and_typed_as_the_kernel_reads_them():
    bands = frame_bands(4096, 256)
    assert bands.starts.dtype == np.int32
    assert bands.weights.dtype == np.uint32
    assert bands.weights.flags.c_contiguous
    assert bands.weights.shape == (bands.taps, 256)
    assert bands.taps <= 2 * 4096 // 256 + 1
    assert frame_bands(256, 256).taps == 1


@pytest.mark.parametrize(("source", "target"), [(0, 4), (4, 0)])
def test_bands_of_nothing_are_refused(source, target):
    with pytest.raises(ShapeError, match=f"from {source} to {target} pixels"):
        frame_bands(source, target)


def test_bands_lie_on_the_gpu_one_part_after_the_other(device, stream):
    bands = frame_bands(30, 12)
    there = GpuBands(bands, device, stream)
    assert (array_at(there.starts, 48).view(np.int32) == bands.starts).all()
    found = array_at(there.weights, 4 * bands.weights.size).view(np.uint32)
    assert (found.reshape(bands.weights.shape) == bands.weights).all()
    assert len(device.live) == 2, "the stream and the bands: pinned memory is given back"
    there.close()


def test_the_cache_is_bounded_and_keeps_what_was_used_last(device, stream, monkeypatch):
    monkeypatch.setattr("destseg_deploy.runtime.cuda.bands.KEPT", 3)
    cache = BandCache(frame_bands, device, stream)
    first = cache.get(10, 4)
    for source in (11, 12):
        cache.get(source, 4)
    assert cache.get(10, 4) is first
    before = len(made(device))
    cache.get(13, 4)  # 11 goes
    assert len(device.live) - 1 == 3
    assert cache.get(10, 4) is first
    assert len(made(device)) == before + 2, "one upload: a buffer and its pinned memory"
    cache.get(11, 4)
    assert len(made(device)) == before + 4
    cache.close()
    assert device.live == [stream]


def test_the_cache_never_drops_the_two_axes_of_a_frame(device, stream, monkeypatch):
    monkeypatch.setattr("destseg_deploy.runtime.cuda.bands.KEPT", 2)
    cache = BandCache(frame_bands, device, stream)
    for size in range(5, 9):
        vertical, horizontal = cache.get(size, 4), cache.get(size + 10, 4)
        assert vertical.taps > 0
        assert horizontal.taps > 0
        assert len(device.live) - 1 == 2
    cache.close()


# ---------------------------------------------------------------------------- frames


def test_frames_without_padding_need_no_numbers():
    frames = FramesOnGpu(1, 20, 30, "BGR", count=4)
    assert (frames.stride, frames.step, frames.channels) == (90, 1800, 3)
    grey = FramesOnGpu(1, 20, 30, "GREY", stride=32)
    assert (grey.stride, grey.step, grey.channels) == (32, 640, 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"order": "RGBA"}, "order 'RGBA', expected RGB, BGR, GREY"),
        ({"height": 0}, "height 0, expected 1 to 65535"),
        ({"width": 65536}, "width 65536"),
        ({"count": 0}, "count 0"),
        ({"stride": 30}, "stride of 30 bytes, expected at least 90 for 30 pixels of RGB"),
        ({"stride": -90}, "stride of -90 bytes"),
        ({"count": 2, "step": 1799}, "1799 bytes from frame to frame, expected at least 1800"),
    ],
)
def test_impossible_frames_are_refused(change, words):
    with pytest.raises(ShapeError, match=words):
        FramesOnGpu(**{"pointer": 1, "height": 20, "width": 30, **change})


@pytest.mark.parametrize("size", [(0, 4), (4, 65536)])
def test_an_impossible_size_is_refused(device, stream, kernels, size):
    with pytest.raises(ShapeError, match="expected 1 to 65535"):
        FrameResize(device, stream, size, kernels)
    assert not made(device)


# ---------------------------------------------------------------------------- launches


@pytest.mark.parametrize(
    ("order", "rows_grid", "columns_grid"),
    [("RGB", (4, 8, 2), (4, 100, 2)), ("GREY", (2, 8, 2), (2, 100, 2))],
)
def test_a_launch_covers_all_and_no_more(device, stream, kernels, order, rows_grid, columns_grid):
    frames = noise(2, 29, 40, 3 if order == "RGB" else 1)
    buffer, layout = upload(device, frames, order, 0, 0)
    target = device.allocate(2 * 100 * 256 * 3)
    resize = FrameResize(device, stream, (100, 256), kernels)
    resize(layout, target.pointer)
    assert (BLOCK, ROWS) == (192, 4), "the grids below are for these"
    assert stream.launches == [
        ("resize_rows", rows_grid, (192, 1, 1)),
        ("resize_columns", columns_grid, (192, 1, 1)),
    ]
    resize.close()
    buffer.close()
    target.close()


def test_frames_of_many_sizes_take_turns_on_one_stream(device, stream, kernels):
    """Memory grows while work that uses the old one waits in the stream."""
    resize = FrameResize(device, stream, (32, 48), kernels)
    kept, wanted = [], []
    target = device.allocate(12 * 32 * 48 * 3)
    for i in range(12):  # more than the cache holds, growing
        order = ("RGB", "BGR", "GREY")[i % 3]
        frames = noise(1, 20 + 9 * i, 15 + 11 * i, 1 if order == "GREY" else 3, seed=i)
        buffer, layout = upload(device, frames, order, i, 0)
        resize(layout, target.pointer + i * 32 * 48 * 3)
        kept.append(buffer)
        wanted.append(expected(frames, order, (32, 48))[0])
    stream.synchronize()
    found = array_at(target.pointer, target.size).reshape(12, 32, 48, 3)
    assert (found == np.stack(wanted)).all()
    resize.close()
    for buffer in (*kept, target):
        buffer.close()


def test_memory_that_grows_with_the_batch_outlives_the_work_before(device, stream, kernels):
    resize = FrameResize(device, stream, (8, 9), kernels)
    kept, wanted = [], []
    target = device.allocate(6 * 8 * 9 * 3)
    for frames in (noise(1, 50, 60, 3), noise(5, 50, 60, 3, seed=1)):
        buffer, layout = upload(device, frames, "RGB", 0, 0)
        resize(layout, target.pointer + len(wanted) * 8 * 9 * 3)
        kept.append(buffer)
        wanted.extend(expected(frames, "RGB", (8, 9)))
    stream.synchronize()
    found = array_at(target.pointer, target.size).reshape(6, 8, 9, 3)
    assert (found == np.stack(wanted)).all()
    for owned in (resize, *kept, target):
        owned.close()


def test_after_prepare_nothing_is_made_and_nothing_waits(device, stream, kernels):
    """So that the call can be recorded in a CUDA graph."""
    buffer, layout = upload(device, noise(2, 50, 60, 3), "RGB", 0, 0)
    target = device.allocate(2 * 8 * 9 * 3)
    resize = FrameResize(device, stream, (8, 9), kernels)
    resize.prepare(layout)
    before = len(made(device)), device.calls.count(("synchronize", 0))
    resize(layout, target.pointer)
    assert (len(made(device)), device.calls.count(("synchronize", 0))) == before
    for owned in (resize, buffer, target):
        owned.close()


def test_closing_waits_and_may_be_repeated(device, stream, kernels):
    frames = noise(1, 50, 60, 3)
    buffer, layout = upload(device, frames, "RGB", 0, 0)
    target = device.allocate(8 * 9 * 3)
    resize = FrameResize(device, stream, (8, 9), kernels)
    resize(layout, target.pointer)
    resize.close()  # the work was still waiting
    assert (array_at(target.pointer, target.size) == expected(frames, "RGB", (8, 9)).ravel()).all()
    resize.close()
    with pytest.raises(BackendError, match="after close"):
        resize(layout, target.pointer)
    buffer.close()
    target.close()
