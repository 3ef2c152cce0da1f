"""destseg_submit and destseg_wait: a queue with a limit, time-outs, and what closing does to it."""

import threading
import time

import numpy as np
import pytest

from destseg_deploy.environment import allowed_cores
from destseg_deploy.spec import Threshold
from tests.cpp.conftest import write_engine
from tests.cpp.library import Refused, frame_of
from tests.cpp.test_calls import image, in_the_background
from tests.tiny import unpacked


@pytest.fixture
def slow(library, tmp_path):
    """An engine whose inference takes 0.3 s, one after the other, with room for two tickets."""
    write_engine(tmp_path / "slow.engine", (8, 6), "slow")
    with library.open(tmp_path / "slow.engine", parallel=1, queue=2) as opened:
        yield opened


def pixels_of(found) -> np.ndarray:
    return unpacked(found[0])


def test_answers_are_those_of_infer_in_any_order(library, packing):
    """Batches, frames that are resized, grey ones; collected backwards."""
    backend = library.need("onnxruntime")
    random = np.random.default_rng(3)
    sizes = [(40, 24, 3), (55, 31, 3), (40, 24), (90, 24)]
    images = [random.integers(0, 256, size, dtype=np.uint8) for size in sizes]
    frames = [frame_of(image) for image in images]
    with library.open(packing[0], backend, threads=1, queue=8) as handle:
        groups = [frames[:1], frames[1:], frames]
        tickets = [handle.submit(group) for group in groups]
        assert tickets == [1, 2, 3]
        for ticket, group in reversed(list(zip(tickets, groups, strict=True))):
            maps, results = handle.wait(ticket, len(group))
            expected, judged = handle.infer(group)
            assert np.array_equal(maps, expected)
            assert [r.score for r in results] == [r.score for r in judged]
            assert [r.verdict for r in results] == [r.verdict for r in judged]
        handle.wait(handle.submit(frames), len(frames))
        assert handle.times().frames == len(frames)
        assert handle.times().prepared_ms > 0


def test_pixels_are_the_callers_again_when_submit_returns(slow):
    kept, given = image(), image()
    ticket = slow.submit([frame_of(given)])
    given[:] = 0
    assert np.array_equal(pixels_of(slow.wait(ticket))[0], kept)


def test_the_queue_has_a_limit_and_says_so_in_time(slow):
    frame = image()
    first, second = (slow.submit([frame_of(frame)]) for _ in range(2))
    for given in (0, 60):
        begin = time.monotonic()
        with pytest.raises(Refused, match="queue: 2 tickets are open") as refused:
            slow.submit([frame_of(frame)], timeout_ms=given)
        assert refused.value.status == "timeout"
        assert given / 1000 <= time.monotonic() - begin < 0.25
    thread, late = in_the_background(lambda: slow.submit([frame_of(frame)], timeout_ms=9000))
    slow.wait(first)  # makes room
    thread.join(9)
    assert late == [3]
    for ticket in (second, 3):
        assert np.array_equal(pixels_of(slow.wait(ticket))[0], frame)


def test_a_wait_that_is_too_short_leaves_the_ticket_open(slow):
    frame = image()
    ticket = slow.submit([frame_of(frame)])
    for given in (0, 30):
        with pytest.raises(Refused, match=f"ticket {ticket}: not done after {given} ms") as refused:
            slow.wait(ticket, timeout_ms=given)
        assert refused.value.status == "timeout"
    assert np.array_equal(pixels_of(slow.wait(ticket, timeout_ms=9000))[0], frame)


def test_each_ticket_is_collected_once_and_with_room(library, engine):
    frame = image()
    with library.open(engine) as handle:
        ticket = handle.submit([frame_of(frame)])
        for wrong, count, words in (
            (ticket, 2, "count: 2, expected the 1"),
            (ticket + 1, 1, "not open"),
            (0, 1, "not open"),
        ):
            with pytest.raises(Refused, match=words) as refused:
                handle.wait(wrong, count)
            assert refused.value.status == "argument"
        handle.info.map_height -= 1  # as a host that knows another artifact
        with pytest.raises(Refused, match="maps: room for 42 floats, expected 48"):
            handle.wait(ticket)
        handle.info.map_height += 1
        assert np.array_equal(pixels_of(handle.wait(ticket))[0], frame)
        with pytest.raises(Refused, match="not open"):
            handle.wait(ticket)


def test_frames_that_are_refused_take_no_room(library, engine):
    bad = frame_of(image())
    bad.width = 0
    with library.open(engine, queue=1) as handle:
        for _ in range(3):
            with pytest.raises(Refused, match="frame: expected uint8"):
                handle.submit([bad], timeout_ms=0)
        handle.wait(handle.submit([frame_of(image())], timeout_ms=0))


def test_the_error_of_an_inference_comes_with_its_ticket(library, tmp_path):
    write_engine(tmp_path / "bad.engine", (8, 6), "fails")
    frame = image()
    with library.open(tmp_path / "bad.engine", queue=1) as handle:
        ticket = handle.submit([frame_of(frame)])
        with pytest.raises(Refused) as refused:
            handle.wait(ticket)
        assert refused.value.status == "backend"
        handle.submit([frame_of(frame)], timeout_ms=0)  # it is closed: there is room


def test_a_ticket_ends_with_the_artifact_that_it_began_with(library, slow, tmp_path):
    path = tmp_path / "next.engine"
    write_engine(path, (8, 6), threshold=Threshold(1, 0.5, "by hand"))
    white = np.full((8, 6, 3), 255, np.uint8)
    before = slow.submit([frame_of(white)])
    library.check(library.c.destseg_reload(slow.value, str(path).encode()))
    after = slow.submit([frame_of(white)])
    verdicts = [slow.wait(ticket)[1][0].verdict for ticket in (before, after)]
    assert verdicts == [1, 0]


def test_close_drops_what_was_not_begun_and_lets_everybody_go(slow):
    """The ticket that runs gets its answer; the next one, and who waits for room, an error."""
    frame = image()
    running, next_one = (slow.submit([frame_of(frame)]) for _ in range(2))
    errors: list[Refused] = []

    def expect_refusal(call) -> None:
        try:
            call()
        except Refused as refused:
            errors.append(refused)

    thread, answers = in_the_background(lambda: slow.wait(running))
    others = [
        threading.Thread(target=expect_refusal, args=[lambda: slow.wait(next_one)]),
        threading.Thread(target=expect_refusal, args=[lambda: slow.submit([frame_of(frame)])]),
    ]
    for other in others:
        other.start()
    time.sleep(0.05)
    slow.close()
    for waiting in (thread, *others):
        waiting.join(9)
        assert not waiting.is_alive()
    assert np.array_equal(pixels_of(answers[0])[0], frame)
    assert [error.status for error in errors] == ["backend", "backend"]
    assert all("closed" in error.text for error in errors)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"queue": -1}, "queue -1, expected 0 to 1024"),
        ({"queue": 1025}, "queue 1025, expected 0 to 1024"),
        ({"no_spinning": 2}, "no_spinning 2, expected 0 to 1"),
        ({"worker_cores": "1;2"}, "worker_cores '1;2': expected numbers with commas"),
        ({"worker_cores": ""}, "worker_cores '': expected numbers"),
        ({"no_spinning": 1}, "of ONNX Runtime on the device 'cpu'"),
        ({"worker_cores": str(allowed_cores()[0])}, "of ONNX Runtime on the device 'cpu'"),
    ],
)
def test_options_that_are_refused(library, engine, options, words):
    with pytest.raises(Refused, match=words):
        library.open(engine, **options)
