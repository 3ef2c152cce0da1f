"""Batches made ahead: which, when, and what goes wrong."""

import pytest

pytest.importorskip("torch")

import torch

from destseg_bench.baselines.ahead import DEPTH, Ahead
from destseg_deploy.errors import DataError


def test_batches_come_in_order_and_are_made_ahead_where_that_helps() -> None:
    made: list[int] = []

    def make(step: int) -> int:
        made.append(step)
        return 10 * step

    inline = Ahead(make, 100, torch.device("cpu"))
    assert [inline(step) for step in (0, 1, 5)] == [0, 10, 50]
    assert made == [0, 1, 5]
    made.clear()
    ahead = Ahead(make, 7, torch.device("meta"))  # any device but the CPU
    assert ahead(0) == 0
    assert [ahead(step) for step in (1, 2, 2, 6)] == [10, 20, 20, 60]
    ahead.close()
    assert sorted(set(made)) == list(range(2 + DEPTH + 1))
    assert made.count(2) == 2


def test_what_goes_wrong_in_a_thread_is_told() -> None:
    def make(step: int) -> int:
        raise DataError(f"texture {step}")

    ahead = Ahead(make, 9, torch.device("meta"))
    with pytest.raises(DataError, match="texture 4"):
        ahead(4)
    ahead.close()
