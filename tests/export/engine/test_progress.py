"""BuildProgress: nested phases become one share that never falls, and no error leaves Python."""

import threading

import pytest

from destseg_export.engine.progress import BuildProgress


def _told() -> tuple[BuildProgress, list[tuple[str, float]]]:
    told: list[tuple[str, float]] = []
    return BuildProgress(lambda stage, share: told.append((stage, round(share, 4)))), told


def test_nested_phases_are_shares_of_their_parents():
    progress, told = _told()
    progress.start("build", None, 2)
    progress.start("time", "build", 4)
    assert progress.step("time", 0)
    progress.step("time", 3)
    progress.finish("time")
    progress.step("build", 0)
    progress.step("build", 1)
    assert told == [
        ("build", 0.0), ("time", 0.0), ("time", 0.125), ("time", 0.5), ("build", 0.5),
        ("build", 1.0),
    ]  # fmt: skip


def test_the_share_never_falls_and_never_passes_one():
    progress, told = _told()
    progress.start("build", None, 2)
    progress.step("build", 0)
    progress.start("other", None, 10)
    progress.step("other", 0)
    progress.step("build", 7)
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


@pytest.mark.parametrize("steps", [0, -1])
def test_a_phase_without_steps_divides_by_nothing(steps):
    progress, told = _told()
    progress.start("build", None, steps)
    progress.step("build", 0)
    assert told[-1] == ("build", 1.0)


def test_unknown_and_circular_phases_are_survived():
    progress, told = _told()
    assert progress.step("never started", 3)
    progress.finish("never started")
    progress.start("a", "b", 2)
    progress.start("b", "a", 2)
    assert progress.step("b", 0)
    assert told


@pytest.mark.parametrize("error", [ValueError("full disk"), KeyboardInterrupt()])
def test_an_error_stops_the_build_and_is_kept(error):
    def fail(stage, share):
        raise error

    progress = BuildProgress(fail)
    progress.start("build", None, 2)
    assert progress.step("build", 0) is False
    assert progress.failure is error


def test_threads_may_tell_at_once():
    progress, told = _told()
    progress.start("build", None, 400)

    def work(offset):
        for step in range(offset, offset + 100):
            progress.step("build", step)

    threads = [threading.Thread(target=work, args=(k,)) for k in (0, 100, 200, 300)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shares = [share for _, share in told]
    assert len(shares) == 401
    assert shares == sorted(shares)
