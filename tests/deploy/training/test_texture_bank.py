"""The bank hands out the right texture whatever it has room for, and reads as little as it can."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from destseg_deploy.errors import DataError
from destseg_deploy.training.batches import CAPACITY_BYTES, TextureBank

SIZE = (3, 5)
BYTES = 3 * SIZE[0] * SIZE[1]
COUNT = 10
CPU = torch.device("cpu")


class Marked:
    """Textures that name themselves: each pixel holds number, row and column."""

    name = "marked"
    size = SIZE

    def __init__(self, broken: Sequence[int] = ()) -> None:
        self.broken = set(broken)
        self.reads: Counter[int] = Counter()

    def __len__(self) -> int:
        return COUNT

    def read(self, number: int) -> NDArray[np.uint8]:
        self.reads[number] += 1
        if number in self.broken:
            raise DataError(f"{number}.png: broken")
        return expected(number)

    def digest(self) -> str:
        return ""


def expected(number: int) -> NDArray[np.uint8]:
    row, column = np.mgrid[: SIZE[0], : SIZE[1]]
    return np.dstack([np.full(SIZE, 20 * number + 7), 50 * row, 40 * column]).astype(np.uint8)


def bank(textures: Marked, room: int = COUNT) -> TextureBank:
    """Make a bank with room for so many textures, and not quite for one more."""
    return TextureBank(textures, CPU, capacity_bytes=room * BYTES + BYTES - 1)


def ask(of: TextureBank, *numbers: int) -> torch.Tensor:
    return of.take(of.request(numbers, partial))


def right(taken: torch.Tensor, numbers: Sequence[int]) -> bool:
    """Tell whether these are the textures asked for, in this order."""
    wanted = np.stack([expected(number) for number in numbers]).transpose(0, 3, 1, 2)
    assert taken.dtype == torch.uint8
    return np.array_equal(taken.numpy(), wanted)


# ---------------------------------------------------------------------------- what comes back


@pytest.mark.parametrize("room", [0, 1, 3, COUNT - 1, COUNT, 5 * COUNT])
def test_the_room_there_is_changes_no_answer(room: int) -> None:
    rng, textures = np.random.default_rng(0), Marked()
    shelves = bank(textures, room)
    for _ in range(40):
        numbers = rng.integers(COUNT, size=rng.integers(1, 6)).tolist()
        taken = ask(shelves, *numbers)
        assert taken.shape == (len(numbers), 3, *SIZE)
        assert right(taken, numbers)
        assert not right(taken, [(number + 1) % COUNT for number in numbers])
    assert set(textures.reads) == set(range(COUNT))


@pytest.mark.parametrize("room", [0, 1, 2, COUNT])
def test_a_batch_may_hold_a_texture_twice(room: int) -> None:
    textures = Marked()
    shelves = bank(textures, room)
    for numbers in ([4, 4], [4, 2, 4, 9, 2], [9, 9, 9]):
        assert right(ask(shelves, *numbers), numbers)
    if room >= 3:
        assert set(textures.reads.values()) == {1}


def test_what_is_handed_out_belongs_to_the_caller() -> None:
    for room in (0, 1, COUNT):
        shelves = bank(Marked(), room)
        ask(shelves, 1, 2).zero_()
        assert right(ask(shelves, 1, 2), [1, 2])


# ---------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("room", "numbers", "reads"),
    [
        (COUNT, [0, 1, 2, 3, 4], {0: 1, 1: 1, 2: 1, 3: 1, 4: 1}),
        (3, [0, 1, 2, 3, 4], {0: 1, 1: 1, 2: 1, 3: 5, 4: 5}),
        (0, [5, 5, 6], {5: 5, 6: 5}),
    ],
)
def test_what_fits_is_decoded_once_and_the_rest_each_time(
    room: int, numbers: list[int], reads: dict[int, int]
) -> None:
    textures = Marked()
    shelves = bank(textures, room)
    for _ in range(5):
        ask(shelves, *numbers)
    assert textures.reads == reads


def test_a_request_names_what_is_missing() -> None:
    textures = Marked()
    shelves = bank(textures)
    ask(shelves, 1, 2)
    request = shelves.request([2, 3, 1, 3], partial)
    assert request.numbers == [2, 3, 1, 3]
    assert list(request.arriving) == [3]
    assert textures.reads[3] == 0  # put off until it is taken


def test_requests_may_overlap() -> None:
    """Two batches that ask for the same texture before either is taken."""
    for room in (0, 1, COUNT):
        textures = Marked()
        shelves = bank(textures, room)
        first, second = shelves.request([1, 2], partial), shelves.request([2, 3], partial)
        assert right(shelves.take(first), [1, 2])
        assert right(shelves.take(second), [2, 3])
        assert textures.reads[2] == (1 if room == COUNT else 2)


def test_requests_may_be_taken_in_another_order() -> None:
    shelves = bank(Marked(), 2)
    first, second = shelves.request([1, 2, 5], partial), shelves.request([2, 3], partial)
    assert right(shelves.take(second), [2, 3])
    assert right(shelves.take(first), [1, 2, 5])


@pytest.mark.parametrize("room", [0, 2, COUNT])
def test_an_abandoned_request_leaves_the_bank_usable(room: int) -> None:
    shelves = bank(Marked(), room)
    shelves.request([1, 2, 3], partial)
    assert right(ask(shelves, 3, 4), [3, 4])
    with ThreadPoolExecutor(1) as pool:
        shelves.request([5, 6], lambda read, number: pool.submit(read, number).result)
    assert right(ask(shelves, 5, 1, 6), [5, 1, 6])


# ---------------------------------------------------------------------------- failures


@pytest.mark.parametrize("room", [0, 2, COUNT])
def test_a_texture_that_cannot_be_read_is_an_error_and_the_rest_stays(room: int) -> None:
    textures = Marked(broken=[3])
    shelves = bank(textures, room)
    ask(shelves, 1)
    for _ in range(2):
        with pytest.raises(DataError, match=r"3\.png: broken"):
            ask(shelves, 1, 2, 3, 4)
    assert right(ask(shelves, 1, 2, 4), [1, 2, 4])
    textures.broken.clear()
    assert right(ask(shelves, 3, 1), [3, 1])


# ---------------------------------------------------------------------------- memory


def test_room_is_reserved_for_what_fits_and_for_no_more_than_there_is() -> None:
    for room, count in ((0, 0), (3, 3), (COUNT, COUNT), (50, COUNT)):
        assert bank(Marked(), room)._store.shape == (count, 3, *SIZE)


def test_all_of_dtd_fits_at_256_pixels() -> None:
    assert 5640 * 3 * 256 * 256 <= CAPACITY_BYTES


@pytest.mark.gpu
@pytest.mark.parametrize("room", [0, 3, COUNT])
def test_a_gpu_hands_out_the_same(room: int) -> None:
    shelves = TextureBank(Marked(), torch.device("cuda"), capacity_bytes=room * BYTES)
    for numbers in ([1, 2, 1], [4, 5, 2, 9]):
        taken = ask(shelves, *numbers)
        assert taken.device.type == "cuda"
        assert right(taken.cpu(), numbers)
