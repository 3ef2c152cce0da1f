"""Latency and throughput of artifacts on the machine at hand, all contenders in one run.

With several streams, so many threads score a batch each at the same time, as hosts with several
cameras do: a call then ends when all of them have their answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from destseg_bench.contenders import Contender
from destseg_bench.timing import SETTLE, Call, interleave, summarize_timing
from destseg_deploy.data.images import expand, read_image
from destseg_deploy.data.resize import resize_image
from destseg_deploy.errors import DataError, DestsegError

Progress = Callable[[int, int, str], None]


def measure_latency(
    contenders: Sequence[Contender],
    frames: Sequence[Path],
    *,
    batches: Sequence[int] = (1,),
    streams: Sequence[int] = (1,),
    rounds: int = 50,
    warmup: int = 5,
    settle: float = SETTLE,
    report: Progress = lambda done, total, name: None,
) -> Iterator[list[dict[str, Any]]]:
    """Time contenders batch size by batch size and stream by stream, interleaved within each.

    Args:
        contenders: The first that runs is what the others are compared with.
        frames: Images; the same go to every contender, resized to its input size beforehand.
        batches: Images per call.
        streams: Calls at the same time.
        rounds: Calls of each contender that count.
        warmup: Calls of each before.
        settle: Seconds of rest before each call; 0 on a GPU, whose clock falls in a rest.
        report: Called with the calls done at this batch size, all calls, and the contender.

    Yields:
        For each batch size and number of streams a row for each contender: its name, precision,
        origin, batch and streams, and either its ``Timing`` in milliseconds until all streams have
        their answer, with ``images_per_second`` and ``times_faster`` than the first, by medians; or
        ``skipped``, the reason.

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
            shared = {name: _together(call, together, pool) for name, call in calls.items()}
            seconds = interleave(shared, rounds=rounds, warmup=warmup, settle=settle, report=report)
        yield _rows(contenders, batch, together, seconds, skipped)


def find_frames(folder: Path, count: int) -> list[Path]:
    """Return up to ``count`` images below a folder, spread evenly.

    Raises:
        DataError: If there is none.
    """
    found = expand([str(folder)])
    chosen = np.unique(np.linspace(0, len(found) - 1, min(count, len(found))).astype(int))
    return [found[i] for i in chosen]


def _together(call: Call, streams: int, pool: Executor) -> Call:
    """Return a call that does so many at the same time; one stays on the calling thread."""
    if streams == 1:
        return call

    def calls() -> object:
        return [pending.result() for pending in [pool.submit(call) for _ in range(streams)]]

    return calls


@contextmanager
def _opened(
    contenders: Sequence[Contender], frames: Sequence[Path], batch: int, streams: int
) -> Iterator[tuple[dict[str, Call], dict[str, str]]]:
    """Open every contender for a batch; those that cannot run are named with the reason."""
    calls: dict[str, Call] = {}
    skipped: dict[str, str] = {}
    stacks = {size: stack_frames(frames, size, batch) for size in {one.size for one in contenders}}
    with ExitStack() as stack:
        for one in contenders:
            if streams > 1 and not one.concurrent:
                skipped[one.name] = "its calls share one buffer and cannot run at the same time"
                continue
            try:
                call = stack.enter_context(one.open(stacks[one.size]))
                call()
            except (DestsegError, RuntimeError) as error:  # RuntimeError: torch, out of memory too
                skipped[one.name] = " ".join(str(error).split())[:300]
                continue
            calls[one.name] = call
        yield calls, skipped


def stack_frames(frames: Sequence[Path], size: tuple[int, int], batch: int) -> NDArray[np.uint8]:
    """Return a batch of images at a size, uint8 (N, H, W, 3), repeated where there are fewer."""
    images = [resize_image(read_image(frames[i % len(frames)]), size) for i in range(batch)]
    return np.stack(images)


def _rows(
    contenders: Sequence[Contender],
    batch: int,
    streams: int,
    seconds: dict[str, list[float]],
    skipped: dict[str, str],
) -> list[dict[str, Any]]:
    timings = {name: summarize_timing(times) for name, times in seconds.items()}
    first = next(iter(timings.values())).median if timings else None
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
            rows.append({**row, "skipped": skipped[one.name]})
            continue
        timing = timings[one.name]
        rows.append(
            {
                **row,
                **asdict(timing),
                "images_per_second": 1e3 * batch * streams / timing.median,
                "times_faster": first / timing.median if first is not None else None,
            }
        )
    return rows
