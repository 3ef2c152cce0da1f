"""What surrounds resize.cu: bands, launches, memory, and frames from the host."""

from __future__ import annotations

import shutil
from itertools import count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from destseg_deploy.data.resize import SCALE, resize_image, resize_matrix
from destseg_deploy.errors import BackendError, ShapeError
from destseg_deploy.runtime.gpu_frames import GpuFrames
from destseg_deploy.runtime.resize_bands import BandCache, Bands, DeviceBands
from destseg_deploy.runtime.resize_gpu import BLOCK, ROWS, DeviceFrames, GpuResize
from tests.deploy.host_device import HostDevice, bytes_at
from tests.deploy.resize_cases import expected, noise, upload

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture
def device(folder):
    opened = HostDevice(folder)
    yield opened
    opened.close()


# ---------------------------------------------------------------------------- bands


@settings(max_examples=80, deadline=None)
@given(source=st.integers(1, 700), target=st.integers(1, 300))
def test_bands_are_the_matrix(source, target):
    bands = Bands.between(source, target)
    whole = np.zeros((target, source), np.uint64)
    for k, row in enumerate(bands.weights):
        whole[np.arange(target), bands.starts + k] += row
    assert (whole == resize_matrix(source, target).astype(np.float64) * SCALE).all()
    assert bands.starts.min() >= 0
    assert bands.starts.max() + bands.taps <= source
    assert (np.diff(bands.starts) >= 0).all()
    assert bands.weights[0].any() or bands.weights[-1].any(), "no longer than they must be"


def test_bands_are_short_and_typed_as_the_kernel_reads_them():
    bands = Bands.between(4096, 256)
    assert bands.starts.dtype == np.int32
    assert bands.weights.dtype == np.uint32
    assert bands.weights.flags.c_contiguous
    assert bands.weights.shape == (bands.taps, 256)
    assert bands.taps <= 2 * 4096 // 256 + 1
    assert Bands.between(256, 256).taps == 1


@pytest.mark.parametrize(("source", "target"), [(0, 4), (4, 0)])
def test_bands_of_nothing_are_refused(source, target):
    with pytest.raises(ShapeError, match=f"from {source} to {target} pixels"):
        Bands.between(source, target)


def test_bands_lie_on_the_gpu_one_part_after_the_other(device):
    bands = Bands.between(30, 12)
    there = DeviceBands(bands, device, device.stream())
    assert (bytes_at(there.starts, 48).view(np.int32) == bands.starts).all()
    found = bytes_at(there.weights, 4 * bands.weights.size).view(np.uint32)
    assert (found.reshape(bands.weights.shape) == bands.weights).all()
    assert len(device.live) == 1, "pinned memory is given back"
    there.close()


def test_the_cache_is_bounded_and_keeps_what_was_used_last(device):
    cache = BandCache(device, device.stream(), kept=3)
    first = cache.get(10, 4)
    for source in (11, 12):
        cache.get(source, 4)
    assert cache.get(10, 4) is first
    made = device.made
    cache.get(13, 4)  # 11 goes
    assert len(cache) == len(device.live) == 3
    assert cache.get(10, 4) is first
    assert device.made == made + 2, "one upload: a buffer and its pinned memory"
    cache.get(11, 4)
    assert device.made == made + 4
    cache.close()
    assert not device.live


def test_the_cache_never_drops_the_two_axes_of_a_frame(device):
    cache = BandCache(device, device.stream(), kept=0)
    for size in range(5, 9):
        vertical, horizontal = cache.get(size, 4), cache.get(size + 10, 4)
        assert vertical.taps > 0
        assert horizontal.taps > 0
        assert len(cache) == len(device.live) == 2
    cache.close()


# ---------------------------------------------------------------------------- frames


def test_frames_without_padding_need_no_numbers():
    frames = DeviceFrames(1, 20, 30, "BGR", count=4)
    assert (frames.stride, frames.step, frames.channels) == (90, 1800, 3)
    grey = DeviceFrames(1, 20, 30, "GREY", stride=32)
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
        DeviceFrames(**{"pointer": 1, "height": 20, "width": 30, **change})


@pytest.mark.parametrize("size", [(0, 4), (4, 65536)])
def test_an_impossible_size_is_refused(device, size):
    with pytest.raises(ShapeError, match="expected 1 to 65535"):
        GpuResize(device, device.stream(), size)
    assert not device.made


# ---------------------------------------------------------------------------- launches


@pytest.mark.parametrize(
    ("order", "rows_grid", "columns_grid"),
    [("RGB", (4, 8, 2), (4, 100, 2)), ("GREY", (2, 8, 2), (2, 100, 2))],
)
def test_a_launch_covers_all_and_no_more(device, order, rows_grid, columns_grid):
    stream = device.stream()
    frames = noise(2, 29, 40, 3 if order == "RGB" else 1)
    buffer, layout = upload(device, frames, order, 0, 0)
    target = device.allocate(2 * 100 * 256 * 3)
    resize = GpuResize(device, stream, (100, 256))
    resize(layout, target.pointer)
    assert (BLOCK, ROWS) == (192, 4), "the grids below are for these"
    assert stream.launches == [
        ("resize_rows", rows_grid, (192, 1, 1)),
        ("resize_columns", columns_grid, (192, 1, 1)),
    ]
    resize.close()
    buffer.close()
    target.close()


def test_frames_of_many_sizes_take_turns_on_one_stream(device):
    """Memory grows while work that uses the old one waits in the stream."""
    stream = device.stream()
    resize = GpuResize(device, stream, (32, 48))
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
    found = bytes_at(target.pointer, target.size).reshape(12, 32, 48, 3)
    assert (found == np.stack(wanted)).all()
    resize.close()
    for buffer in (*kept, target):
        buffer.close()


def test_memory_that_grows_with_the_batch_outlives_the_work_before(device):
    stream = device.stream()
    resize = GpuResize(device, stream, (8, 9))
    kept, wanted = [], []
    target = device.allocate(6 * 8 * 9 * 3)
    for frames in (noise(1, 50, 60, 3), noise(5, 50, 60, 3, seed=1)):
        buffer, layout = upload(device, frames, "RGB", 0, 0)
        resize(layout, target.pointer + len(wanted) * 8 * 9 * 3)
        kept.append(buffer)
        wanted.extend(expected(frames, "RGB", (8, 9)))
    stream.synchronize()
    found = bytes_at(target.pointer, target.size).reshape(6, 8, 9, 3)
    assert (found == np.stack(wanted)).all()
    for owned in (resize, *kept, target):
        owned.close()


def test_after_prepare_nothing_is_made_and_nothing_waits(device):
    """So that the call can be recorded in a CUDA graph."""
    stream = device.stream()
    buffer, layout = upload(device, noise(2, 50, 60, 3), "RGB", 0, 0)
    target = device.allocate(2 * 8 * 9 * 3)
    resize = GpuResize(device, stream, (8, 9))
    resize.prepare(layout)
    before = device.made, device.waits
    resize(layout, target.pointer)
    assert (device.made, device.waits) == before
    for owned in (resize, buffer, target):
        owned.close()


def test_closing_waits_and_may_be_repeated(device):
    stream = device.stream()
    frames = noise(1, 50, 60, 3)
    buffer, layout = upload(device, frames, "RGB", 0, 0)
    target = device.allocate(8 * 9 * 3)
    resize = GpuResize(device, stream, (8, 9))
    resize(layout, target.pointer)
    resize.close()  # the work was still waiting
    assert (bytes_at(target.pointer, target.size) == expected(frames, "RGB", (8, 9)).ravel()).all()
    resize.close()
    with pytest.raises(BackendError, match="after close"):
        resize(layout, target.pointer)
    buffer.close()
    target.close()


# ---------------------------------------------------------------------------- from the host


def mixed_frames() -> list[np.ndarray]:
    wide = noise(40, 100, 3, seed=3)
    return [
        noise(40, 50, 3, seed=1),
        noise(61, 70, seed=2),  # grey
        wide[:, ::2],  # strided
        noise(90, 90, 1, seed=4),
        noise(30, 20, 3, seed=5)[::-1],
        noise(16, 24, 3, seed=6),  # as large as wanted
    ]


def as_rgb(frame: np.ndarray, order: str) -> np.ndarray:
    if frame.ndim == 2 or frame.shape[2] == 1:
        return frame.reshape(*frame.shape[:2], 1).repeat(3, axis=2)
    return frame if order == "RGB" else np.ascontiguousarray(frame[..., ::-1])


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_frames_of_the_host_arrive_resized(device, order):
    stream = device.stream()
    with GpuFrames(device, stream, (16, 24), 6) as on_gpu:
        for turn in range(3):
            frames = mixed_frames()[turn:]
            images = on_gpu(frames, order=order)
            for frame in frames:
                frame[:] = 0  # read before the call returned
            stream.synchronize()
            found = bytes_at(images.pointer, 16 * 24 * 3 * len(frames)).reshape(images.shape)
            wanted = [resize_image(as_rgb(f, order), (16, 24)) for f in mixed_frames()[turn:]]
            assert (found == np.stack(wanted)).all()
    assert not device.live


def test_a_frame_is_read_while_the_one_before_is_on_its_way(device):
    stream = device.stream()
    with GpuFrames(device, stream, (16, 24), 3) as on_gpu:
        on_gpu([noise(30, 40, 3)] * 3)
        stream.synchronize()
        on_gpu([noise(30, 40, 3)] * 2)
        assert stream.pending == 6, "a copy and two kernels for each; nobody waited"
        on_gpu([noise(30, 40, 3)])
        assert stream.pending < 9, "the third takes the memory of the first"


def test_closing_waits_for_frames_on_their_way(device):
    stream = device.stream()
    with GpuFrames(device, stream, (16, 24), 3) as on_gpu:
        on_gpu([noise(30, 40, 3)] * 2)
        assert stream.pending
    assert not stream.pending


def test_the_result_is_described_as_other_packages_read_it(device):
    stream = device.stream()
    with GpuFrames(device, stream, (16, 24), 2) as on_gpu:
        images = on_gpu([noise(5, 6)])
        interface = images.__cuda_array_interface__
        assert interface["shape"] == images.shape == (1, 16, 24, 3)
        assert interface["typestr"] == "|u1"
        assert interface["data"][0] == images.pointer
        assert interface["strides"] is None
        assert interface["stream"] == stream.handle


@pytest.mark.parametrize(
    ("frames", "order", "words"),
    [
        ([], "RGB", "0 of them, expected 1 to 2"),
        ([noise(4, 4)] * 3, "RGB", "3 of them"),
        ([noise(4, 4)], "GREY", "order 'GREY': expected RGB or BGR"),
        ([noise(4, 4), noise(4, 4, 4)], "RGB", r"got uint8 \(4, 4, 4\)"),
        ([noise(4, 4).astype(np.float32)], "RGB", "got float32"),
        ([noise(4, 0, 3)], "RGB", r"got uint8 \(4, 0, 3\)"),
        ([[[1, 2]]], "RGB", "list"),
    ],
)
def test_other_frames_are_refused_before_anything_is_queued(device, frames, order, words):
    stream = device.stream()
    with GpuFrames(device, stream, (16, 24), 2) as on_gpu:
        with pytest.raises(ShapeError, match=words):
            on_gpu(frames, order=order)
        assert not stream.launches


def test_after_close_frames_are_refused(device):
    on_gpu = GpuFrames(device, device.stream(), (16, 24), 2)
    on_gpu.close()
    on_gpu.close()
    with pytest.raises(BackendError, match="after close"):
        on_gpu([noise(4, 4)])


def test_nothing_leaks_wherever_memory_runs_out(folder):
    """Each allocation is refused in turn; what was made is given back, and what was there works."""
    refused = 0
    for fail_at in count(1):
        device = HostDevice(folder, fail_at=fail_at)
        stream = device.stream()
        try:
            with GpuFrames(device, stream, (16, 24), 6) as on_gpu:
                for _ in range(2):
                    try:
                        images = on_gpu(mixed_frames())
                        break
                    except BackendError:
                        refused += 1
                stream.synchronize()
                found = bytes_at(images.pointer, 16 * 24 * 3 * 6).reshape(images.shape)
                wanted = [resize_image(as_rgb(f, "RGB"), (16, 24)) for f in mixed_frames()]
                assert (found == np.stack(wanted)).all()
        except BackendError:
            refused += 1
        device.close()
        if device.made < fail_at:
            break
    assert refused == fail_at - 1 > 20
