"""resize.cu is ``data.resize`` to the bit: its own source, run as host code in its own launches."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from destseg_deploy.data.images import read_image
from destseg_deploy.data.resize import resize_image
from destseg_deploy.errors import BackendError
from destseg_deploy.predictor import resize_map
from destseg_deploy.runtime.cuda import resize as resize_gpu
from destseg_deploy.runtime.cuda.memory import array_at
from tests.deploy.runtime.cuda.resize_cases import CASES, expected, noise, resized, verdict
from tests.fakes.device import FakeDevice
from tests.fakes.host_kernels import HostCompiler

ROOT = Path(__file__).resolve().parents[4]
SOURCE = Path(str(files("destseg_deploy.runtime.cuda").joinpath("resize.cu")))
KERNELS = ("resize_rows", "resize_columns", "resize_map")
ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


# ---------------------------------------------------------------------------- to the bit


@needs_compiler
@pytest.mark.parametrize(("source", "target"), [(case[0], case[1]) for case in CASES])
def test_each_case_is_exact(device, source, target):
    frames = noise(1, *source, 3)
    assert (resized(device, frames, "RGB", target) == expected(frames, "RGB", target)).all()


@needs_compiler
@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((1024, 1024), (256, 256)),
        ((480, 640), (256, 256)),
        ((64, 64), (256, 256)),  # up
        ((257, 255), (256, 256)),  # one side up, one down, by a hair
        ((256, 360), (320, 320)),  # most sums lie half way between two levels
        ((2000, 100), (64, 64)),  # tall
        ((256, 256), (256, 256)),  # only copied
        ((256, 90), (256, 256)),  # one side copied
        ((1, 1), (64, 64)),
        ((300, 1), (1, 300)),
        ((1, 5000), (7, 1)),
    ],
)
def test_frames_of_many_sizes_are_exact(device, source, target):
    frames = noise(1, *source, 3)
    assert (resized(device, frames, "RGB", target) == expected(frames, "RGB", target)).all()


@needs_compiler
def test_a_frame_of_twelve_megapixels_is_exact(device):
    frame = noise(3000, 4096, 3)
    result = resized(device, frame[None], "RGB", (256, 256))
    assert (result[0] == resize_image(frame, (256, 256))).all()


@needs_compiler
@settings(max_examples=60, deadline=None)
@given(
    source=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    target=st.tuples(st.integers(1, 80), st.integers(1, 80)),
    order=st.sampled_from(["RGB", "BGR", "GREY"]),
    count=st.integers(1, 3),
    row_gap=st.integers(0, 9),
    gap=st.integers(0, 9),
    seed=st.integers(0, 9),
)
def test_any_size_order_and_padding_is_exact(
    folder, source, target, order, count, row_gap, gap, seed
):
    device = FakeDevice(compiler=HostCompiler(folder))
    frames = noise(count, *source, resize_gpu.CHANNELS[order], seed=seed)
    result = resized(device, frames, order, target, row_gap, gap)
    assert (result == expected(frames, order, target)).all()
    device.close()


@needs_compiler
@pytest.mark.parametrize("level", [0, 1, 127, 255])
def test_flat_frames_stay_flat(device, level):
    frames = np.full((1, 37, 71, 3), level, np.uint8)
    assert (resized(device, frames, "RGB", (64, 24)) == level).all()


@needs_compiler
@pytest.mark.parametrize(("block", "rows", "chunk"), [(6, 3, 9), (3, 1, 3), (96, 8, 1023)])
def test_other_geometries_give_the_same_bits(folder, monkeypatch, block, rows, chunk):
    """Blocks, groups of rows and chunks that end everywhere but where the image does."""
    for name, value in (("BLOCK", block), ("ROWS", rows), ("CHUNK", chunk)):
        monkeypatch.setattr(resize_gpu, name, value)
    options = (f"-DBLOCK={block}", f"-DROWS={rows}", f"-DCHUNK={chunk}")
    monkeypatch.setattr(resize_gpu, "OPTIONS", options)
    device = FakeDevice(compiler=HostCompiler(folder))
    for order, channels in resize_gpu.CHANNELS.items():
        frames = noise(2, 23, 41, channels)
        result = resized(device, frames, order, (10, 17), 3, 5)
        assert (result == expected(frames, order, (10, 17))).all()
    device.close()


# ---------------------------------------------------------------------------- maps

MAP_SIZES = [
    ((64, 64), (90, 45)),
    ((64, 64), (1000, 1021)),
    ((256, 256), (64, 100)),  # down
    ((64, 64), (32, 32)),  # by two, where OpenCV averages
    ((7, 1), (5, 9)),
    ((1, 5), (3, 4)),
    ((64, 48), (64, 48)),
]


@needs_compiler
@pytest.mark.parametrize(("source", "target"), MAP_SIZES)
def test_a_map_is_resized_as_opencv_does(device, source, target):
    """Up to float32's rounding; the control shows that a map shifted by a pixel would be seen."""
    anomaly_map = np.random.default_rng(0).random(source, np.float32)
    stream, kernels = device.stream(), resize_gpu.ResizeKernels(device)
    resize = resize_gpu.MapResize(device, stream, source, kernels)
    there, result = device.allocate(anomaly_map.nbytes), device.allocate(target[0] * target[1] * 4)
    array_at(there.pointer, there.size)[:] = anomaly_map.view(np.uint8).ravel()
    resize(there.pointer, target, result.pointer)
    stream.synchronize()
    found = array_at(result.pointer, result.size).view(np.float32).reshape(target).copy()
    wanted = resize_map(anomaly_map, target)
    np.testing.assert_allclose(found, wanted, atol=3e-7)
    if source == target:
        np.testing.assert_array_equal(found, anomaly_map)
    assert np.abs(np.roll(found, (1, 1), axis=(0, 1)) - wanted).max() > 1e-3
    for owned in (resize, there, result, kernels, stream):
        owned.close()


# ---------------------------------------------------------------------------- what must be caught


@needs_compiler
def test_the_cases_of_the_mutations_agree(folder):
    assert verdict(FakeDevice(compiler=HostCompiler(folder))) == "exact"


MUTATIONS = {
    "first pass not rounded": ("(sums[row] + HALF) >> 16", "sums[row] >> 16"),
    "second pass not rounded": ("word sum = HALF;", "word sum = 0;"),
    "BGR taken for RGB": ("reverse ? 2 - at % 3 : at % 3", "(void)reverse, at % 3"),
    "RGB taken for BGR": ("reverse ? 2 - at % 3 : at % 3", "(void)reverse, 2 - at % 3"),
    "stride between groups ignored": (
        "(offset)top * stride",
        "(offset)top * (offset)((starts[target_width - 1] + taps) * channels)",
    ),
    "stride within a group ignored": (
        "row * stride",
        "row * (offset)((starts[target_width - 1] + taps) * channels)",
    ),
    "gap between frames ignored": ("blockIdx.z * frame_bytes", "blockIdx.z * (frame_bytes - 1)"),
    "barrier before the sums missing": (
        "        __syncthreads();\n        if (writes)",
        "        if (writes)",
    ),
    "barrier before the next chunk missing": (
        "        __syncthreads();  // before",
        "        // before",
    ),
    "barrier within a branch": (
        "        __syncthreads();\n        if (writes) {",
        "        if (writes) {\n            __syncthreads();",
    ),
    "weights transposed": (
        "weights[(offset)(x - start) * target_width + pixel]",
        "weights[(offset)pixel * taps + (x - start)]",
    ),
    "a chunk's last pixel left out": ("start + taps < stop ?", "start + taps < stop - 1 ?"),
    "the last row of a group left out": (
        "row < ROWS && top + row < height; ++row) {\n        const offset line",
        "row < ROWS - 1 && top + row < height; ++row) {\n        const offset line",
    ),
    "rows below the frame written": (
        "row < ROWS && top + row < height; ++row) {\n        const offset line",
        "row < ROWS; ++row) {\n        const offset line",
    ),
    "the first band's weights for all rows": ("k * target_height + y", "k * target_height"),
    "bands not moved down": ("height + starts[y]", "height + starts[0]"),
    "grey in one channel only": ("image[2] = level;", ""),
    "every frame written to the first": ("(offset)blockIdx.z * target_height + y", "(offset)y"),
    "bytes beyond a row written": ("if (at >= pitch) return;", ""),
}


@needs_compiler
@pytest.mark.parametrize("change", MUTATIONS.values(), ids=MUTATIONS)
def test_a_broken_kernel_is_caught(folder, change):
    found = verdict(FakeDevice(compiler=HostCompiler(folder, change=change)))
    assert re.match("other pixels|written outside|threads part at a barrier", found), found


SANITIZED = """
import sys
from pathlib import Path
from tests.fakes.device import FakeDevice
from tests.fakes.host_kernels import HostCompiler
from tests.deploy.runtime.cuda.resize_cases import verdict
options = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
old, new = sys.argv[2:]
compiler = HostCompiler(Path(sys.argv[1]), options, (old, new))
print(verdict(FakeDevice(compiler=compiler, guard=0)))
"""


def _under_the_sanitizer(
    folder: Path, old: str = "", new: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the cases where every piece of memory ends in a trap."""
    library = subprocess.run(
        ["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not os.path.isabs(library):
        pytest.skip("g++ has no address sanitizer here")
    environment = {**os.environ, "LD_PRELOAD": library, "PYTHONPATH": str(ROOT)}
    environment["ASAN_OPTIONS"] = "detect_leaks=0"  # Python itself leaves some
    return subprocess.run(
        [sys.executable, "-c", SANITIZED, str(folder), old, new],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        cwd=ROOT,
    )


@needs_compiler
def test_nothing_outside_a_buffer_is_read_or_written(folder):
    done = _under_the_sanitizer(folder)
    assert done.stdout == "exact\n", done.stderr


@needs_compiler
@pytest.mark.parametrize(
    "change",
    [
        (
            "row < ROWS && top + row < height; ++row) {\n            const",
            "row < ROWS; ++row) {\n            const",
        ),
        ("first + tile < target_width ? first + tile - 1 : target_width - 1", "first + tile - 1"),
        ("if (at >= pitch) return;", ""),
    ],
    ids=["rows below the frame read", "bands beyond the last read", "bytes beyond a row"],
)
def test_the_sanitizer_would_see_it(folder, change):
    done = _under_the_sanitizer(folder, *change)
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr


# ---------------------------------------------------------------------------- CUDA's compilers


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_nvcc_compiles_it_for_every_architecture(tmp_path):
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
    command = ["nvcc", "-fatbin", "-Werror", "all-warnings", "-Xptxas", "-v", *targets]
    done = subprocess.run(
        [*command, *resize_gpu.OPTIONS, str(SOURCE), "-o", str(tmp_path / "resize.fatbin")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    report = done.stderr
    for name in KERNELS:
        assert report.count(f"Compiling entry function '{name}'") == len(ARCHITECTURES)
    assert report.count("0 bytes spill stores") == len(KERNELS) * len(ARCHITECTURES), report


def test_nvrtc_compiles_it():
    from destseg_deploy.runtime.cuda.nvrtc import Nvrtc

    try:
        compiler = Nvrtc.open()
    except BackendError as error:
        pytest.skip(str(error))
    for architecture in ARCHITECTURES:
        image = compiler.compile(SOURCE.read_text(), f"sm_{architecture}", resize_gpu.OPTIONS)
        assert all(name.encode() in image for name in KERNELS)


def resized_on_a_gpu(frames, order, target):
    """Resize frames of any size with the real kernels on a real GPU, one after another."""
    from destseg_deploy.runtime.cuda.device import open_device

    with ExitStack() as owned:

        def own(thing):
            owned.callback(thing.close)
            return thing

        gpu = own(open_device("cuda:0"))
        stream, kernels = own(gpu.stream()), own(resize_gpu.ResizeKernels(gpu))
        pinned = own(gpu.allocate_pinned(max(frame.size for frame in frames)))
        source, goal = own(gpu.allocate(pinned.size)), own(gpu.allocate(target[0] * target[1] * 3))
        resize = own(resize_gpu.FrameResize(gpu, stream, target, kernels))
        for frame in frames:
            pinned.array[: frame.size] = frame.ravel()
            stream.copy_in(source.pointer, pinned.array[: frame.size])
            there = resize_gpu.FramesOnGpu(source.pointer, *frame.shape[:2], order)
            resize(there, goal.pointer)
            found = pinned.array[: goal.size]
            stream.copy_out(found, goal.pointer)
            stream.synchronize()
            yield found.reshape(*target, 3).copy()


@pytest.mark.gpu
@pytest.mark.parametrize("order", ["RGB", "BGR", "GREY"])
def test_a_gpu_gives_the_same_bits(order):
    channels = resize_gpu.CHANNELS[order]
    sizes = ((1024, 1024), (700, 900), (61, 90), (33, 12000))
    frames = [noise(1, *size, channels)[0] for size in sizes]
    for frame, found in zip(frames, resized_on_a_gpu(frames, order, (256, 256)), strict=True):
        assert (found == expected(frame[None], order, (256, 256))[0]).all()


@pytest.mark.gpu
def test_a_gpu_gives_the_same_bits_of_real_frames(shared):
    """Originals of 1024 px, as the host resizes them for the network."""
    paths = sorted((shared / "datasets/mvtec_fullres").rglob("test/*/*.png"))
    frames = [read_image(path) for path in paths]
    assert min(frame.shape[0] for frame in frames) >= 1024
    for frame, found in zip(frames, resized_on_a_gpu(frames, "RGB", (256, 256)), strict=True):
        assert (found == resize_image(frame, (256, 256))).all()
