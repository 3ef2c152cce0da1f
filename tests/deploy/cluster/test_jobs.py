"""Jobs, on a Ray that runs in this process and whose workers end as told."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from destseg_deploy.cluster import jobs
from destseg_deploy.cluster.jobs import Board, Job, Seat, run_job, run_jobs
from destseg_deploy.cluster.place import Place
from destseg_deploy.data.images import assume_bit_depth, assumed_bit_depth
from destseg_deploy.errors import BackendError, DataWarning, JobError, TrainingError
from tests.fakes.ray_tasks import FakeRay, Killed

CLUSTER = Seat(Place(on="ray"))


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ENABLE_AUTO_CONNECT"):
        monkeypatch.setenv(name, "0")  # connected sets them; they are restored
    return fake


class Screen:
    """What the user sees."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.bars: dict[str, list[tuple[int, int, str]]] = {}

    @contextmanager
    def progress(self, label: str) -> Iterator[Callable[[int, int, str], None]]:
        assert label not in self.bars, "one bar for each label"
        said = self.bars.setdefault(label, [])
        yield lambda done, total, text: said.append((done, total, text))


def run(
    *named: tuple[str, Job[Any]],
    seat: Seat = CLUSTER,
    screen: Screen | None = None,
    found: dict[int, Any] | None = None,
) -> dict[int, Any]:
    """Run jobs; ``found`` holds the results that came before an error."""
    screen, found = screen or Screen(), {} if found is None else found
    for i, value in run_jobs(named, seat, screen.progress, screen.notes.append):
        found[i] = value
    return found


def gives(value: Any) -> Job[Any]:
    return lambda progress, notify: value


def fails(error: BaseException) -> Job[Any]:
    def job(progress: Any, notify: Any) -> Any:
        raise error

    return job


def test_in_this_process_jobs_run_in_order_and_the_first_error_ends_them() -> None:
    named = [("a", gives(1)), ("b", fails(TrainingError("no"))), ("c", gives(3))]
    found: dict[int, Any] = {}
    with pytest.raises(TrainingError):
        run(*named, seat=Seat(), found=found)
    assert found == {0: 1}


def test_a_cluster_gives_each_result_with_its_index(ray: FakeRay) -> None:
    assert run(("a", gives("x")), ("b", gives("y"))) == {0: "x", 1: "y"}
    assert ray.asked == {"max_retries": jobs.RETRIES, "num_cpus": 1, "num_gpus": 0}
    assert run() == {}


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (TrainingError("the loss is nan"), "the loss is nan"),
        (MemoryError("no room"), "not enough memory (no room)"),
        (ModuleNotFoundError("No module named 'torch'"), "No module named 'torch'"),
        (Killed(), "its worker ended again and again (the worker died unexpectedly)"),
    ],
)
def test_a_job_that_fails_is_named_and_the_others_finish(
    ray: FakeRay, error: BaseException, words: str
) -> None:
    found: dict[int, Any] = {}
    screen = Screen()
    with pytest.raises(JobError) as caught:
        run(
            ("a", gives(1)), ("cable-seed1", fails(error)), ("c", gives(3)),
            screen=screen, found=found,
        )  # fmt: skip
    assert found == {0: 1, 2: 3}
    assert str(caught.value).startswith("1 of 3 failed on the cluster: cable-seed1. The others")
    assert words in str(caught.value)
    assert screen.notes[0].startswith(f"cable-seed1 failed: {words}")


def test_a_fault_in_the_code_ends_all_jobs(ray: FakeRay) -> None:
    with pytest.raises(ray.exceptions.RayTaskError):
        run(("a", gives(1)), ("b", fails(KeyError("ours"))))
    assert len(ray.cancelled) == 2, "the other job, and the board"


def test_jobs_that_nobody_waits_for_are_ended(ray: FakeRay) -> None:
    screen = Screen()
    found = run_jobs(
        [("a", gives(1)), ("b", gives(2)), ("c", gives(3))],
        CLUSTER,
        screen.progress,
        screen.notes.append,
    )
    next(found)
    found.close()
    assert len(ray.cancelled) == 3, "two jobs, and the board"


def test_a_job_whose_worker_ended_is_started_again(ray: FakeRay) -> None:
    starts = []

    def job(progress: Any, notify: Any) -> int:
        starts.append(1)
        if len(starts) < 3:
            raise Killed
        return len(starts)

    assert run(("a", job)) == {0: 3}


def test_progress_and_notes_of_jobs_arrive(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "TELL_EVERY_S", 0.0)

    def job(progress: Any, notify: Any) -> None:
        notify("built-in textures")
        warnings.warn("8 of 16 bits", DataWarning, stacklevel=1)
        for name in ("training", "scoring"):
            with progress(name) as report:
                report(1, 2, "loss 0.5")

    screen = Screen()
    run(("a", job), ("b", job), ("c", gives(None)), screen=screen)
    assert screen.notes == ["built-in textures", "8 of 16 bits"], "each once"
    assert screen.bars["training"] == [(1, 2, "loss 0.5")] * 2, "of both jobs"
    assert list(screen.bars) == ["training", "scoring"]


def test_a_job_does_not_report_each_step(ray: FakeRay) -> None:
    class Remote:
        def __init__(self, board: Board) -> None:
            self.remote = board.tell

    board = Board()
    handle = type("Handle", (), {"tell": Remote(board)})()

    def job(progress: Any, notify: Any) -> None:
        with progress("training") as report:
            for step in range(100):
                report(step + 1, 100, "")

    run_job(job, os.getcwd(), None, handle)
    assert board.take() == [("training", 1, 100, "")]
    assert board.take() == []


def test_a_job_finds_the_files_as_the_command_does(ray: FakeRay, tmp_path: Path) -> None:
    before = os.getcwd()
    try:
        with assume_bit_depth(12):
            os.chdir(tmp_path)
            found = run(("a", lambda progress, notify: (os.getcwd(), assumed_bit_depth())))
    finally:
        os.chdir(before)
    assert found == {0: (str(tmp_path), 12)}
    with pytest.raises(BackendError, match=r"nowhere: not on .* in a folder that all machines sh"):
        run_job(gives(1), str(tmp_path / "nowhere"), None, None)


def test_a_cluster_without_room_is_named_once(
    ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "PATIENCE_S", 0.0)
    ray.stuck = True
    screen, waits = Screen(), iter(range(3))

    def wait(tasks: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        ray.stuck = next(waits) < 2
        return FakeRay.wait(ray, tasks, num_returns, timeout)

    monkeypatch.setattr(ray, "wait", wait)
    run(("a", gives(1)), screen=screen)
    (note,) = screen.notes
    assert "Each run needs 1 CPU and 0 GPU, and free are {'CPU': 2.0}" in note


@pytest.mark.parametrize(
    ("seat", "nodes", "wanted"),
    [
        (("cpu", 4), [{"CPU": 8.0}], (4, 0)),
        (("cpu", 4), [{"CPU": 2.0}, {"CPU": 3.0}], (3.0, 0)),
        (("cpu", 4), [{}], (4, 0)),
        (("auto", 2), [{"CPU": 8.0}], (2, 0)),
        (("auto", 2), [{"CPU": 8.0}, {"CPU": 8.0, "GPU": 1.0}], (0, 1)),
        (("cuda", 2), [{"GPU": 4.0}], (0, 1)),
        (("cpu", 2), [{"CPU": 2.0, "GPU": 4.0}], (2, 0)),
    ],
)
def test_a_job_takes_a_gpu_or_the_cpus_of_its_threads(
    seat: tuple[str, int], nodes: list[dict[str, float]], wanted: tuple[float, float]
) -> None:
    found = jobs._needs(Seat(CLUSTER.place, *seat), nodes)
    assert (found["num_cpus"], found["num_gpus"]) == wanted


@pytest.mark.parametrize(
    ("device", "words"),
    [("cuda", "the cluster has no GPU"), ("cuda:1", "Ray gives each worker its GPU")],
)
def test_a_device_that_ray_cannot_give_is_refused(ray: FakeRay, device: str, words: str) -> None:
    with pytest.raises(BackendError, match=words):
        run(("a", gives(1)), seat=Seat(CLUSTER.place, device))
