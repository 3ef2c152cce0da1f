"""The timing protocol, by clocks that are known."""

import pytest

from destseg_bench import timing
from destseg_bench.timing import interleave, summarize_timing
from destseg_deploy.errors import BackendError


def test_contenders_take_turns_in_a_shifting_order():
    order = []
    calls = {name: (lambda n=name: order.append(n)) for name in "abc"}
    interleave(calls, rounds=3, warmup=1)
    assert "".join(order) == "cab" + "abc" + "bca" + "cab"


def test_warmup_does_not_count_and_each_call_does(monkeypatch):
    """A clock that only moves while a contender works: by 1 s for a, by 2 s for b, 100 s cold."""
    now, cold = [0.0], {"a", "b"}

    def work(name, seconds):
        now[0] += 100 if name in cold else seconds
        cold.discard(name)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    calls = {"a": lambda: work("a", 1), "b": lambda: work("b", 2)}
    assert interleave(calls, rounds=4, warmup=1) == {"a": [1.0] * 4, "b": [2.0] * 4}


def test_the_machine_settles_before_each_call_and_the_rest_is_not_timed(monkeypatch):
    now, events = [0.0], []

    def rest(seconds):
        now[0] += seconds
        events.append(seconds)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(timing.time, "sleep", rest)
    calls = {name: (lambda n=name: events.append(n)) for name in "ab"}
    found = interleave(calls, rounds=1, warmup=1, settle=0.25)
    assert events == [0.25, "b", 0.25, "a", 0.25, "a", 0.25, "b"]
    assert found == {"a": [0.0], "b": [0.0]}


def test_progress_counts_warmup_too():
    seen = []
    interleave({"a": list, "b": list}, rounds=2, warmup=1, report=lambda *step: seen.append(step))
    assert [done for done, _, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert {total for _, total, _ in seen} == {6}


@pytest.mark.parametrize(("rounds", "warmup", "word"), [(0, 1, "rounds"), (1, 0, "warmup")])
def test_nothing_is_timed_cold(rounds, warmup, word):
    with pytest.raises(BackendError, match=f"{word}: 0, expected at least 1"):
        interleave({"a": list}, rounds=rounds, warmup=warmup)


def test_a_summary_is_in_milliseconds_and_shows_the_tail():
    found = summarize_timing([0.001 * i for i in range(1, 101)])
    assert (found.count, found.lowest) == (100, pytest.approx(1))
    assert found.median == pytest.approx(50.5)
    assert found.p90 == pytest.approx(91)
    assert found.p99 == pytest.approx(100)


def test_the_tail_of_few_calls_is_the_slowest():
    found = summarize_timing([0.001, 0.001, 0.001, 0.5])
    assert found.p99 == pytest.approx(500)
    assert found.median == pytest.approx(1)
