"""Real Ray, on this machine: make test-ray. Workers and drivers are killed, and nothing is lost."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="the extra ray is not installed: make test-ray")
pytest.importorskip("pyarrow")
pytest.importorskip("onnxruntime")

from pyarrow import parquet as pq

from destseg_deploy.archive.answers import Work
from destseg_deploy.archive.run import predict_archive
from tests.deploy.archive.cases import write_image, write_model
from tests.processes import below, runs, wait_for

IMAGES = 2000
PREDICT = "from destseg_deploy.cli.predict import predict; predict()"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A model, 2,000 images of which two are broken, and one process's answers."""
    root = tmp_path_factory.mktemp("archive")
    write_model(root / "red-fp32.onnx")
    write_model(root / "other-fp32.onnx", bias=0.1)
    for i in range(IMAGES):
        write_image(root / f"in/{i // 500}/{i:04d}.png", i % 256)
    (root / "in/1/0700.png").write_bytes(b"no image")
    (root / "in/3/1900.png").unlink()
    (root / "in/3/1900.png").symlink_to("gone.png")
    predict_archive(Work(root / "red-fp32.onnx"), [str(root / "in")], root / "one")
    return root


def command(place: Path, out: str, *options: str, model: str = "red") -> list[str]:
    given = options or ("--on", "ray", "--workers", "3")
    return [
        *(sys.executable, "-c", PREDICT, str(place / f"{model}-fp32.onnx"), str(place / "in")),
        *("--format", "parquet", "--output", str(place / out), *given),
    ]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=300)


def rows(folder: Path) -> list[dict]:
    return [row for part in folder.glob("part-*") for row in pq.read_table(part).to_pylist()]


def answers(folder: Path) -> dict[str, tuple]:
    """Return the answers by path, after a look that no image is there twice."""
    found = rows(folder)
    kept = ("score", "normalized_score", "verdict", "error")
    by_path = {row["path"]: tuple(row[name] for name in kept) for row in found}
    assert len(found) == len(by_path)
    return by_path


def listening(pids: set[int]) -> set[str]:
    """Return the addresses on which processes listen."""
    sockets = set()
    for pid in pids:
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                sockets.add(os.readlink(file))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            place, _, state, *rest = line.split()[1:]
            if state == "0A" and f"socket:[{rest[5]}]" in sockets:
                last = bytes.fromhex(place.partition(":")[0][-8:])[::-1]
                found.add(socket.inet_ntoa(last))
    return found


def workers(pid: int) -> list[int]:
    return [child for child, name in below(pid).items() if name.startswith("ray::Worker")]


def parts_in(folder: Path) -> list[Path]:
    return list(folder.glob("part-*"))


SLOW = """
import time
from destseg_deploy.archive import on_ray, parts
parts.MOST_ROWS = 200
class Worker(on_ray.Worker):
    def answer(self, paths):
        time.sleep(0.3)
        return super().answer(paths)
on_ray.Worker = Worker  # of __main__, so it is sent to the workers as it is here
"""
"""Chunks take a while, so that a kill finds workers at work."""


def test_a_killed_worker_and_a_killed_driver_cost_no_answer(place):
    words = command(place, "out")
    words[2] = SLOW + PREDICT
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    driver = subprocess.Popen(words, **quiet)
    victim = wait_for(lambda: parts_in(place / "out") and workers(driver.pid))[0]
    os.kill(victim, signal.SIGKILL)
    count = len(parts_in(place / "out"))
    wait_for(lambda: len(parts_in(place / "out")) >= count + 2)
    assert driver.poll() is None, "the run goes on without the worker"
    started = below(driver.pid)
    driver.kill()
    driver.wait()
    first = answers(place / "out")
    assert 200 <= len(first) < IMAGES - 100, "killed in the middle"
    done = run(*command(place, "out"))
    assert done.returncode == 1, done.stderr
    assert f"{IMAGES} images answered, {len(first)} of them by earlier runs" in done.stderr
    assert "2 of 2000 images could not be scored" in done.stderr
    assert answers(place / "out") == answers(place / "one")
    assert all(path.suffix == ".parquet" for path in (place / "out").iterdir())
    wait_for(lambda: not any(runs(pid) for pid in started))


def test_sigterm_ends_a_run_and_its_cluster_and_leaves_nothing(place, tmp_path):
    words = command(place, "ended")
    words[2] = SLOW + PREDICT
    home = {**os.environ, "HOME": str(tmp_path)}
    driver = subprocess.Popen(words, env=home, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: parts_in(place / "ended"))
    started = below(driver.pid)
    assert listening({driver.pid, *started}) == {"127.0.0.1"}
    driver.terminate()
    _, told = driver.communicate(timeout=60)
    assert driver.returncode == 143, told
    assert "Traceback" not in told
    assert 0 < len(answers(place / "ended")) < IMAGES
    wait_for(lambda: not any(runs(pid) for pid in started))
    assert list(tmp_path.iterdir()) == [], "no token, no identity"


@pytest.mark.parametrize(
    ("model", "options", "wanted"),
    [
        ("red", ("--on", "ray://127.0.0.1:9"), "ray://127.0.0.1:9: no cluster answers there"),
        ("red", ("--on", "ray://auto"), "ray://auto: cannot be used"),
        ("other", (), "its answers are of red-fp32.onnx"),
        ("red", ("--on", "ray", "--device", "cuda"), "the cluster has no GPU"),
    ],
)
def test_what_cannot_run_is_one_line(place, model, options, wanted):
    before = sorted((place / "one").iterdir())
    done = run(*command(place, "one", *options, model=model))
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert wanted in line
    assert sorted((place / "one").iterdir()) == before


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return str(taken.getsockname()[1])


def reached(port: str) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", int(port)), 1):
        return True
    return False


@pytest.fixture
def cluster() -> Iterator[tuple[str, subprocess.Popen]]:
    """The address of a cluster that ``ray start`` began here, and its process."""
    port, ray = free_port(), Path(sys.executable).with_name("ray")
    # Ray's sockets lie below it, and their paths must be short.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        words = [
            *(ray, "start", "--head", "--block", "--num-cpus", "2", "--temp-dir", folder),
            *("--port", free_port(), "--ray-client-server-port", port),
            *("--include-dashboard=false", "--object-store-memory", str(2**27)),
        ]
        settings = {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on the loopback address only
            # Half a minute does not suffice Ray on a machine that does other things, too.
            "RAY_raylet_start_wait_time_s": "240",
            "GRPC_ENABLE_FORK_SUPPORT": "0",  # see docs/archives.md
        }
        log = Path(folder, "start.log")
        with log.open("w") as out:
            head = subprocess.Popen(words, env={**os.environ, **settings}, stdout=out, stderr=out)
        try:
            wait_for(
                lambda: (
                    head.poll() is not None
                    or ("Ray runtime started" in log.read_text() and reached(port))
                )
            )
            assert head.poll() is None, log.read_text()
            yield f"ray://127.0.0.1:{port}", head
        finally:
            started = [*below(head.pid), head.pid]
            head.terminate()
            with suppress(subprocess.TimeoutExpired):
                head.wait(60)
            for pid in filter(runs, started):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            head.wait(60)


def test_a_cluster_of_ray_start_gives_the_same_answers_and_goes_on(place, cluster):
    address, head = cluster
    words = command(place, "there", "--on", address, "--workers", "2")
    driver = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    try:
        seen = wait_for(lambda: workers(head.pid) or driver.poll() is not None)
        _, told = driver.communicate(timeout=600)
    finally:
        driver.kill()
        driver.wait()
    assert "2 of 2000 images could not be scored" in told, told
    assert driver.returncode == 1
    assert seen is not True, "control: the cluster's workers answer, not this process"
    assert answers(place / "there") == answers(place / "one")
    wait_for(lambda: not workers(head.pid))
    assert head.poll() is None, "the cluster is not the command's"
