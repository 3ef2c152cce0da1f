"""The device loader gives the reference's samples, for any number of workers and any start."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from destseg_deploy.data.synthesis import ROTATIONS
from destseg_deploy.data.textures import FolderTextures, Textures
from destseg_deploy.errors import DataError
from destseg_deploy.training.batches import BATCHES_AHEAD, Batch, DeviceLoader, Sampler, TextureBank
from destseg_deploy.training.literal import AnomalyDataset, reference_batches

SIZE = (48, 64)
BATCH = 4
STEPS = 8
IMAGES = 5
COUNT = 12
CPU = torch.device("cpu")


def smooth(seed: int, count: int) -> NDArray[np.uint8]:
    """Return images without fine texture: OpenCV rounds positions to 1/32 pixel."""
    grids = np.random.default_rng(seed).integers(0, 256, (count, 5, 7, 3)).astype(np.float32)
    images = [cv2.resize(grid, SIZE[::-1], interpolation=cv2.INTER_CUBIC) for grid in grids]
    return np.clip(np.stack(images), 0, 255).astype(np.uint8)


class Patterns:
    """Twelve textures that take their time, the later ones of a batch less than the first."""

    name = "patterns"
    size = SIZE

    def __init__(self, *, broken: Sequence[int] = (), delay: float = 0) -> None:
        self.pixels = smooth(7, COUNT)
        self.broken = set(broken)
        self.delay = delay
        self.reads: Counter[int] = Counter()

    def __len__(self) -> int:
        return COUNT

    def read(self, number: int) -> NDArray[np.uint8]:
        self.reads[number] += 1
        time.sleep(self.delay * (COUNT - number) / COUNT)
        if number in self.broken:
            raise DataError(f"{number}.png: broken")
        return self.pixels[number]

    def digest(self) -> str:
        return ""


def sampler(rotation: str = "none", seed: int = 0) -> Sampler:
    return Sampler(IMAGES, COUNT, rotation, seed)


def make_loader(
    textures: Textures | None = None,
    *,
    plans: Sampler | None = None,
    workers: int = 0,
    room: int = COUNT,
) -> DeviceLoader:
    source = textures or Patterns()
    capacity = room * 3 * SIZE[0] * SIZE[1]
    bank = TextureBank(source, CPU, capacity_bytes=capacity)
    plans = plans or sampler()
    return DeviceLoader(smooth(1, IMAGES), bank, plans, batch_size=BATCH, workers=workers)


def reference(plans: Sampler, start: int = 0, stop: int = STEPS) -> list[Batch]:
    dataset = AnomalyDataset(smooth(1, IMAGES), Patterns(), plans, BATCH * STEPS)
    return list(reference_batches(dataset, BATCH, start, stop))


def same(a: Sequence[Batch], b: Sequence[Batch]) -> bool:
    """Tell whether two runs are the same to the last bit."""
    pairs = [pair for one, other in zip(a, b, strict=True) for pair in zip(one, other, strict=True)]
    return all(torch.equal(x, y) for x, y in pairs)


def close(a: Sequence[Batch], b: Sequence[Batch]) -> bool:
    """Tell whether rounding explains what differs; see test_synthesis_torch.py."""
    image, clean, mask = (torch.cat(parts) for parts in zip(*a, strict=True))
    other_image, other_clean, other_mask = (torch.cat(parts) for parts in zip(*b, strict=True))
    agree = (mask == other_mask).expand_as(image)
    of_clean, of_image = (clean - other_clean).abs(), (image - other_image).abs()
    return bool(
        of_clean.max() < 3
        and of_clean.mean() < 0.2
        and of_image[agree].max() < 3
        and agree.float().mean() > 1 - 0.0015
    )


@contextmanager
def no_threads_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


# ---------------------------------------------------------------------------- the samples


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_the_samples_are_the_references(rotation: str) -> None:
    plans = sampler(rotation)
    made = list(make_loader(plans=plans).batches(0, STEPS))
    expected = reference(plans)
    assert len(made) == len(expected) == STEPS
    for one, other in zip(made, expected, strict=True):
        assert [part.shape for part in one] == [part.shape for part in other]
        assert [part.dtype for part in one] == [part.dtype for part in other]
    assert close(made, expected)
    assert sum(float(mask.sum()) for _, _, mask in made) > 500  # there are anomalies to compare
    assert not close(made[1:], expected[:-1])
    assert not close(made, reference(replace(plans, seed=1)))


def test_other_textures_give_other_anomalies() -> None:
    shuffled = Patterns()
    shuffled.pixels = shuffled.pixels[::-1]
    made = list(make_loader(shuffled).batches(0, STEPS))
    expected = reference(sampler())
    assert not close(made, expected)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(made, expected, strict=True))


def test_a_folder_of_textures_is_mapped_by_number(tmp_path: Path) -> None:
    """Twelve flat colours: each anomaly shows that of the sample's texture."""
    for number in range(COUNT):
        Image.new("RGB", (9, 9), (20 * number, 255 - 20 * number, 7)).save(
            tmp_path / f"{number:02}.png"
        )
    plans, seen = sampler(), set()
    made = list(make_loader(FolderTextures(tmp_path, SIZE), plans=plans).batches(0, STEPS))
    for index in range(BATCH * STEPS):
        image, clean, mask = (part[index % BATCH] for part in made[index // BATCH])
        if not mask.any():
            continue
        plan, where = plans.plan(index), mask[0] > 0
        colour = torch.tensor([20.0 * plan.texture, 255.0 - 20 * plan.texture, 7.0])[:, None]
        blended = plan.choices.beta * clean[:, where] + (1 - plan.choices.beta) * colour
        assert torch.allclose(image[:, where], blended, atol=1e-3)
        seen.add(plan.texture)
    assert len(seen) > 6


# ---------------------------------------------------------------------------- the same bits


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("room", [0, 3, COUNT])
def test_neither_workers_nor_room_change_a_bit(workers: int, room: int) -> None:
    plans = sampler("full")
    alone = list(make_loader(plans=plans).batches(0, STEPS))
    slow = Patterns(delay=0.004)
    shared = list(make_loader(slow, plans=plans, workers=workers, room=room).batches(0, STEPS))
    assert same(alone, shared)
    assert not same(alone, alone[1:] + alone[:1])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [1, 3, STEPS - 1])
def test_a_run_that_starts_in_the_middle_is_the_same_to_the_bit(start: int, workers: int) -> None:
    plans = sampler("slight")
    whole = list(make_loader(plans=plans).batches(0, STEPS))
    assert same(
        whole[start:], list(make_loader(plans=plans, workers=workers).batches(start, STEPS))
    )
    assert same(whole[start : start + 1], list(make_loader(plans=plans).batches(start, start + 1)))
    assert not same(whole[:1], whole[start : start + 1])


def test_a_loader_may_be_asked_again() -> None:
    made = make_loader(plans=sampler("full"), workers=2)
    first = list(made.batches(0, STEPS))
    assert same(first, list(made.batches(0, STEPS)))
    assert same(first[2:5], list(made.batches(2, 5)))
    assert list(made.batches(3, 3)) == []


def test_global_seeds_change_nothing() -> None:
    streams = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        streams.append(list(make_loader(plans=sampler("full")).batches(0, 2)))
    assert same(*streams)


# ---------------------------------------------------------------------------- decoding


def wanted(*steps: int) -> set[int]:
    indices = [step * BATCH + i for step in steps for i in range(BATCH)]
    return {sampler().plan(index).texture for index in indices}


def test_without_workers_textures_are_decoded_when_they_are_needed_and_once() -> None:
    textures = Patterns()
    stream = make_loader(textures).batches(0, STEPS)
    assert not textures.reads
    for step in range(STEPS):
        next(stream)
        assert set(textures.reads) == wanted(*range(step + 1))
    assert set(textures.reads.values()) == {1}


def test_workers_decode_a_few_batches_ahead() -> None:
    textures = Patterns()
    stream = make_loader(textures, workers=2).batches(0, STEPS)
    next(stream)
    deadline = time.monotonic() + 5
    while set(textures.reads) != wanted(*range(BATCHES_AHEAD)) and time.monotonic() < deadline:
        time.sleep(0.005)
    assert wanted(0) < set(textures.reads) == wanted(*range(BATCHES_AHEAD)) < wanted(*range(STEPS))
    stream.close()


def test_what_the_bank_holds_is_not_decoded_again() -> None:
    textures = Patterns()
    made = make_loader(textures, workers=2)
    list(made.batches(0, STEPS))
    before = textures.reads.copy()
    assert max(before.values()) <= BATCHES_AHEAD  # asked for by that many batches at once
    list(made.batches(0, STEPS))
    assert textures.reads == before


# ---------------------------------------------------------------------------- ends


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_a_texture_that_cannot_be_read_stops_the_run_where_it_is_needed(workers: int) -> None:
    broken = sampler().plan(3 * BATCH).texture  # of batch 3
    good = next(step for step in range(STEPS) if broken in wanted(step))
    stream = make_loader(Patterns(broken=[broken], delay=0.002), workers=workers).batches(0, STEPS)
    with no_threads_left():
        made = list(islice(stream, good))
        with pytest.raises(DataError, match=f"{broken}.png: broken"):
            next(stream)
        assert list(stream) == []
    assert same(made, list(make_loader().batches(0, good)))


@pytest.mark.parametrize("workers", [1, 4])
def test_an_abandoned_run_ends_its_threads(workers: int) -> None:
    textures = Patterns(delay=0.01)
    made = make_loader(textures, workers=workers)
    with no_threads_left():
        stream = made.batches(0, STEPS)
        next(stream)
        running = [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]
        assert running  # else there is nothing to end
        del stream
    assert same(list(made.batches(0, STEPS)), list(make_loader().batches(0, STEPS)))


def test_a_finished_run_ends_its_threads() -> None:
    with no_threads_left():
        list(make_loader(workers=4).batches(0, STEPS))


# ---------------------------------------------------------------------------- the images


def test_the_images_given_are_left_as_they_were() -> None:
    images = smooth(1, IMAGES)
    made = DeviceLoader(
        images, TextureBank(Patterns(), CPU), sampler("full"), batch_size=BATCH, workers=0
    )
    list(made.batches(0, 2))
    assert np.array_equal(images, smooth(1, IMAGES))
    before = next(made.batches(0, 1))
    images[:] = 0
    assert same([before], list(made.batches(0, 1)))


@pytest.mark.gpu
def test_a_gpu_gets_the_same_samples() -> None:
    plans = sampler("full")
    bank = TextureBank(Patterns(), torch.device("cuda"))
    made = list(
        DeviceLoader(smooth(1, IMAGES), bank, plans, batch_size=BATCH, workers=2).batches(0, STEPS)
    )
    assert {part.device.type for batch in made for part in batch} == {"cuda"}
    fetched = [(a.cpu(), b.cpu(), c.cpu()) for a, b, c in made]
    assert close(fetched, reference(plans))
