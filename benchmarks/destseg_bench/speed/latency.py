"""Latency and throughput of artifacts on the machine at hand, all contenders in one run.

With several streams, as many threads each score a batch at the same time, as a host with several
cameras does. A call then ends when all of them have their answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from itertools import product
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
from numpy.typing import NDArray

from destseg_bench.speed.contenders import open_contender
from destseg_bench.timing import (
    SETTLE,
    Advance,
    Call,
    Contender,
    Timing,
    at_once,
    ignore,
    interleave,
    summarize_timing,
)
from destseg_deploy.data.finding import expand
from destseg_deploy.data.images import read_image
from destseg_deploy.data.resize import resize_image
from destseg_deploy.errors import DataError, DestsegError, ParityError
from destseg_deploy.runtime.base import Prediction
from destseg_deploy.runtime.parity import BUDGETS, check_difference, measure_difference


def measure_latency(
    contenders: Sequence[Contender],
    frames: Sequence[Path],
    *,
    batches: Sequence[int] = (1,),
    streams: Sequence[int] = (1,),
    rounds: int = 50,
    warmup: int = 5,
    settle: float = SETTLE,
    report: Advance = ignore,
) -> Iterator[list[dict[str, Any]]]:
    """Time contenders for each batch size and number of streams, interleaved within each.

    Args:
        contenders: The others are compared with the first one that runs.
        frames: Images; every contender gets the same, resized to its input size beforehand.
        batches: Images per call.
        streams: Calls at the same time.
        rounds: Timed calls of each contender.
        warmup: Calls of each before, not timed.
        settle: Seconds of rest before each call; 0 on a GPU, whose clock falls in a rest.
        report: Called with the calls done at this batch size, all calls, and the contender.

    Yields:
        For each batch size and number of streams a row for each contender: its name, precision,
        origin, size, batch and streams. Then either ``skipped``, the reason; or its ``Timing`` in
        milliseconds until all streams have their answer, ``images_per_second``, and
        ``times_faster`` than the first, by medians.

    Raises:
        DataError: If there is no image, or one cannot be read.
    """
    if not frames:
        raise DataError("no images to score. Expected at least one file.")
    for batch, together in product(batches, streams):
        with (
            _opened(contenders, frames, batch, together) as (calls, skipped),
            ThreadPoolExecutor(together) as pool,
        ):
            shared = {name: at_once(call, together, pool) for name, call in calls.items()}
            seconds = interleave(shared, rounds=rounds, warmup=warmup, settle=settle, report=report)
            timings = {name: summarize_timing(times) for name, times in seconds.items()}
        yield _rows(contenders, batch, together, timings, skipped)


def find_frames(folder: Path, count: int) -> list[Path]:
    """Return up to ``count`` images below a folder, spread evenly over its sorted files.

    Raises:
        DataError: If there is none.
    """
    found = expand([str(folder)])
    chosen = np.unique(np.linspace(0, len(found) - 1, min(count, len(found))).astype(int))
    return [found[i] for i in chosen]


def stack_frames(frames: Sequence[Path], size: tuple[int, int], batch: int) -> NDArray[np.uint8]:
    """Return a batch of images at a size, uint8 (N, H, W, 3); fewer images are repeated."""
    images = [resize_image(read_image(frames[i % len(frames)]), size) for i in range(batch)]
    return np.stack(images)


@contextmanager
def _opened(
    contenders: Sequence[Contender], frames: Sequence[Path], batch: int, streams: int
) -> Iterator[tuple[dict[str, Call], dict[str, str]]]:
    """Open every contender for a batch; give name -> call, and name -> reason it cannot run."""
    calls: dict[str, Call] = {}
    skipped: dict[str, str] = {}
    answers: dict[str, object] = {}
    stacks = {size: stack_frames(frames, size, batch) for size in {one.size for one in contenders}}
    with ExitStack() as stack:
        for one in contenders:
            if streams > 1 and not one.concurrent:
                skipped[one.name] = "its calls share one buffer and cannot run at the same time"
                continue
            try:
                call = stack.enter_context(open_contender(one, stacks[one.size]))
                # Many failures, such as a lack of memory, only show in a call.
                answers[one.name] = call()
            except (DestsegError, RuntimeError) as error:  # torch raises RuntimeError
                # Without the folder, which no other machine has.
                reason = str(error).replace(str(one.artifact), one.artifact.name)
                skipped[one.name] = shorten(reason, 300, placeholder=" ...")
                continue
            calls[one.name] = call
        for name, reason in _too_far(contenders, answers).items():
            skipped[name] = reason
            del calls[name]
        yield calls, skipped


def _too_far(contenders: Sequence[Contender], answers: dict[str, object]) -> dict[str, str]:
    """Return name -> reason of those whose answers are too far from float32's to be timed.

    From the device, a contender runs what another one runs from the host, and is checked there.
    """
    given = {name: one for name, one in answers.items() if isinstance(one, Prediction)}
    exact = next(
        (given[x.name] for x in contenders if x.precision == "fp32" and x.name in given), None
    )
    reasons = {}
    for one in contenders:
        found = given.get(one.name)
        if found is None or exact is None or one.precision not in BUDGETS:
            continue
        if found.anomaly_map.shape == exact.anomaly_map.shape:
            try:
                check_difference(measure_difference(exact, found), one.precision, one.name)
            except ParityError as error:
                reasons[one.name] = f"NG: {error}"
    return reasons


def least_bytes(one: Contender, images: int) -> int:
    """Return what a call must at least read and write: the weights once, images, maps, scores.

    Weights that are rounded when a checkpoint is opened count as they lie in memory then.
    """
    weights = one.artifact.stat().st_size if one.artifact.is_file() else 0
    if one.artifact.suffix.lower() == ".safetensors" and one.precision in ("fp16", "bf16"):
        weights //= 2
    pixels = one.size[0] * one.size[1]
    return weights + images * (pixels * (3 + 4) + 4)


def _rows(
    contenders: Sequence[Contender],
    batch: int,
    streams: int,
    timings: dict[str, Timing],
    skipped: dict[str, str],
) -> list[dict[str, Any]]:
    rows = []
    for one in contenders:
        row: dict[str, Any] = {
            "name": one.name,
            "precision": one.precision,
            "origin": one.origin,
            "size": list(one.size),
            "batch": batch,
            "streams": streams,
        }
        if one.name in skipped:
            row["skipped"] = skipped[one.name]
        else:
            median = timings[one.name].median
            row |= asdict(timings[one.name])
            row["images_per_second"] = 1e3 * batch * streams / median
            row["times_faster"] = next(iter(timings.values())).median / median
            row["bytes"] = least_bytes(one, batch * streams)
        rows.append(row)
    return rows
