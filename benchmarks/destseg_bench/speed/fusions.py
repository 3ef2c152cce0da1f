"""How much time each fusion of the graph saves, on both back ends of a CPU.

Three kinds of graph are timed, interleaved: with all fusions, with none, and with all but one. The
ratio of a round is a graph's time divided by the fully fused graph's time in the same round; above
1, the fusion that was left out saves time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from destseg_bench.speed.contenders import open_artifact
from destseg_bench.timing import Advance, ignore, interleave, summarize_timing
from destseg_deploy.errors import DataError
from destseg_deploy.spec import ModelSpec

BACK_ENDS = ("onnxruntime", "openvino")
PREFIX = "without-"
OUTSIDE = 0.025
"""Probability that the true median lies below the interval; it lies above with the same."""


@dataclass(frozen=True)
class Ratio:
    """A contender's times divided by another one's, round by round.

    Attributes:
        median: Of the rounds.
        low: ``low`` to ``high`` holds the true median with 95 % confidence. The interval follows
            from the order of the rounds alone; with too few rounds for it, it is their range.
        high: See ``low``.
    """

    median: float
    low: float
    high: float


def time_fusions(
    plain: Path,
    folder: Path,
    frames: NDArray[np.uint8],
    back_end: str,
    *,
    rounds: int,
    warmup: int = 2,
    threads: int = 0,
    report: Advance = ignore,
) -> list[dict[str, Any]]:
    """Time the fused graph, the plain graph and the graphs without one fusion, interleaved.

    Args:
        plain: The export without fusions.
        folder: See ``list_variants``.
        frames: uint8 (N, H, W, 3) at the graph's input size, one call's batch.
        back_end: One of ``BACK_ENDS``.
        rounds: Timed calls of each graph.
        warmup: Calls of each before, not timed.
        threads: Threads within an operator; 0 for the back end's choice.
        report: Called with the calls done, all calls, and the graph.

    Returns:
        For ``fused``, ``plain`` and each ``without <fusion>``: ``contender``, ``back_end``,
        ``batch``, ``gmac`` per image, ``milliseconds`` per call, and ``ratio`` to ``fused``.

    Raises:
        DataError: If the folder holds no variants, or variants of another graph than ``plain``.
        SpecError: If a spec is missing or belongs to another file.
    """
    files = {"fused": folder / "fused.onnx", "plain": plain, **list_variants(folder)}
    gmacs = _count_gmacs(files)
    with ExitStack() as stack:
        calls: dict[str, Callable[[], object]] = {}
        for name, path in files.items():
            predictor = stack.enter_context(open_artifact(path, back_end, threads=threads))
            calls[name] = partial(predictor.runtime.infer, frames)
        seconds = interleave(calls, rounds=rounds, warmup=warmup, report=report)
    return [
        {
            "contender": name,
            "back_end": back_end,
            "batch": len(frames),
            "gmac": gmacs[name],
            "milliseconds": asdict(summarize_timing(times)),
            "ratio": asdict(paired_ratio(times, seconds["fused"])),
        }
        for name, times in seconds.items()
    ]


def list_variants(folder: Path) -> dict[str, Path]:
    """Return ``without <fusion>`` -> its file in a folder of ``destseg-export fuse --each``.

    Raises:
        DataError: If the fused graph is missing, or there is no graph without a fusion.
    """
    found = sorted(folder.glob(f"{PREFIX}*.onnx"))
    if not (folder / "fused.onnx").is_file() or not found:
        raise DataError(
            f"{folder}: expected fused.onnx and {PREFIX}<fusion>.onnx. Write them with "
            "destseg-export fuse PLAIN --each FOLDER."
        )
    return {f"without {path.stem.removeprefix(PREFIX)}": path for path in found}


def paired_ratio(times: Sequence[float], others: Sequence[float]) -> Ratio:
    """Return the ratio of times to others of the same rounds.

    Pairs take out what the machine did to both contenders in a round.
    """
    ratios = np.sort(np.asarray(times) / np.asarray(others))
    cut = cut_from_each_end(len(ratios))
    return Ratio(float(np.median(ratios)), float(ratios[cut]), float(ratios[-1 - cut]))


def cut_from_each_end(count: int) -> int:
    """Return how many sorted values to cut at each end to get the interval of the median.

    This is the interval of the sign test. Each value lies below the true median with probability
    1/2, so the number of values below it is binomial. After cutting k values, the true median lies
    below the interval only if at most k values lie below it.
    """
    cut, below = 0, 1 / 2**count
    while cut < (count - 1) // 2:
        below += comb(count, cut + 1) / 2**count
        if below > OUTSIDE:
            break
        cut += 1
    return cut


def _count_gmacs(files: Mapping[str, Path]) -> dict[str, float]:
    """Return multiply-accumulates of an image in 1e9, as the specs say.

    Raises:
        DataError: If the files differ by more than their fusions: their times would say nothing.
    """
    specs = {name: ModelSpec.read(path) for name, path in files.items()}
    fused = {name: spec.fusion for name, spec in specs.items() if spec.fusion is not None}
    plain = specs["plain"]
    if plain.precision != "fp32" or "plain" in fused:
        kind = "a fused graph" if "plain" in fused else plain.precision
        raise DataError(f"{files['plain']}: {kind}, expected the fp32 export without fusions.")
    for name, spec in specs.items():
        if (spec.checkpoint, spec.size) != (plain.checkpoint, plain.size):
            raise DataError(
                f"{files[name]}: of another checkpoint or size than {files['plain'].name}. Write "
                "it with destseg-export fuse PLAIN --each FOLDER."
            )
    whole = fused.get("fused")
    if whole is None or whole.macs_before is None:
        raise DataError(
            f"{files['fused']}: its spec does not say what the fusions saved. Write it with "
            "destseg-export fuse PLAIN --each FOLDER."
        )
    # A file without fusions does not say its MACs; they are what the fused one says of before.
    return {
        name: ((fused[name].macs_after if name in fused else None) or whole.macs_before) / 1e9
        for name in specs
    }
