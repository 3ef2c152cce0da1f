"""Training on a real Ray, on this machine: make test-ray. Workers and drivers are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="the extra ray is not installed: make test-ray")
pytest.importorskip("torch")

from destseg_deploy.data.sample.category import write_sample
from tests.deploy.training.cases import ROOT
from tests.processes import below, runs, wait_for
from tests.trained_files import trained_files

DRIVER = """
import sys, time
from unittest import mock
from destseg_deploy.cli.train import train
from destseg_deploy.training import loop, run
from tests.deploy.training.cases import small_networks

def small(*args):  # of __main__, so it is sent to the workers as it is here
    from destseg_deploy.training import run
    with small_networks():
        return run._train_one(*args)

def slow(*args):
    plain = loop.Loop.step
    def step(*given):
        time.sleep(0.5)
        return plain(*given)
    with mock.patch.object(loop.Loop, "step", step):
        return small(*args)

if "--on" in sys.argv:
    run._train_one = slow if sys.argv.pop(1) == "slow" else small
    train()
with small_networks():
    train()
"""
"""Trains small networks, here or in workers; there each step may take half a second."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a category, one that cannot be trained on, and what one process writes."""
    root = tmp_path_factory.mktemp("train")
    write_sample(root / "data", size=64, train=6, good=3, per_defect=1)
    bad = root / "data/nut/train/good"
    bad.mkdir(parents=True)
    for i in range(3):
        (bad / f"{i:03}.png").write_text("no image")
    done = run(place=root, out="here", on=())
    assert done.returncode == 0, done.stderr
    return root


def command(out: str, on: tuple[str, ...], *more: str, speed: str = "fast") -> list[str]:
    speeds = (speed,) if "--on" in on else ()
    return [
        *(sys.executable, "-c", DRIVER, *speeds, "--data", "data", "--output", out),
        *("--category", "cable", "--seeds", "0,1,2", "--size", "64", "--batch-size", "2"),
        *("--steps", "12,13", "--teacher", "random", "--holdout", "0.3", "--workers", "0"),
        *("--device", "cpu", "--threads", "1", "--save-every", "0", *on, *more),
    ]


def environment(place: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}", "HOME": str(place)}


def run(
    *more: str, place: Path, out: str, on: tuple[str, ...] = ("--on", "ray")
) -> subprocess.CompletedProcess[str]:
    words = command(out, on, *more)
    return subprocess.run(
        words, cwd=place, env=environment(place), capture_output=True, text=True, timeout=600
    )


@contextmanager
def started(place: Path, out: str) -> Iterator[subprocess.Popen[str]]:
    """Start a slow training on Ray; end it when the test ends."""
    words = command(out, ("--on", "ray"), speed="slow")
    pipe = subprocess.PIPE
    with (
        (place / f"{out}.log").open("w") as log,
        subprocess.Popen(
            words, cwd=place, env=environment(place), stdout=pipe, stderr=log, text=True
        ) as driver,
    ):
        try:
            yield driver
        finally:
            driver.kill()


def workers(pid: int) -> list[int]:
    return [child for child, name in below(pid).items() if name.startswith("ray::run_job")]


def states(folder: Path) -> list[Path]:
    return list(folder.glob("*.resume"))


def test_a_killed_worker_and_a_killed_driver_cost_no_bit(place: Path) -> None:
    out = place / "out"
    with started(place, "out") as driver:
        wait_for(lambda: len(states(out)) == 2)
        victim = wait_for(lambda: workers(driver.pid))[0]
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: "continuing after step" in (place / "out.log").read_text())
        assert driver.poll() is None, "the training goes on without the worker"
        cluster = below(driver.pid)
        driver.kill()
        told, _ = driver.communicate()
        ours = {"checkpoint", "trained", "threshold", "rule"}
        assert {line.split()[0] for line in told.splitlines()} <= ours, "Ray prints nothing there"
    wait_for(lambda: not any(runs(pid) for pid in cluster))
    assert not (out / "cable-seed2.json").exists(), "killed in the middle"
    done = run(place=place, out="out")
    assert done.returncode == 0, done.stderr
    assert "continuing after step" in done.stderr
    assert sorted(line for line in done.stdout.splitlines() if "checkpoint" in line) == [
        f"checkpoint  out/cable-seed{seed}.safetensors" for seed in (0, 1, 2)
    ]
    assert len(trained_files(out)) == 9
    assert trained_files(out) == trained_files(place / "here")


def test_a_run_that_fails_is_named_and_what_is_finished_is_used(place: Path) -> None:
    both = ("--category", "nut", "--seeds", "0,1")
    done = run(*both, place=place, out="both")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("Error: 2 of 4 failed on the cluster: nut-seed")
    assert "nut/train/good/00" in last
    assert "Traceback" not in done.stderr
    made = trained_files(place / "both")
    here = trained_files(place / "here")
    assert made == {name: content for name, content in here.items() if "seed2" not in name}
    again = run(*both, place=place, out="both")
    assert again.stderr.count("trained with these options before") == 2
    assert again.returncode == 1


def test_ctrl_c_ends_a_training_and_its_cluster(place: Path) -> None:
    with started(place, "ended") as driver:
        wait_for(lambda: states(place / "ended"))
        cluster = below(driver.pid)
        driver.send_signal(signal.SIGINT)
        driver.communicate(timeout=300)
        assert driver.returncode == 130
    told = (place / "ended.log").read_text()
    assert "Traceback" not in told, told
    wait_for(lambda: not any(runs(pid) for pid in cluster))
    left = {path.name for path in (place / "ended").iterdir() if not path.name.startswith(".")}
    assert left, "what was saved is kept"
    assert not list((place / "ended").glob(".*.lock"))


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        (("--on", "ray://127.0.0.1:9"), "ray://127.0.0.1:9: no cluster answers there"),
        (("--on", "ray", "--device", "cuda"), "the cluster has no GPU"),
        (("--on", "ray", "--device", "cuda:1"), "Ray gives each worker its GPU"),
    ],
)
def test_what_cannot_run_is_one_line(place: Path, more: tuple[str, ...], wanted: str) -> None:
    done = run(*more, place=place, out="none")
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert wanted in line
    assert not (place / "none").exists()
