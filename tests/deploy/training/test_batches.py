"""The reference's way of making samples: the same whatever the number of worker processes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from destseg_deploy.data.finding import list_images
from destseg_deploy.data.images import read_images
from destseg_deploy.data.synthesis import ROTATIONS, synthesize
from destseg_deploy.data.textures import ProceduralTextures
from destseg_deploy.training.batches import Batch, SamplePlan, Sampler
from destseg_deploy.training.literal import AnomalyDataset, reference_batches

SIZE = (64, 64)
Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def images(category: Path) -> Pixels:
    return read_images(list_images(category / "train/good"), SIZE)


def make(images: Pixels, **options: Any) -> AnomalyDataset:
    given = {"rotation": "none", "seed": 0, "samples": 24, **options}
    size = (images.shape[1], images.shape[2])
    textures = ProceduralTextures(size, 50)
    sampler = Sampler(len(images), len(textures), given["rotation"], given["seed"])
    return AnomalyDataset(images, textures, sampler, given["samples"])


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ---------------------------------------------------------------------------- samples


def test_a_sample_is_what_its_plan_says(images: Pixels) -> None:
    for rotation in ("none", "slight", "full"):
        dataset = make(images, rotation=rotation)
        for index in (0, 5, 11):
            plan = dataset.sampler.plan(index)
            texture = ProceduralTextures(SIZE, 50).read(plan.texture)
            sample = synthesize(images[plan.image], texture, plan.choices)
            image, clean, mask = dataset[index]
            assert np.array_equal(image, sample.image.transpose(2, 0, 1))
            assert np.array_equal(clean, sample.clean.transpose(2, 0, 1))
            assert np.array_equal(mask[0], sample.mask)
            assert image.dtype == clean.dtype == mask.dtype == np.float32


# ---------------------------------------------------------------------------- batches


def test_batches_are_the_samples_in_order(images: Pixels) -> None:
    dataset = make(images, samples=9)
    assert len(dataset) == 9
    stream = list(reference_batches(dataset, 3, 0, 3))
    assert len(stream) == 3
    for number, batch in enumerate(stream):
        for tensor, shape in zip(batch, ((3, *SIZE), (3, *SIZE), (1, *SIZE)), strict=True):
            assert tensor.dtype == torch.float32
            assert tensor.shape == (3, *shape)
        for i in range(3):
            expected = dataset[3 * number + i]
            assert all((t[i].numpy() == e).all() for t, e in zip(batch, expected, strict=True))


@pytest.mark.parametrize(("start", "stop"), [(0, 2), (1, 3), (2, 3), (3, 3)])
def test_batches_may_start_and_stop_in_the_middle(start: int, stop: int, images: Pixels) -> None:
    dataset = make(images, samples=9, rotation="slight")
    whole = list(reference_batches(dataset, 3, 0, 3))
    part = list(reference_batches(dataset, 3, start, stop))
    assert len(part) == len(whole[start:stop])
    assert all(same(a, b) for a, b in zip(part, whole[start:stop], strict=True))
    assert not same(whole[0], whole[1])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12's, of any threads
def test_the_number_of_workers_changes_nothing(images: Pixels) -> None:
    dataset = make(images, samples=12, rotation="full")
    alone = list(reference_batches(dataset, 2, 1, 6))
    shared = list(reference_batches(dataset, 2, 1, 6, workers=2))
    assert len(alone) == len(shared) == 5
    assert all(same(a, b) for a, b in zip(alone, shared, strict=True))
    assert not same(alone[0], alone[1])


def test_global_seeds_change_nothing(images: Pixels) -> None:
    streams = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        streams.append(next(reference_batches(make(images), 4, 0, 1)))
    assert same(*streams)


# ---------------------------------------------------------------------------- sample plans


SAMPLER = Sampler(images=7, textures=20, rotation="full", seed=0)


def same_plan(a: SamplePlan, b: SamplePlan) -> bool:
    one, other = a.choices, b.choices
    return (
        (a.image, a.texture, one.turn, one.noise_turn, one.beta)
        == (b.image, b.texture, other.turn, other.noise_turn, other.beta)
    ) and np.array_equal(one.angles, other.angles)


def order(sampler: Sampler, count: int) -> list[int]:
    return [sampler.plan(index).image for index in range(count)]


# ---------------------------------------------------------------------------- epochs


def test_every_image_is_used_once_per_epoch_in_a_new_order() -> None:
    found = order(SAMPLER, 10 * 7)
    epochs = [tuple(found[i : i + 7]) for i in range(0, len(found), 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len(set(epochs)) == 10


def test_every_image_comes_at_every_place() -> None:
    found = np.array(order(SAMPLER, 300 * 7)).reshape(300, 7)
    counts = np.array(
        [[(found[:, place] == image).sum() for image in range(7)] for place in range(7)]
    )
    assert counts.min() > 20  # 43 expected
    assert counts.max() < 70


def test_the_order_depends_on_the_seed() -> None:
    assert order(SAMPLER, 14) != order(replace(SAMPLER, seed=1), 14)
    assert order(SAMPLER, 14) == order(replace(SAMPLER), 14)


@pytest.mark.parametrize("images", [1, 2])
def test_fewer_images_than_a_batch_are_fine(images: int) -> None:
    plans = [replace(SAMPLER, images=images).plan(index) for index in range(10)]
    assert [plan.image for plan in plans].count(0) == 10 // images
    assert len({plan.choices.beta for plan in plans}) == 10


# ---------------------------------------------------------------------------- determinism


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_a_plan_depends_on_seed_and_number_alone(rotation: str) -> None:
    sampler = replace(SAMPLER, rotation=rotation)
    forwards = [sampler.plan(index) for index in range(40)]
    np.random.seed(1)  # noqa: NPY002 - the global state is what must not matter
    again = replace(sampler)
    backwards = [again.plan(index) for index in reversed(range(40))][::-1]
    assert all(same_plan(a, b) for a, b in zip(forwards, backwards, strict=True))
    shifted = [sampler.plan(index) for index in range(1, 41)]
    assert not any(same_plan(a, b) for a, b in zip(forwards, shifted, strict=True))
    other = [replace(sampler, seed=1).plan(index) for index in range(40)]
    assert not any(same_plan(a, b) for a, b in zip(forwards, other, strict=True))


def test_the_number_of_images_does_not_change_the_choices() -> None:
    """The order of the images and the choices come from generators of their own."""
    few, many = replace(SAMPLER, images=3).plan(8), replace(SAMPLER, images=1000).plan(8)
    assert same_plan(few, replace(many, image=few.image))


def test_rotation_is_passed_on() -> None:
    turns = {
        rotation: [replace(SAMPLER, rotation=rotation).plan(i).choices.turn for i in range(40)]
        for rotation in ROTATIONS
    }
    assert set(turns["none"]) == {0.0}
    assert 0 < max(map(abs, turns["slight"])) <= 5
    assert max(turns["full"]) > 200


# ---------------------------------------------------------------------------- textures


def test_textures_are_drawn_uniformly() -> None:
    numbers = [SAMPLER.plan(index).texture for index in range(2000)]
    counts = [numbers.count(number) for number in range(20)]
    assert sum(counts) == 2000
    assert min(counts) > 65  # 100 expected
    assert max(counts) < 140


def test_one_texture_is_enough() -> None:
    assert {replace(SAMPLER, textures=1).plan(index).texture for index in range(5)} == {0}
