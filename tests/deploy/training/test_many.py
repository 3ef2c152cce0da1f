"""Several runs, here and on a Ray that runs in this process: the same files in the end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from destseg_deploy.cluster.place import Place
from destseg_deploy.data.datasets import open_dataset
from destseg_deploy.errors import BackendError, JobError, OutputError
from destseg_deploy.locks import locked
from destseg_deploy.training import loop, run
from destseg_deploy.training.run import PlannedRun, seat_of, train_all
from tests.deploy.training.cases import LONGER, TINY, small_networks, small_options, train_small
from tests.fakes.ray_tasks import FakeRay, Killed
from tests.trained_files import trained_files
from tests.unchanged import unchanged


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ENABLE_AUTO_CONNECT"):
        monkeypatch.setenv(name, "0")
    return fake


@contextmanager
def silent(label: str) -> Iterator[Any]:
    yield lambda done, total, text: None


def plan(category: Path, folder: Path, recipe: Any = TINY) -> list[PlannedRun]:
    return [
        PlannedRun(
            open_dataset(category),
            folder / f"cable-seed{seed}.safetensors",
            replace(recipe, seed=seed),
        )
        for seed in (0, 1)
    ]


def test_a_cluster_that_is_not_there_costs_no_saved_state(
    ray: FakeRay, category: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even with ``--restart``, which deletes the states of interrupted runs."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    runs, options = plan(category, tmp_path), small_options(restart=True)
    state = runs[0].output.with_suffix(".resume")
    state.write_bytes(b"hours of work")
    place = Place("ray://127.0.0.1:1")
    with pytest.raises(BackendError, match="no cluster answers there"):
        list(train_all(runs, options, None, place, progress=silent, notify=print))
    assert state.read_bytes() == b"hours of work"


class Stop(Exception):
    """Ends a run where a test wants it interrupted."""


def stopped_later(category: Path, output: Path) -> None:
    """Put the state after step 13 beside a checkpoint."""

    def report(progress: Any) -> None:
        if progress.done == 20:
            raise Stop

    with pytest.raises(Stop):
        train_small(category, output, LONGER, report=report, save_every=0, restart=True)
    assert output.with_suffix(".resume").is_file()


def train(planned: list[PlannedRun], on: str = "ray", **options: Any) -> list[str]:
    """Train, and return what the user was told."""
    notes: list[str] = []
    with small_networks():
        found = train_all(
            planned, small_options(**options), None, Place(on), progress=silent, notify=notes.append
        )
        for _ in found:
            pass
    return notes


def test_a_cluster_writes_what_this_process_writes(
    ray: FakeRay, category: Path, tmp_path: Path
) -> None:
    train(plan(category, tmp_path / "here"), "here")
    train(plan(category, tmp_path / "ray"))
    made = trained_files(tmp_path / "ray")
    assert len(made) == 6
    assert made == trained_files(tmp_path / "here")
    with unchanged(tmp_path):
        notes = train(plan(category, tmp_path / "ray"))
    assert [note.partition(": ")[2][:30] for note in notes] == [
        "trained with these options bef"
    ] * 2


@pytest.mark.parametrize("restart", [False, True])
def test_a_run_goes_on_where_its_worker_ended(
    restart: bool, ray: FakeRay, category: Path, tmp_path: Path
) -> None:
    """With --restart, too: it is the state of before the command that does not count."""
    planned = plan(category, tmp_path / "ray", LONGER)[:1]
    train(plan(category, tmp_path / "here", LONGER)[:1], "here")
    if restart:
        train(planned)
        stopped_later(category, planned[0].output)
    plain, killed = loop.Loop.step, []

    def step(loop: Any, phase: Any, *rest: Any) -> Any:
        if phase.name == "segmentation" and not killed:
            killed.append(phase)
            raise Killed
        return plain(loop, phase, *rest)

    with mock.patch.object(loop.Loop, "step", step):
        notes = train(planned, restart=restart)
    assert killed
    assert [note for note in notes if "continuing after step" in note] == [
        f"{planned[0].output}: continuing after step 12 of 25"
    ]
    assert trained_files(tmp_path / "ray") == trained_files(tmp_path / "here")


def test_a_run_that_fails_costs_no_other(ray: FakeRay, category: Path, tmp_path: Path) -> None:
    planned = plan(category, tmp_path / "ray")
    (tmp_path / "bad").mkdir()
    for i in range(3):
        (tmp_path / f"bad/{i:03}.png").write_text("no image")
    planned[0] = replace(planned[0], data=open_dataset(tmp_path / "bad"))
    with pytest.raises(JobError, match=r"1 of 2 failed on the cluster: cable-seed0.*bad/00\d\.png"):
        train(planned)
    assert sorted(trained_files(tmp_path / "ray")) == [
        "cable-seed1-losses.csv",
        "cable-seed1.json",
        "cable-seed1.safetensors",
    ]


def test_what_another_command_writes_is_refused_before_the_training(
    ray: FakeRay, category: Path, tmp_path: Path
) -> None:
    planned = plan(category, tmp_path)
    with locked(planned[1].output), unchanged(tmp_path):
        with pytest.raises(OutputError, match=r"cable-seed1\.safetensors: process \d+ is writing"):
            train(planned)


def test_a_worker_computes_with_the_threads_of_the_command(
    ray: FakeRay, category: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray gives its workers another number than PyTorch takes by itself."""
    seen = []
    prepare, get = run.prepare, ray.get

    def in_worker(found: Any) -> Any:
        torch.set_num_threads(1)
        return get(found)

    def look(*given: Any) -> Any:
        seen.append(torch.get_num_threads())
        return prepare(*given)

    monkeypatch.setattr(ray, "get", in_worker)
    monkeypatch.setattr(run, "prepare", look)
    for threads in (0, 2):
        torch.set_num_threads(3)
        train(plan(category, tmp_path / str(threads))[:1], threads=threads)
        assert ray.asked["num_cpus"] == 2, "the machine has no more"
    assert seen == [3, 2]
    torch.set_num_threads(3)
    train(plan(category, tmp_path / "here")[:1], "here", threads=2)
    assert seen == [3, 2, 2]
    assert torch.get_num_threads() == 3
    assert seat_of(small_options(), Place()).threads == 3
