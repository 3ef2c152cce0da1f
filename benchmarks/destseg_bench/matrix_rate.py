"""How fast a GPU multiplies matrices: what a network's throughput can be held against."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from destseg_deploy.training.place import pick_device

SIDE = 8192
GFLOP_PER_IMAGE = 77.0
"""Of DeSTSeg at 256 x 256: 38.4 GMAC (methods.md, section 3.8), two operations each."""


def measure_matrix_rate(device: str, *, repeats: int = 20) -> dict[str, Any]:
    """Multiply two large half-precision matrices; return teraflops and what they would allow.

    Args:
        device: A CUDA device.
        repeats: Products that count; the median is reported.

    Returns:
        ``tflops``, ``side`` of the matrices, ``precision``, and ``images_per_second`` if a network
        did nothing but such products.

    Raises:
        BackendError: If the device is not there.
    """
    place = pick_device(device)
    a = torch.randn(SIDE, SIDE, device=place, dtype=torch.float16)
    b = torch.randn(SIDE, SIDE, device=place, dtype=torch.float16)
    torch.mm(a, b)
    milliseconds = statistics.median(_milliseconds(a, b) for _ in range(repeats))
    tflops = 2 * SIDE**3 / milliseconds / 1e9
    return {
        "tflops": tflops,
        "side": SIDE,
        "precision": "fp16",
        "images_per_second": 1e3 * tflops / GFLOP_PER_IMAGE,
    }


def _milliseconds(a: torch.Tensor, b: torch.Tensor) -> float:
    start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch leaves it
    stop = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # untyped
    start.record()
    torch.mm(a, b)
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop))
