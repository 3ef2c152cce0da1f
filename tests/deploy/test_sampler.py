"""What each sample is made of depends on the seed and its number, and on nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from destseg_deploy.data.images import list_images, read_image
from destseg_deploy.data.resize import resize_image
from destseg_deploy.data.sampler import Plan, Sampler, decode_images
from destseg_deploy.data.synthesis import ROTATIONS
from destseg_deploy.errors import DataError

SAMPLER = Sampler(images=7, textures=20, rotation="full", seed=0)


def same(a: Plan, b: Plan) -> bool:
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
    assert all(same(a, b) for a, b in zip(forwards, backwards, strict=True))
    shifted = [sampler.plan(index) for index in range(1, 41)]
    assert not any(same(a, b) for a, b in zip(forwards, shifted, strict=True))
    other = [replace(sampler, seed=1).plan(index) for index in range(40)]
    assert not any(same(a, b) for a, b in zip(forwards, other, strict=True))


def test_no_two_samples_are_alike() -> None:
    plans = [SAMPLER.plan(index) for index in range(500)]
    assert len({plan.choices.beta for plan in plans}) == 500


def test_the_number_of_images_does_not_change_the_choices() -> None:
    """The order of the images and the choices come from generators of their own."""
    few, many = replace(SAMPLER, images=3).plan(8), replace(SAMPLER, images=1000).plan(8)
    assert same(few, replace(many, image=few.image))


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


# ---------------------------------------------------------------------------- images


@pytest.mark.parametrize("size", [(64, 64), (48, 96)])
def test_images_are_decoded_in_order_and_resized(category: Path, size: tuple[int, int]) -> None:
    paths = list_images(category / "train/good")
    images = decode_images(paths, size)
    assert images.shape == (len(paths), *size, 3)
    assert images.dtype == np.uint8
    for path, image in zip(paths, images, strict=True):
        assert np.array_equal(image, resize_image(read_image(path), size))
    assert len({image.tobytes() for image in images}) == len(paths)


def test_a_damaged_image_is_refused_before_training(category: Path, tmp_path: Path) -> None:
    paths = list_images(category / "train/good")
    (tmp_path / "bad.png").write_bytes(paths[0].read_bytes()[:100])
    with pytest.raises(DataError, match=r"bad\.png"):
        decode_images([*paths, tmp_path / "bad.png"], (64, 64))
