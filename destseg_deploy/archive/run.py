"""predict_archive: score an archive into a folder of Parquet parts, and go on where it stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Protocol

from destseg_deploy.archive.answers import Answer, Work
from destseg_deploy.archive.options import ArchiveOptions
from destseg_deploy.archive.parts import Counts, Origin, Parts
from destseg_deploy.archive.sources import stream_paths
from destseg_deploy.files import making
from destseg_deploy.locks import locked
from destseg_deploy.spec import ModelSpec
from destseg_deploy.text import storable

CHUNK = 32
"""Images that a worker gets at once, rounded up to whole batches; what its death costs."""


class Scoring(Protocol):
    """What scores chunks of an archive: this process, or workers."""

    @property
    def spec(self) -> ModelSpec:
        """The artifact's contract."""

    def answers(self, chunks: Iterator[list[str]]) -> Iterator[list[Answer]]:
        """Yield the answers of all chunks, each image once, in any order."""


@dataclass(frozen=True)
class Outcome:
    """What a run did.

    Attributes:
        counts: Of all parts, those of earlier runs included.
        new: Images that this run answered.
        seconds: What it took them, without the start of the model.
    """

    counts: Counts
    new: int
    seconds: float


def predict_archive(
    work: Work,
    sources: Sequence[str],
    output: Path | str,
    *,
    options: ArchiveOptions | None = None,
    report: Callable[[int, int, str], None] = lambda done, total, remark: None,
) -> Outcome:
    """Score an archive; write the answers as Parquet parts, ``<output>/part-<number>.parquet``.

    The same call again scores only the images that have no answer yet. Memory is bounded: the
    frames of a batch, the answers of a part, and all paths (about 0.2 GiB for a million).

    Args:
        work: The model, and how it runs.
        sources: What ``stream_paths`` takes. Each path is scored once.
        output: Folder of the parts.
        options: Where it runs, and whether maps are kept; here, and without maps, unless given.
        report: Called before the first image and after each chunk, with the number of images that
            this run has answered, how many it will, and the rate.

    Returns:
        What was done. An image that cannot be read is a row with its error.

    Raises:
        DataError: If a source names no image.
        OutputError: If the folder's parts are of another artifact, another run writes to it, or
            there is no room.
        BackendError: If the model or the cluster cannot run.
    """
    output = Path(output)
    options = options or ArchiveOptions()
    work = replace(work.settled(), maps=options.maps)
    with making(output), locked(output / "predictions", output), _opened(work, options) as scoring:
        parts = Parts(output, Origin.of(scoring.spec, work))
        pending = _pending(sources, parts.answered())
        batch = max(1, work.batch_size or scoring.spec.input.batch.opt)
        chunks = _chunks(pending, -(-CHUNK // batch) * batch)
        begun, done = time.monotonic(), 0
        report(0, len(pending), "")
        with parts.writing() as writer:
            for answers in scoring.answers(chunks):
                writer.add(answers)
                done += len(answers)
                rate = done / (time.monotonic() - begun)
                report(done, len(pending), f"{rate:.1f} images/s")
        return Outcome(parts.counts(), done, time.monotonic() - begun)


def _pending(sources: Sequence[str], answered: set[str]) -> list[str]:
    """Return the paths that have no answer yet, each once."""
    pending = []
    for path in stream_paths(sources):
        stored = storable(path)
        if stored not in answered:
            answered.add(stored)
            pending.append(path)
    return pending


def _chunks(paths: Sequence[str], size: int) -> Iterator[list[str]]:
    remaining = iter(paths)
    while chunk := list(islice(remaining, size)):
        yield chunk


def _opened(work: Work, options: ArchiveOptions) -> AbstractContextManager[Scoring]:
    if options.here:
        return closing(_Here(work))
    from destseg_deploy.archive.on_ray import ray_workers

    return ray_workers(work, options)


class _Here:
    """Scores in this process, one chunk after the other."""

    def __init__(self, work: Work) -> None:
        self._scorer = work.open()
        self.spec = self._scorer.spec

    def answers(self, chunks: Iterator[list[str]]) -> Iterator[list[Answer]]:
        return map(self._scorer.answer, chunks)

    def close(self) -> None:
        self._scorer.close()
