"""Frames put on a fake GPU with padding and noise around them, and resized there."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.data.resize import resize_image
from destseg_deploy.runtime.cuda.memory import array_at
from destseg_deploy.runtime.cuda.resize import (
    CHANNELS,
    FrameResize,
    FramesOnGpu,
    ResizeKernels,
)
from tests.fakes.device import FakeDevice

Bytes = NDArray[np.uint8]
Size = tuple[int, int]


def noise(*shape: int, seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def expected(frames: Bytes, order: str, size: Size) -> Bytes:
    """Return what ``data.resize`` makes of frames (N, H, W, channels) in an order."""
    rgb = {"RGB": frames, "BGR": frames[..., ::-1], "GREY": frames.repeat(3 // frames.shape[3], 3)}
    return np.stack([resize_image(np.ascontiguousarray(one), size) for one in rgb[order]])


def upload(device: FakeDevice, frames: Bytes, order: str, row_gap: int, gap: int) -> Any:
    """Put frames (N, H, W, channels) on a GPU; return the buffer and its description.

    The gaps hold noise, and the last row of the last frame ends where the buffer does.
    """
    count, height, width, channels = frames.shape
    row = width * channels
    stride = row + row_gap
    step = height * stride + gap
    buffer = device.allocate((count - 1) * step + (height - 1) * stride + row)
    whole = array_at(buffer.pointer, buffer.size)
    whole[:] = noise(buffer.size, seed=7)
    for i, frame in enumerate(frames):
        for y, line in enumerate(frame):
            start = i * step + y * stride
            whole[start : start + row] = line.ravel()
    layout = FramesOnGpu(buffer.pointer, height, width, order, stride, count, step)
    return buffer, layout


def resized(
    device: FakeDevice, frames: Bytes, order: str, size: Size, row_gap: int = 0, gap: int = 0
) -> Bytes:
    """Resize frames (N, H, W, channels) on a device and close everything."""
    assert frames.shape[3] == CHANNELS[order]
    stream, kernels = device.stream(), ResizeKernels(device)
    buffer, layout = upload(device, frames, order, row_gap, gap)
    target = device.allocate(len(frames) * size[0] * size[1] * 3)
    resize = FrameResize(device, stream, size, kernels)
    try:
        resize(layout, target.pointer)
        stream.synchronize()
        return array_at(target.pointer, target.size).reshape(len(frames), *size, 3).copy()
    finally:
        for owned in (resize, target, buffer, kernels, stream):
            owned.close()


CASES: list[tuple[Size, Size, str, int, int, int]] = [
    # frame, wanted, order, frames, gap after a row, gap after a frame
    ((97, 131), (64, 96), "RGB", 1, 0, 0),
    ((61, 90), (64, 96), "BGR", 2, 5, 3),
    ((50, 230), (9, 200), "GREY", 3, 1, 7),
    ((7, 6001), (5, 70), "RGB", 2, 2, 0),
    ((5, 17000), (5, 200), "GREY", 1, 0, 0),
    ((1, 1), (3, 2), "BGR", 1, 0, 0),
]
"""Few, and between them every branch: several tiles and chunks, rows that fill no group."""


def verdict(device: FakeDevice) -> str:
    """Resize every case; return ``exact``, or how the first one went wrong."""
    for frame, size, order, count, row_gap, gap in CASES:
        frames = noise(count, *frame, CHANNELS[order])
        try:
            result = resized(device, frames, order, size, row_gap, gap)
        except AssertionError as error:  # a guard was overwritten, or threads parted
            return str(error)
        if (result != expected(frames, order, size)).any():
            return f"other pixels for {frame} {order}"
    device.close()
    return "exact"
