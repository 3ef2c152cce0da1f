"""Jobs: functions that run in this process one after the other, or on a Ray cluster as its tasks.

Ray holds the queue, gives each job the CPUs or the GPU that it takes, and starts a job again
elsewhere when its worker ended. So a job must go on from its files where an earlier start of it
stopped. A job that fails does not end the others.
"""

from __future__ import annotations

import os
import platform
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from destseg_deploy.cluster.connection import arrived, connected
from destseg_deploy.cluster.place import Place, refuse_lack, takes_gpu
from destseg_deploy.data.images import assume_bit_depth, assumed_bit_depth
from destseg_deploy.device import Device
from destseg_deploy.errors import BackendError, DataWarning, DestsegError, JobError
from destseg_deploy.memory import lacks_memory, shortage

T = TypeVar("T")
Report = Callable[[int, int, str], None]
Bar = Callable[[str], AbstractContextManager[Report]]
"""``console.progress``: given a label, a bar that takes steps done, their total and a remark."""

Notify = Callable[[str], None]
"""Takes what the user should know."""

Job = Callable[[Bar, Notify], T]
"""What is run; on a cluster it is sent to a worker, and so is what it returns."""

RETRIES = 10
"""Times that Ray starts a job again whose worker ended. A job that ends every worker must stop."""

POLL_S = 1.0
"""Seconds between two looks at what the jobs say."""

TELL_EVERY_S = 5.0
"""Seconds between two reports of a job about its progress."""

PATIENCE_S = 60.0
"""Seconds without a started job after which the user learns what the cluster lacks."""


@dataclass(frozen=True)
class Seat:
    """Where jobs run, and what each of them takes.

    Attributes:
        place: This process, or a cluster.
        device: ``auto``, ``cpu`` or ``cuda``. On a cluster a job on ``cuda`` takes one GPU, and so
            does one on ``auto`` if there are GPUs.
        threads: CPU threads of a job that does not run on a GPU; it reserves as many CPUs.
    """

    place: Place = field(default_factory=Place)
    device: str = "cpu"
    threads: int = 1


def run_jobs(
    jobs: Sequence[tuple[str, Job[T]]], seat: Seat, progress: Bar, notify: Notify
) -> Iterator[tuple[int, T]]:
    """Run named jobs; yield the index and the result of each that has ended.

    In this process they run in order, and the first error ends them. On a cluster they run in any
    order; when the generator is closed, those that still run are ended.

    Args:
        jobs: Name and function of each.
        seat: Where they run.
        progress: Shows how far each job is. On a cluster several are open at a time.
        notify: Called with what the user should know; on a cluster once for each text.

    Raises:
        JobError: At the end, if jobs on a cluster failed.
        BackendError: If the cluster cannot be reached, or has no GPU and one is asked for.
        ModuleNotFoundError: If Ray is not installed.
        Exception: In this process, what a job raises; on a cluster, a fault in its code.
    """
    if seat.place.here:
        for i, (_, job) in enumerate(jobs):
            yield i, job(progress, notify)
        return
    with connected(seat.place.on) as ray, ExitStack() as bars:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        tasks = _Tasks(ray, jobs, _needs(seat, nodes), _Console(progress, notify, bars))
        try:
            yield from tasks.results()
        finally:
            tasks.cancel()


def _needs(seat: Seat, nodes: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return what Ray reserves for a job: a GPU, or the CPUs of its threads.

    A machine of fewer CPUs than threads runs a job, too: with all its CPUs, and as many threads, as
    another number would give other bits.

    Raises:
        BackendError: If the device is not NVIDIA's, is numbered, or is not there.
    """
    nodes = list(nodes)
    gpus = sum(node.get("GPU", 0.0) for node in nodes)
    cuda = gpus >= 1 if seat.device == "auto" else takes_gpu(Device.parse(seat.device))
    if cuda:
        refuse_lack(gpus)
        return {"num_cpus": 0, "num_gpus": 1}
    most = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
    return {"num_cpus": min(seat.threads, most) or seat.threads, "num_gpus": 0}


class _Console:
    """Shows what the jobs say: a bar for each label, and each note once."""

    def __init__(self, progress: Bar, notify: Notify, bars: ExitStack) -> None:
        self._progress, self._notify, self._bars = progress, notify, bars
        self._reports: dict[str, Report] = {}
        self._said = set[str]()

    def show(self, label: str, done: int, total: int, text: str) -> None:
        """Show the progress of a label; without a label, a note."""
        if label:
            if label not in self._reports:
                self._reports[label] = self._bars.enter_context(self._progress(label))
            self._reports[label](done, total, text)
        elif text not in self._said:
            self._said.add(text)
            self._notify(text)


class _Tasks:
    """The jobs as Ray's tasks. It owns them until ``cancel``."""

    def __init__(
        self,
        ray: Any,
        jobs: Sequence[tuple[str, Job[Any]]],
        needs: dict[str, float],
        console: _Console,
    ) -> None:
        self._ray, self._needs, self._console = ray, needs, console
        self._names = [name for name, _ in jobs]
        # Without a CPU of its own, so that it never waits for one that a job holds.
        board = ray.remote(Board).options(num_cpus=0, max_restarts=-1, max_task_retries=-1)
        self._board = board.remote()
        task = ray.remote(run_job).options(max_retries=RETRIES, **needs)
        around = (os.getcwd(), assumed_bit_depth(), self._board)
        self._running = {task.remote(job, *around): i for i, (_, job) in enumerate(jobs)}
        self._failed: dict[str, str] = {}
        self._since: float | None = time.monotonic()

    def results(self) -> Iterator[tuple[int, Any]]:
        """Yield index and result of each job that succeeds; errors are ``run_jobs``'s."""
        count = len(self._running)
        while self._running:
            done, _ = self._ray.wait(list(self._running), num_returns=1, timeout=POLL_S)
            self._look()
            for task in done:
                i = self._running.pop(task)
                try:
                    result = self._ray.get(task)
                except self._ray.exceptions.RayError as error:
                    self._fail(self._names[i], error)
                else:
                    yield i, result
        self._look()
        if self._failed:
            raise JobError(
                f"{len(self._failed)} of {count} failed on the cluster: "
                f"{', '.join(self._failed)}. The others are finished, and the same command uses "
                f"them. The first error: {next(iter(self._failed.values()))}"
            )

    def cancel(self) -> None:
        """End the jobs that still run, and the board."""
        for task in self._running:
            with suppress(Exception):  # the cluster may be gone, and its workers with it
                self._ray.cancel(task, force=True)
        with suppress(Exception):
            self._ray.kill(self._board)

    def _look(self) -> None:
        """Show what the jobs have said; say what is missing when none has started for long."""
        said = self._ray.get(self._board.take.remote())
        for one in said:
            self._console.show(*one)
        if said:
            self._since = None
        if self._since is not None and time.monotonic() - self._since > PATIENCE_S:
            self._since = None
            free = {k: v for k, v in self._ray.available_resources().items() if k in ("CPU", "GPU")}
            text = (
                f"nothing has started within {PATIENCE_S:.0f} s. Each run needs "
                f"{self._needs['num_cpus']:g} CPU and {self._needs['num_gpus']:g} GPU, and free "
                f"are {free or 'none'}. It starts when the cluster has room."
            )
            self._console.show("", 0, 0, text)

    def _fail(self, name: str, error: Exception) -> None:
        """Keep why a job failed; a fault in its code is raised as it is."""
        if not isinstance(error, self._ray.exceptions.RayTaskError):
            why = " ".join(str(error).split())[:160] or type(error).__name__
            text = f"its worker ended again and again ({why}). It may lack memory."
        else:
            cause = error.cause
            if isinstance(cause, DestsegError) or not isinstance(cause, Exception):
                text = str(cause)
            elif lacks_memory(cause):
                text = shortage(cause)
            elif isinstance(cause, OSError | ImportError):
                text = " ".join(str(cause).split())
            else:
                raise error
        self._failed[name] = text
        self._console.show("", 0, 0, f"{name} failed: {text}")


class Board:
    """An actor that keeps what the jobs say until this process takes it."""

    def __init__(self) -> None:
        """Keep nothing yet."""
        self._said: list[tuple[str, int, int, str]] = []

    def tell(self, label: str, done: int, total: int, text: str) -> None:
        """Keep a report of progress, or, with an empty label, a note."""
        self._said.append((label, done, total, text))

    def take(self) -> list[tuple[str, int, int, str]]:
        """Return what was said since the last call."""
        said, self._said = self._said, []
        return said


def run_job(job: Job[T], folder: str, bit_depth: int | None, board: Any) -> T:
    """Run a job in a worker as it would run in the process that sent it.

    Args:
        job: The job.
        folder: Where the command was given; relative paths begin there.
        bit_depth: As ``assume_bit_depth``'s.
        board: The actor ``Board``. Calls of it do not wait, and raise nothing when it is gone.

    Raises:
        BackendError: If this machine does not have the folder.
        Exception: What the job raises.
    """
    try:
        os.chdir(folder)
    except OSError as error:
        raise BackendError(
            f"{folder}: not on {platform.node()} ({error.strerror}). Workers read and write the "
            "command's files at the same paths; give the command in a folder that all machines "
            "share."
        ) from error
    with assume_bit_depth(bit_depth), warnings.catch_warnings():
        warnings.simplefilter("always", DataWarning)
        voice = _Voice(board)
        warnings.showwarning = voice.warn
        try:
            return job(voice.progress, voice.notify)
        finally:
            voice.end()


class _Voice:
    """Tells the board what a job says."""

    def __init__(self, board: Any) -> None:
        self._board, self._last = board, list[Any]()

    def notify(self, text: str) -> None:
        self._last = [self._board.tell.remote("", 0, 0, text)]

    def warn(self, message: Warning | str, *where: Any, **more: Any) -> None:
        self.notify(" ".join(str(message).split()))

    @contextmanager
    def progress(self, label: str) -> Iterator[Report]:
        told = -TELL_EVERY_S

        def report(done: int, total: int, text: str = "") -> None:
            nonlocal told
            if time.monotonic() - told >= TELL_EVERY_S:
                told = time.monotonic()
                self._board.tell.remote(label, done, total, text)

        yield report

    def end(self) -> None:
        """Wait for the last note: one that comes after the job's end is lost."""
        arrived(self._last)
