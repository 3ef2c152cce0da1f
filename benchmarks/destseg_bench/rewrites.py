"""What each rewrite of the graph is worth in time, on both back ends of a CPU.

Every contender is the whole fused graph, the plain one, or the fused one without one rewrite. The
ratio of a round is a contender's time by the whole's in the same round; above 1 the rewrite pays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from destseg_bench.timing import interleave, summarize_timing
from destseg_deploy.errors import DataError
from destseg_deploy.predictor import load
from destseg_deploy.spec import ModelSpec

BACK_ENDS = {"onnxruntime": "cpu", "openvino": "openvino"}
"""Name -> the device ``load`` takes for it."""

PREFIX = "without-"
OUTSIDE = 0.025
"""Chance that the true median lies below the interval, and as much above it."""


@dataclass(frozen=True)
class Ratio:
    """How many times as long as another contender one took, round by round.

    Attributes:
        median: Of the rounds.
        low: With ``high``, holds the true median with 95 % confidence, by the order of the rounds
            alone; the extremes where there are too few rounds for that.
        high: See ``low``.
    """

    median: float
    low: float
    high: float


def list_variants(folder: Path) -> dict[str, Path]:
    """Return ``without <rewrite>`` -> its file in a folder by ``destseg-export fuse --each``.

    Raises:
        DataError: If there is no whole one, or none without a rewrite.
    """
    found = sorted(folder.glob(f"{PREFIX}*.onnx"))
    if not (folder / "fused.onnx").is_file() or not found:
        raise DataError(
            f"{folder}: expected fused.onnx and {PREFIX}<rewrite>.onnx. Write them with "
            "destseg-export fuse PLAIN --each FOLDER."
        )
    return {f"without {path.stem.removeprefix(PREFIX)}": path for path in found}


def time_rewrites(
    plain: Path,
    folder: Path,
    frames: NDArray[np.uint8],
    back_end: str,
    *,
    rounds: int,
    warmup: int = 2,
    threads: int = 0,
    report: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> list[dict[str, Any]]:
    """Time the whole, the plain one and those without a rewrite, interleaved.

    Args:
        plain: The export without fusions.
        folder: See ``list_variants``.
        frames: uint8 (N, H, W, 3) at the graph's input size, one call's batch.
        back_end: One of ``BACK_ENDS``.
        rounds: Calls of each that count.
        warmup: Calls of each before.
        threads: Threads within an operator; 0 for the back end's choice.
        report: Called with the calls done, all calls, and the contender.

    Returns:
        For ``fused``, ``plain`` and each rewrite: ``contender``, ``back_end``, ``batch``, ``gmac``
        an image, ``milliseconds`` a call, and ``ratio`` to the whole, see ``Ratio``.

    Raises:
        DataError: If the folder holds no variants, or not those of ``plain``.
        SpecError: If a spec is missing or belongs to another file.
    """
    files = {"fused": folder / "fused.onnx", "plain": plain, **list_variants(folder)}
    _check_origin(files)
    with ExitStack() as stack:
        calls: dict[str, Callable[[], object]] = {}
        for name, path in files.items():
            opened = load(path, device=BACK_ENDS[back_end], threads=threads)
            runtime = stack.enter_context(opened).runtime
            calls[name] = partial(runtime.infer, frames)
        seconds = interleave(calls, rounds=rounds, warmup=warmup, report=report)
    whole = ModelSpec.read(files["fused"]).parity["fused"]["macs"]
    cost = {name: _macs(path, whole[0]) for name, path in files.items()}
    return [
        {
            "contender": name,
            "back_end": back_end,
            "batch": len(frames),
            "gmac": cost[name] / 1e9,
            "milliseconds": vars(summarize_timing(times)),
            "ratio": vars(paired_ratio(times, seconds["fused"])),
        }
        for name, times in seconds.items()
    ]


def paired_ratio(times: Sequence[float], others: Sequence[float]) -> Ratio:
    """Return by how much times exceed others of the same rounds, as ``Ratio`` describes."""
    ratios = np.sort(np.asarray(times) / np.asarray(others))
    cut = cut_from_each_end(len(ratios))
    return Ratio(float(np.median(ratios)), float(ratios[cut]), float(ratios[-1 - cut]))


def cut_from_each_end(count: int) -> int:
    """Return how many sorted values may be cut at each end of an interval of the median.

    Each value lies below the true median with chance 1/2, so the number below it is binomial: the
    sign test's interval. The median lies below what a cut of k leaves where at most k values do.
    """
    cut, below = 0, 1 / 2**count
    while cut < (count - 1) // 2:
        below += comb(count, cut + 1) / 2**count
        if below > OUTSIDE:
            break
        cut += 1
    return cut


def _check_origin(files: Mapping[str, Path]) -> None:
    """Refuse files that do not differ by their rewrites alone: their times would say nothing."""
    specs = {name: ModelSpec.read(path) for name, path in files.items()}
    plain = specs["plain"]
    if plain.precision != "fp32" or "fused" in plain.parity:
        kind = "a fused graph" if "fused" in plain.parity else plain.precision
        raise DataError(f"{files['plain']}: {kind}, expected the fp32 export without fusions.")
    for name, spec in specs.items():
        if (spec.checkpoint, spec.size) != (plain.checkpoint, plain.size):
            raise DataError(
                f"{files[name]}: of another checkpoint or size than {files['plain'].name}. Write "
                "it with destseg-export fuse PLAIN --each FOLDER."
            )


def _macs(path: Path, unfused: int) -> int:
    """Return the MACs of an image, from the spec; those before fusing where it was not fused."""
    fused = ModelSpec.read(path).parity.get("fused")
    return int(fused["macs"][1]) if fused else unfused
