"""CPU threads of a training. Sums are split among them, so another number rounds otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def pick_threads(count: int) -> int:
    """Return the number of threads that was asked for; for 0, PyTorch's in this process."""
    return count or torch.get_num_threads()


@contextmanager
def computing_with(threads: int) -> Iterator[None]:
    """Compute with a number of CPU threads; 0 changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
