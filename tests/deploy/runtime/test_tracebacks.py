"""An error that leaves a block lets go of what its frames named, and of no others'."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from destseg_deploy.runtime.tracebacks import letting_go


class Held:
    """Stands for an object of TensorRT's."""


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def _fail(seen: list[weakref.ref[Held]], text: str = "failed") -> None:
    held = Held()
    seen.append(weakref.ref(held))
    raise ValueError(text)


def _fail_with_cause(seen: list[weakref.ref[Held]]) -> None:
    held = Held()
    seen.append(weakref.ref(held))
    try:
        _fail(seen)
    except ValueError as error:
        raise RuntimeError("because") from error


def _fail_in_handler(seen: list[weakref.ref[Held]]) -> None:
    try:
        _fail(seen)
    except ValueError:
        _fail(seen, "again")


def _fail_in_callback(seen: list[weakref.ref[Held]]) -> None:
    """An error that was kept in a callback is raised later, as a progress monitor's is."""
    kept: list[BaseException] = []

    def native() -> None:
        held = Held()
        seen.append(weakref.ref(held))
        callback()

    def callback() -> None:
        try:
            _fail(seen)
        except ValueError as error:
            kept.append(error)

    native()
    raise kept[0]


@pytest.mark.parametrize("fail", [_fail, _fail_with_cause, _fail_in_handler, _fail_in_callback])
def test_what_its_frames_named_is_freed_with_the_block(fail):
    for block in (True, False):
        seen: list[weakref.ref[Held]] = []
        with pytest.raises((ValueError, RuntimeError)) as kept:
            letting_go()(fail)(seen) if block else fail(seen)
        alive = [one() is not None for one in seen]
        assert alive == [not block] * len(seen), "control: without the block they are kept"
        assert kept.value.__traceback__ is not None


def test_what_was_handled_before_keeps_its_frames():
    """A debugger shows its variables; they are the caller's."""
    before: list[weakref.ref[Held]] = []
    inside: list[weakref.ref[Held]] = []
    try:
        _fail(before, "the caller's")
    except ValueError:
        with pytest.raises(ValueError, match="failed"):
            letting_go()(_fail)(inside)
        assert before[0]() is not None
        assert inside[0]() is None


def test_errors_in_a_ring_are_let_go_of_once():
    seen: list[weakref.ref[Held]] = []
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first

    def fail() -> None:
        held = Held()
        seen.append(weakref.ref(held))
        raise first

    with pytest.raises(ValueError, match="first"), letting_go():
        fail()
    assert seen[0]() is None
