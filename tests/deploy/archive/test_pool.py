"""The pool of workers, on a Ray that runs in this process and whose workers end as told."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from destseg_deploy.archive import on_ray
from destseg_deploy.archive.answers import Answer, Work, failed
from destseg_deploy.archive.on_ray import RayWorkers
from destseg_deploy.archive.options import ArchiveOptions
from destseg_deploy.archive.shares import Share, divide, for_worker, runs_on_cuda
from destseg_deploy.cluster.connection import connected
from destseg_deploy.device import Device
from destseg_deploy.errors import BackendError, OutputError, SpecError
from destseg_deploy.options import OrtOptions, TensorRtOptions
from destseg_deploy.testing import fake_spec
from destseg_deploy.thresholds import by_hand


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: Exception) -> None:
        self.cause = cause


class FakeRay:
    """What the pool asks of Ray. A call runs when it is waited for; the last one first."""

    def __init__(self, answer: Callable[[int, list[str]], list[Answer]], spec=fake_spec) -> None:
        self.exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)
        self.make, self.spec = answer, spec
        self.started, self.killed = 0, []

    def remote(self, kind):
        return self

    def options(self, **asked):
        self.asked = asked
        return SimpleNamespace(remote=self._start)

    def _start(self, work):
        self.started += 1
        number = self.started
        return SimpleNamespace(
            number=number,
            open=SimpleNamespace(remote=lambda: (number, "open")),
            answer=SimpleNamespace(remote=lambda paths: (number, tuple(paths))),
        )

    def wait(self, refs, num_returns, timeout):
        return [refs[-1]], refs[:-1]

    def get(self, ref):
        number, asked = ref
        return self.spec() if asked == "open" else self.make(number, list(asked))

    def is_initialized(self):
        return True

    def kill(self, actor):
        self.killed.append(actor.number)

    def available_resources(self):
        return {"CPU": 1.0}


WORK = Work(Path("red-fp32.onnx")).settled()


def scored(number: int, paths: list[str]) -> list[Answer]:
    return [failed(path, f"worker {number}") for path in paths]


def run(ray: FakeRay, chunks: list[list[str]], workers: int = 2) -> list[Answer]:
    pool = RayWorkers(ray, WORK, Share(workers, 1, 1.0))
    found = [answer for answers in pool.answers(iter(chunks)) for answer in answers]
    pool.close()
    return found


CHUNKS = [[f"{i}", f"{i}+"] for i in range(5)]
EVERY = sorted(path for chunk in CHUNKS for path in chunk)


def test_each_image_is_answered_once():
    ray = FakeRay(scored)
    assert sorted(answer.path for answer in run(ray, CHUNKS)) == EVERY
    assert sorted(ray.killed) == [1, 2], "no worker is left on a cluster of others"
    assert run(FakeRay(scored), []) == []


def test_a_chunk_whose_worker_ended_goes_to_another():
    def answer(number, paths):
        if number <= 2:
            raise RayError("died")
        return scored(number, paths)

    ray = FakeRay(answer)
    assert sorted(answer.path for answer in run(ray, CHUNKS)) == EVERY
    assert ray.started == 4


def test_an_image_on_which_workers_end_gets_an_error_and_costs_no_other():
    def answer(number, paths):
        if "3" in paths:
            raise RayError("out of memory")
        return scored(number, paths)

    found = {answer.path: answer.error for answer in run(FakeRay(answer), CHUNKS)}
    assert sorted(found) == EVERY
    assert "2 workers ended while they read or scored it" in found.pop("3")
    assert all(error.startswith("worker ") for error in found.values())


def test_workers_that_only_end_stop_the_run():
    def answer(number, paths):
        raise RayError("killed")

    with pytest.raises(BackendError, match="12 workers ended one after the other"):
        run(FakeRay(answer), CHUNKS)


def test_a_workers_own_error_arrives_as_it_was():
    def answer(number, paths):
        raise RayTaskError(BackendError("no such back end"))

    with pytest.raises(BackendError, match="no such back end"):
        run(FakeRay(answer), CHUNKS)

    def bug(number, paths):
        raise RayTaskError(KeyError("a fault of ours"))

    with pytest.raises(RayTaskError):
        run(FakeRay(bug), CHUNKS)


def test_machines_with_other_models_are_refused():
    limits = iter((0.5, 0.6))

    def spec():
        from dataclasses import replace

        return replace(fake_spec(), threshold=by_hand(next(limits)))

    with pytest.raises(SpecError, match="two machines of the cluster hold different ones"):
        run(FakeRay(scored, spec), CHUNKS)


def test_a_cluster_without_room_is_named(monkeypatch):
    monkeypatch.setattr(on_ray, "START_S", 0.0)
    ray = FakeRay(scored)
    ray.wait = lambda refs, num_returns, timeout: ([], refs)
    with pytest.raises(BackendError, match=r"no worker started .* free are \{'CPU': 1.0\}"):
        run(ray, CHUNKS)


class Grpc(Exception):
    __module__ = "grpc._channel"


@pytest.mark.parametrize("error", [ConnectionError("lost"), RayError("no head"), Grpc("closed")])
def test_a_cluster_that_is_lost_is_named(monkeypatch, error):
    ray = FakeRay(scored)
    monkeypatch.setitem(sys.modules, "ray", ray)
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ENABLE_AUTO_CONNECT"):
        monkeypatch.setenv(name, "0")  # connected sets them; they are restored
    wanted = "ray://host:1: the cluster does not answer any more"
    with pytest.raises(BackendError, match=wanted), connected("ray://host:1"):
        raise error
    for fault in (KeyError("ours"), RayTaskError(KeyError("ours")), OutputError("a full disk")):
        with pytest.raises(type(fault)), connected("ray://host:1"):
            raise fault


def test_a_cluster_that_does_not_start_is_named(monkeypatch):
    ray = FakeRay(scored)
    ray.is_initialized = lambda: False

    def init(**options):
        raise Exception("The current node timed out during startup.")

    ray.init = init
    monkeypatch.setitem(sys.modules, "ray", ray)
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ENABLE_AUTO_CONNECT"):
        monkeypatch.setenv(name, "0")
    wanted = r"ray: cannot be used \(The current node timed out during startup\.\)"
    with pytest.raises(BackendError, match=wanted), connected("ray"):
        pass


# ---------------------------------------------------------------------------- shares


@pytest.mark.parametrize(
    ("cluster", "asked", "wanted"),
    [
        ((2, 0), {}, Share(1, 2, 2.0)),
        ((64, 0), {}, Share(16, 4, 4.0)),
        ((2, 0), {"workers": 3}, Share(3, 1, 0.6666)),
        ((10, 0), {"workers": 4}, Share(4, 2, 2.0)),
        ((8, 0), {"threads": 2}, Share(4, 2, 2.0)),
        ((1, 0), {"threads": 8}, Share(1, 8, 1.0)),
        ((32, 4), {"cuda": True}, Share(4, 0, 1.0, 1.0)),
        ((4, 2), {"cuda": True, "workers": 8}, Share(8, 0, 0.5, 0.25)),
    ],
)
def test_a_cluster_is_divided(cluster, asked, wanted):
    share = divide(*cluster, **{"cuda": False, **asked})
    assert share == wanted
    assert share.workers * share.cpus <= cluster[0]
    assert share.workers * share.gpus <= cluster[1]


def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(BackendError, match="the cluster has no GPU"):
        divide(8, 0, cuda=True)


def test_the_device_says_whether_workers_need_a_gpu():
    assert not runs_on_cuda(WORK)
    assert runs_on_cuda(Work(Path("a.engine")).settled())
    assert runs_on_cuda(Work(Path("a.onnx"), device=Device("cuda")).settled())
    for device in (Device("cuda", 1), Device("gpu")):
        with pytest.raises(BackendError, match="Ray gives each worker its GPU"):
            runs_on_cuda(Work(Path("a.onnx"), device=device))


def test_a_worker_runs_with_its_share_of_threads():
    found = for_worker(WORK, Share(3, 2, 2.0))
    assert found.artifact.is_absolute()
    assert found.options == OrtOptions(threads=2)
    engine = Work(Path("a.engine")).settled()
    assert for_worker(engine, Share(1, 0, 1.0, 1.0)).options == TensorRtOptions()


@pytest.mark.parametrize(
    "on", ["there", "ray://", "ray://host", "ray://host:0", "ray://a:99999", "ray:/a:1", ""]
)
def test_what_names_no_place_is_refused(on):
    with pytest.raises(BackendError, match="expected here, ray, ray://auto or ray://HOST:PORT"):
        ArchiveOptions(on=on)


@pytest.mark.parametrize(
    "on", ["here", "ray", "ray://auto", "ray://10.0.0.5:10001", "ray://[::1]:1"]
)
def test_places_are_taken(on):
    assert ArchiveOptions(on=on).on == on


def test_workers_need_ray():
    with pytest.raises(BackendError, match="Pass --on ray, too"):
        ArchiveOptions(workers=2)
