"""Around a call: closing and reloading while calls run, warming up, and where the time went."""

import subprocess
import sys
import threading
import time
from ctypes import byref, c_void_p

import numpy as np
import pytest

from destseg_deploy.spec import Threshold, spec_path
from tests.cpp.conftest import write_engine
from tests.cpp.library import ROOT, Refused, Times, frame_of
from tests.forked import forks, told_by_child
from tests.tiny import unpacked


def image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (8, 6, 3), dtype=np.uint8)


@pytest.fixture
def slow(library, tmp_path):
    """An engine whose inference takes 0.3 s."""
    write_engine(tmp_path / "slow.engine", (8, 6), "slow")
    with library.open(tmp_path / "slow.engine", parallel=1) as opened:
        opened.path = tmp_path / "slow.engine"
        yield opened


def in_the_background(call) -> tuple[threading.Thread, list]:
    answers: list = []
    thread = threading.Thread(target=lambda: answers.append(call()))
    thread.start()
    time.sleep(0.1)  # until it runs
    return thread, answers


def test_close_waits_for_the_call_that_runs(slow):
    """The call gets its answer; who asks from then on is refused at once."""
    thread, answers = in_the_background(lambda: slow.scores([image()]))
    begin = time.monotonic()
    slow.close()
    waited = time.monotonic() - begin
    thread.join()
    assert waited > 0.1
    assert np.array_equal(unpacked(answers[0][0])[0], image())
    with pytest.raises(Refused, match="closed"):
        slow.scores([image()])


@forks
def test_a_child_neither_uses_nor_closes_its_parents_handle(library, slow):
    """Forked within a call, whose thread the child has not; ONNX Runtime's were missing, too."""
    thread, answers = in_the_background(lambda: slow.scores([image()]))

    def act(say):
        with pytest.raises(Refused) as refused:
            slow.scores([image()])
        say(refused.value.text)
        slow.close()  # it waits for calls that run, and here none ends
        with library.open(slow.path) as own:
            assert np.array_equal(unpacked(own.scores([image()])[0])[0], image())
        say("closed")

    told = told_by_child(act)
    assert "opened before a fork" in told
    assert told.endswith("closed"), told
    thread.join()
    assert np.array_equal(unpacked(answers[0][0])[0], image())
    assert np.array_equal(unpacked(slow.scores([image()])[0])[0], image())


def test_a_call_ends_with_the_artifact_that_it_began_with(library, slow, tmp_path):
    path = tmp_path / "next.engine"
    write_engine(path, (8, 6), threshold=Threshold(1, 0.5, "by hand"))
    white = np.full((8, 6, 3), 255, np.uint8)
    thread, answers = in_the_background(lambda: slow.infer([frame_of(white)]))
    begin = time.monotonic()
    library.check(library.c.destseg_reload(slow.value, str(path).encode()))
    assert time.monotonic() - begin < 0.2, "a reload does not wait"
    _, (after,) = slow.infer([frame_of(white)])
    thread.join()
    _, (before,) = answers[0]
    assert before.score == after.score
    assert (before.verdict, after.verdict) == (1, 0)


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("none.engine", "backend", "no such file"),
        ("other.onnx", "backend", "the handle was opened with a .engine"),
        ("damaged.engine", "spec", "damaged.engine"),
    ],
)
def test_a_reload_that_fails_leaves_the_old_one(library, engine, name, status, words):
    folder = engine.parent
    (folder / "other.onnx").write_bytes(b"")
    (folder / "damaged.engine").write_bytes(engine.read_bytes())
    (folder / "damaged.engine.json").write_text("{}")
    with library.open(engine) as handle:
        with pytest.raises(Refused, match=words) as refused:
            library.check(library.c.destseg_reload(handle.value, str(folder / name).encode()))
        assert refused.value.status == status
        assert np.array_equal(unpacked(handle.scores([image()])[0])[0], image())


def test_a_reload_takes_a_suffix_in_capitals_as_an_opening_does(library, engine):
    capitals = engine.with_name("NEXT.ENGINE")
    capitals.write_bytes(engine.read_bytes())
    spec_path(capitals).write_bytes(spec_path(engine).read_bytes())
    path = str(capitals).encode()
    with library.open(capitals), library.open(engine) as handle:
        library.check(library.c.destseg_reload(handle.value, path))
        assert np.array_equal(unpacked(handle.scores([image()])[0])[0], image())


def test_the_times_of_the_last_call(slow):
    assert slow.times().frames == 0
    slow.scores([image(), image()])
    times = slow.times()
    assert times.frames == 2
    assert times.inferred_ms > 290
    assert 0 < times.prepared_ms < 100
    assert 0 < times.finished_ms < 100
    thread, _ = in_the_background(lambda: slow.scores([image()]))
    slow.scores([image()])
    thread.join()
    assert slow.times().waited_ms > 100


def test_a_warm_up_makes_every_lane_and_can_run_beside_others(library, engine):
    with library.open(engine, parallel=3) as handle:
        threads = [
            threading.Thread(target=lambda: library.check(library.c.destseg_warm_up(handle.value)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in threads)
        assert np.array_equal(unpacked(handle.scores([image()])[0])[0], image())


def test_null_pointers_and_closed_handles_are_refused(library, engine):
    with library.open(engine) as handle:
        for call in (
            lambda: library.c.destseg_reload(handle.value, None),
            lambda: library.c.destseg_get_times(handle.value, None),
            lambda: library.c.destseg_get_times(handle.value, byref(Times(3))),
        ):
            with pytest.raises(Refused) as refused:
                library.check(call())
            assert refused.value.status == "argument"
    for call in (
        lambda: library.c.destseg_reload(handle.value, str(engine).encode()),
        lambda: library.c.destseg_warm_up(handle.value),
        lambda: library.c.destseg_warm_up(c_void_p()),
    ):
        with pytest.raises(Refused):
            library.check(call())


SIGNALLED = """
import os, signal, sys
from pathlib import Path
from tests.cpp.library import Library
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
library = Library(Path(sys.argv[1]))
first, second = (library.open(sys.argv[2], "openvino") for _ in range(2))
first.close()
second.close()
os.kill(os.getpid(), signal.SIGTERM)
print("alive")
"""


def test_a_signal_after_two_were_closed_does_no_harm(library, packing):
    """Each of OpenVINO's cores leaves a stack for signals; that of one that is gone is no stack."""
    library.need("openvino")
    command = [sys.executable, "-c", SIGNALLED, library.c._name, str(packing[0])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["handled", "alive"]
