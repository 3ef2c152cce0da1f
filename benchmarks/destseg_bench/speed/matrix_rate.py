"""What a device can do at best: how fast it multiplies matrices and moves bytes.

Both bound a network's time from below, so each latency says its share of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from destseg_deploy.training.precision import pick_device

SIDES = {"cuda": 8192, "cpu": 1024}
"""Device -> rows and columns of the matrices: enough to keep every unit busy."""

TYPES = {"cuda": ("fp16", torch.float16), "cpu": ("fp32", torch.float32)}

BYTES = {"cuda": 2**30, "cpu": 2**26}
"""Device -> bytes that are copied: more than its caches hold."""

GFLOP_PER_IMAGE = 77.0
"""Of DeSTSeg at 256 x 256: 38.4 GMAC, as ``table-s4`` counts them, of two operations each."""

PIXELS = 256 * 256


def measure_rates(device: str, *, repeats: int = 20) -> dict[str, Any]:
    """Multiply two large matrices, and copy memory on the device, to it and from it.

    Args:
        device: ``cuda``, ``cuda:<index>``, or ``cpu``, which stands in where there is no GPU.
        repeats: Products and copies that are timed; the fastest counts, as what disturbs a
            measurement only slows it down.

    Returns:
        ``tflops`` of products in ``precision``, of matrices of ``side``; ``images_per_second``, the
        throughput of DeSTSeg if it did nothing but such products; ``memory_gb_per_second``, bytes
        read and written by a copy on the device; and for a GPU ``to_device_gb_per_second`` and
        ``to_host_gb_per_second`` with pinned memory.

    Raises:
        BackendError: If the device is not there.
    """
    place = pick_device(device)
    side, (precision, kind) = SIDES[place.type], TYPES[place.type]
    a, b = (torch.randn(side, side, device=place).to(kind) for _ in range(2))
    tflops = 2 * side**3 / _seconds(lambda: torch.mm(a, b), place, repeats) / 1e12
    return {
        "device": str(place),
        "tflops": tflops,
        "side": side,
        "precision": precision,
        "images_per_second": 1e3 * tflops / GFLOP_PER_IMAGE,
        **_measure_copies(place, repeats),
    }


def add_shares(row: dict[str, Any], rates: dict[str, Any]) -> None:
    """Add to a row of latencies its shares of the matrix rate and of the memory floor.

    ``matrix_share`` is the arithmetic of its images at its size, divided by what the device could
    multiply in that time. ``memory_share`` is the time in which the device moves the least bytes of
    the call, divided by the time that it took.
    """
    if "median" not in row:
        return
    scale = row["size"][0] * row["size"][1] / PIXELS
    row["matrix_share"] = row["images_per_second"] * scale / rates["images_per_second"]
    row["memory_floor_ms"] = 1e3 * row["bytes"] / (rates["memory_gb_per_second"] * 1e9)
    row["memory_share"] = row["memory_floor_ms"] / row["median"]


def _measure_copies(place: torch.device, repeats: int) -> dict[str, float]:
    size = BYTES[place.type]
    here, there = (torch.ones(size, dtype=torch.uint8, device=place) for _ in range(2))
    rate = 2 * size / _seconds(lambda: there.copy_(here), place, repeats) / 1e9
    found = {"memory_gb_per_second": rate}
    if place.type == "cuda":
        host = torch.ones(size, dtype=torch.uint8).pin_memory()
        into = _seconds(lambda: here.copy_(host, non_blocking=True), place, repeats)
        back = _seconds(lambda: host.copy_(here, non_blocking=True), place, repeats)
        found["to_device_gb_per_second"] = size / into / 1e9
        found["to_host_gb_per_second"] = size / back / 1e9
    return found


def _seconds(work: Callable[[], Tensor], place: torch.device, repeats: int) -> float:
    """Return the shortest time of some work; the first, which chooses algorithms, is left out."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        times.append(time.perf_counter() - start)
    return min(times[1:])
