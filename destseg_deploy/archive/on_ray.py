"""Workers on a Ray cluster: a pool of actors, each with a predictor of its own.

Plain actors and not Ray Data: workers read the images that they score, so that no task that reads
waits for a CPU that the pool of actors holds. This process hands out paths and writes the answers.
So an image is answered once, whatever happens to a worker: a chunk whose worker ended goes to
another one.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from destseg_deploy.archive.answers import Answer, Scorer, Work, failed
from destseg_deploy.archive.options import ArchiveOptions
from destseg_deploy.archive.shares import Share, asked_threads, divide, for_worker, runs_on_cuda
from destseg_deploy.cluster.connection import connected
from destseg_deploy.errors import BackendError, DestsegError, SpecError
from destseg_deploy.spec import ModelSpec

START_S = 180.0
"""Longest time until the first worker is ready. A cluster may have to start a machine for it."""

BLAMED = 2
"""Workers that must end on a chunk before it is divided, and on an image before it gets an error: a
single end may come from outside."""

HOPELESS = 12
"""Ends of workers, without an answer between, after which a run stops."""


@dataclass
class Chunk:
    """Paths that a worker scores together, and how many workers ended on them."""

    paths: list[str]
    deaths: int = 0


class Worker:
    """What runs in each actor."""

    def __init__(self, work: Work) -> None:
        """Keep what to run; ``open`` loads it, so that its errors arrive as they are."""
        self._work = work
        self._scorer: Scorer | None = None

    def open(self) -> ModelSpec:
        """Load the model, and return its contract.

        Raises:
            DestsegError: As ``load``.
        """
        self._scorer = self._work.open()
        return self._scorer.spec

    def answer(self, paths: list[str]) -> list[Answer]:
        """Score a chunk; see ``Scorer.answer``."""
        assert self._scorer is not None  # a worker gets chunks when it has opened
        return self._scorer.answer(paths)


class _Lost(Exception):
    """A worker ended before it answered."""


class RayWorkers:
    """The pool. One chunk is with each worker, so it is known on which one a worker ended."""

    def __init__(self, ray: Any, work: Work, share: Share) -> None:
        """Start the workers, and wait for the first.

        Raises:
            BackendError: If none starts.
            DestsegError: What ``load`` raises in a worker.
        """
        self._ray, self._share = ray, share
        # No restarts by Ray: a worker that ended is replaced here, where its chunk is known.
        self._actor: Any = ray.remote(Worker).options(
            num_cpus=share.cpus, num_gpus=share.gpus, max_restarts=0, max_task_retries=0
        )
        self._work = for_worker(work, share)
        self._starting: dict[Any, Any] = {}  # what an actor's open() will return -> the actor
        self._running: dict[Any, tuple[Any, Chunk]] = {}
        self._idle: list[Any] = []
        self._again: deque[Chunk] = deque()
        self._lost = 0
        self._since = time.monotonic()
        self._spec: ModelSpec | None = None
        for _ in range(share.workers):
            self._begin()
        while self._spec is None:
            for found in self._wait():
                self._opened(found)

    @property
    def spec(self) -> ModelSpec:
        """The artifact's contract, as the first worker read it."""
        assert self._spec is not None  # __init__ waited for it
        return self._spec

    def answers(self, chunks: Iterator[list[str]]) -> Iterator[list[Answer]]:
        """Yield the answers of all chunks, each image once, in any order.

        Raises:
            BackendError: If workers end again and again.
            DestsegError: What a worker raises.
        """
        while True:
            while self._idle and (chunk := self._next(chunks)) is not None:
                actor = self._idle.pop()
                self._running[actor.answer.remote(chunk.paths)] = (actor, chunk)
            if self._idle and not self._running:
                return
            for found in self._wait():
                if found in self._starting:
                    self._opened(found)
                else:
                    yield self._collected(found)

    def close(self) -> None:
        """End the workers, and whatever they do."""
        for actor in (
            *self._idle,
            *self._starting.values(),
            *(actor for actor, _ in self._running.values()),
        ):
            if self._ray.is_initialized():
                with suppress(Exception):  # the cluster may be gone, and its workers with it
                    self._ray.kill(actor)

    def _next(self, chunks: Iterator[list[str]]) -> Chunk | None:
        if self._again:
            return self._again.popleft()
        paths = next(chunks, None)
        return None if paths is None else Chunk(paths)

    def _begin(self) -> None:
        actor = self._actor.remote(self._work)
        self._starting[actor.open.remote()] = actor

    def _wait(self) -> list[Any]:
        """Return what has come to an end: an opened worker, an answered chunk, or either's loss."""
        waited = list(self._running) + list(self._starting)
        done: list[Any] = self._ray.wait(waited, num_returns=1, timeout=5.0)[0]
        if not done and not self._running and time.monotonic() - self._since > START_S:
            free = {k: v for k, v in self._ray.available_resources().items() if k in ("CPU", "GPU")}
            raise BackendError(
                f"no worker started within {START_S:.0f} s: each needs {self._share.cpus:g} CPU "
                f"and {self._share.gpus:g} GPU, and free are {free or 'none'}. Pass other "
                "--workers, or wait until the cluster has room."
            )
        return done

    def _opened(self, found: Any) -> None:
        actor = self._starting.pop(found)
        try:
            spec: ModelSpec = self._get(found)
        except _Lost as error:
            self._count_loss(error)
            self._begin()
            return
        self._spec = self._spec or spec
        if (spec.artifact, spec.threshold) != (self._spec.artifact, self._spec.threshold):
            raise SpecError(
                f"{spec.artifact.file}: two machines of the cluster hold different ones, or with "
                "different thresholds. Copy the artifact and its .json to all of them."
            )
        self._idle.append(actor)

    def _collected(self, found: Any) -> list[Answer]:
        """Return a chunk's answers; if its worker ended, another one starts and gets it."""
        actor, chunk = self._running.pop(found)
        try:
            answers: list[Answer] = self._get(found)
        except _Lost as error:
            answers = self._blame(chunk)
            self._count_loss(error)
            self._begin()
            return answers
        self._lost = 0
        self._idle.append(actor)
        return answers

    def _blame(self, chunk: Chunk) -> list[Answer]:
        """Put a chunk back, divided if it lost workers before; or give its one image an error."""
        chunk.deaths += 1
        if chunk.deaths < BLAMED:
            self._again.append(chunk)
        elif len(chunk.paths) > 1:
            self._again.extend(Chunk([path]) for path in chunk.paths)
        else:
            path = chunk.paths[0]
            return [
                failed(
                    path,
                    f"{path}: {BLAMED} workers ended while they read or scored it. It may need "
                    "more memory than a worker has. Look at it by itself.",
                )
            ]
        return []

    def _count_loss(self, error: _Lost) -> None:
        self._lost += 1
        self._since = time.monotonic()
        if self._lost >= HOPELESS:
            raise BackendError(
                f"{HOPELESS} workers ended one after the other without an answer ({error}). They "
                "may lack memory: pass fewer --workers. What was answered is kept."
            )

    def _get(self, found: Any) -> Any:
        """Return a result; raise a worker's own error as it was raised there.

        Raises:
            _Lost: If the worker ended.
        """
        errors = self._ray.exceptions
        try:
            return self._ray.get(found)
        except errors.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, DestsegError | OSError | ImportError):
                raise cause from None
            raise
        except errors.RayError as error:
            raise _Lost(" ".join(str(error).split())[:120]) from error


@contextmanager
def ray_workers(work: Work, options: ArchiveOptions) -> Iterator[RayWorkers]:
    """Connect to a cluster, and give workers that fill it.

    Raises:
        BackendError: If the cluster cannot be reached, or has no room for a worker.
        DestsegError: What ``load`` raises in a worker.
    """
    cuda = runs_on_cuda(work)
    with connected(options.on) as ray:
        have = ray.cluster_resources()
        share = divide(
            have.get("CPU", 0.0),
            have.get("GPU", 0.0),
            cuda=cuda,
            workers=options.workers,
            threads=asked_threads(work),
        )
        workers = RayWorkers(ray, work, share)
        try:
            yield workers
        finally:
            workers.close()
