"""TrtRuntime.stream: double buffering, shown by the order in which the fake GPU was asked."""

import pytest

from destseg_deploy.errors import BackendError, ShapeError
from tests.deploy.trt_cases import Bench, equal, frames_of, wanted


@pytest.fixture
def bench(monkeypatch, tmp_path):
    return Bench(monkeypatch, tmp_path)


# --- streams of frames


def _trace(bench, start):
    """Return copies in and waits in order, each by the number of its batch."""
    count = {"copy_in": 0, "copy_out": 0}
    trace, queued = [], {}
    for name, stream in bench.names(start):
        if name == "copy_out":
            queued[stream] = count["copy_out"]
            count["copy_out"] += 1
        elif name == "copy_in":
            trace.append(f"in {count['copy_in']}")
            count["copy_in"] += 1
        elif name == "synchronize" and stream in queued:
            trace.append(f"wait {queued.pop(stream)}")
    return trace


@pytest.mark.parametrize(
    ("contexts", "order"),
    [
        (2, ["in 0", "in 1", "wait 0", "in 2", "wait 1", "in 3", "wait 2", "wait 3"]),
        (1, ["in 0", "wait 0", "in 1", "wait 1", "in 2", "wait 2", "in 3", "wait 3"]),
    ],
)
def test_the_interleaving_is_this(bench, contexts, order):
    runtime = bench.open(contexts=contexts, cuda_graph=False)
    start = len(bench.gpu.calls)
    list(runtime.stream(frames_of(1, seed) for seed in range(4)))
    assert _trace(bench, start) == order
    runtime.close()


def test_streams_take_batches_of_any_size_and_none(bench):
    runtime = bench.open()
    assert list(runtime.stream([])) == []
    batches = [frames_of(count, count) for count in (1, 4, 2, 4, 1, 1)]
    for batch, answer in zip(batches, runtime.stream(batches), strict=True):
        equal(answer, wanted(batch))
    runtime.close()


def test_calls_between_the_answers_of_a_stream_are_served(bench):
    runtime = bench.open(contexts=2)
    frames = frames_of(1, 7)
    for _ in runtime.stream(frames_of(1, seed) for seed in range(4)):
        equal(runtime.infer(frames), wanted(frames))
    both = zip(
        runtime.stream(frames_of(1, seed) for seed in range(4)),
        runtime.stream(frames_of(2, seed) for seed in range(4)),
        strict=True,
    )
    for seed, (one, two) in enumerate(both):
        equal(one, wanted(frames_of(1, seed)))
        equal(two, wanted(frames_of(2, seed)))
    runtime.close()


def test_a_stream_that_is_left_gives_its_slots_back(bench):
    runtime = bench.open(contexts=2)
    for _ in range(5):
        stream = runtime.stream(frames_of(1, seed) for seed in range(9))
        next(stream)
        stream.close()
    with pytest.raises(ShapeError, match="batch of 9"):
        list(runtime.stream([frames_of(1), frames_of(9)]))
    bench.gpu.fail_on = {"copy_out"}
    with pytest.raises(BackendError):
        list(runtime.stream([frames_of(1), frames_of(2)]))
    bench.gpu.fail_on = set()
    assert len(list(runtime.stream([frames_of(1)] * 3))) == 3
    runtime.close()
    assert bench.nothing_lives()


def test_a_stream_that_outlives_its_runtime_refuses(bench):
    runtime = bench.open(contexts=2)
    stream = runtime.stream(frames_of(1, seed) for seed in range(9))
    next(stream)
    runtime.close()
    with pytest.raises(BackendError, match="closed"):
        next(stream)
    assert bench.nothing_lives()
