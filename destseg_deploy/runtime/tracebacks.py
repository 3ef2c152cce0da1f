"""Errors that let go of what they came through: TensorRT's objects must not outlive their block."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType


@contextmanager
def letting_go() -> Iterator[None]:
    """Let no error of a block or a function keep an object of TensorRT's.

    A traceback keeps its frames, and what they name lives on, maybe until Python's collector finds
    it. A context is then freed outside of any CUDA context, maybe after ``close``. Or the collector
    runs while TensorRT speaks to its logger; the object waits for a lock that this very thread
    holds, and the next builder is never made (seen with TensorRT-RTX 1.7).

    Frames that are left are emptied here. Those that still run, such as a ``with`` block's own,
    must name no such object. What was handled before the block keeps its frames.
    """
    handled = sys.exc_info()[1]
    try:
        yield
    except BaseException as error:
        for one in _linked(error, handled):
            for frame, _ in traceback.walk_tb(one.__traceback__):
                _empty(frame)
        raise


def _linked(error: BaseException, handled: BaseException | None) -> list[BaseException]:
    """Return an error with its causes and contexts, up to what was handled before."""
    found: list[BaseException] = []
    ahead: list[BaseException | None] = [error]
    for one in ahead:  # which grows; ``raise a from b`` may link them in a ring
        if one is not None and one is not handled and not any(one is other for other in found):
            found.append(one)
            ahead += [one.__cause__, one.__context__]
    return found


def _empty(frame: FrameType | None) -> None:
    """Forget the variables of a frame and of its callers, up to the first that still runs."""
    with suppress(RuntimeError):
        while frame is not None:
            frame.clear()
            frame = frame.f_back
