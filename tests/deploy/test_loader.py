"""The reference's way of making samples: the same whatever the number of worker processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from destseg_deploy.data.images import list_images
from destseg_deploy.data.loader import AnomalyDataset, batches
from destseg_deploy.data.sampler import Sampler, decode_images
from destseg_deploy.data.synthesis import synthesize
from destseg_deploy.data.synthesis_torch import Batch
from destseg_deploy.data.texture_source import FolderTextures, ProceduralTextures

SIZE = (64, 64)
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def images(category: Path) -> Pixels:
    return decode_images(list_images(category / "train/good"), SIZE)


@pytest.fixture
def textures(tmp_path: Path) -> FolderTextures:
    """One texture of each primary colour, in folders of their own, of another size."""
    for name, colour in COLOURS.items():
        (tmp_path / name).mkdir()
        Image.new("RGB", (40, 30), colour).save(tmp_path / name / "0.png")
    return FolderTextures(tmp_path, SIZE)


def make(images: Pixels, **options: Any) -> AnomalyDataset:
    given = {"rotation": "none", "seed": 0, "samples": 24, **options}
    size = (images.shape[1], images.shape[2])
    textures = given.get("textures") or ProceduralTextures(size, 50)
    sampler = Sampler(len(images), len(textures), given["rotation"], given["seed"])
    return AnomalyDataset(images, textures, sampler, given["samples"])


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def sources(dataset: AnomalyDataset, images: Pixels) -> list[int]:
    """Return which image each sample was made from."""
    found = []
    for index in range(len(dataset)):
        clean = dataset[index][1].transpose(1, 2, 0)
        found.append(next(i for i, image in enumerate(images) if (image == clean).all()))
    return found


# ---------------------------------------------------------------------------- samples


def test_a_sample_has_the_documented_arrays(images: Pixels) -> None:
    image, clean, mask = make(images)[0]
    assert image.shape == clean.shape == (3, *SIZE)
    assert mask.shape == (1, *SIZE)
    assert image.dtype == clean.dtype == mask.dtype == np.float32
    assert set(np.unique(mask)) <= {0, 1}


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
            assert np.array_equal(mask[0] > 0, sample.mask)


def test_an_image_need_not_be_square(category: Path) -> None:
    wide = decode_images(list_images(category / "train/good"), (48, 96))
    image, clean, mask = make(wide, rotation="full")[0]
    assert image.shape == clean.shape == (3, 48, 96)
    assert mask.shape == (1, 48, 96)


def test_only_the_mask_differs_from_the_clean_image(images: Pixels) -> None:
    changed = 0
    for index in range(24):
        image, clean, mask = make(images)[index]
        differs = (image != clean).any(axis=0)
        assert not differs[mask[0] == 0].any()
        changed += int(differs.sum())
    assert changed > 500


def test_a_sample_depends_on_seed_and_number_alone(images: Pixels) -> None:
    first, again = make(images), make(images, samples=1000)
    assert (len(first), len(again)) == (24, 1000)
    again[11]  # what was asked for before does not matter
    other = make(images, seed=1)
    for index in (7, 0):
        for a, b in zip(first[index], again[index], strict=True):
            assert (a == b).all()
    assert any((first[i][0] != other[i][0]).any() for i in range(4))
    masks = {make(images)[index][2].tobytes() for index in range(24)}
    assert len(masks) > 15  # a few are empty, and so alike


def test_rotation_is_passed_on(images: Pixels) -> None:
    still, turned = make(images)[3][1], make(images, rotation="slight")[3][1]
    assert (still != turned).any()


# ---------------------------------------------------------------------------- epochs


def test_every_image_is_used_once_per_epoch_in_a_new_order(images: Pixels) -> None:
    count = len(images)
    found = sources(make(images, samples=4 * count), images)
    epochs = [found[i : i + count] for i in range(0, 4 * count, count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_the_order_depends_on_the_seed(images: Pixels) -> None:
    assert sources(make(images), images) != sources(make(images, seed=1), images)


def test_fewer_images_than_a_batch_are_fine(images: Pixels) -> None:
    dataset = make(images[:2], samples=10)
    shapes = [batch[0].shape for batch in batches(dataset, 5)]
    assert shapes == [(5, 3, *SIZE)] * 2
    found = sources(dataset, images[:2])
    assert found.count(0) == found.count(1) == 5


# ---------------------------------------------------------------------------- batches


def test_batches_are_the_samples_in_order(images: Pixels) -> None:
    dataset = make(images, samples=9)
    stream = list(batches(dataset, 3))
    assert len(stream) == 3
    for number, batch in enumerate(stream):
        for tensor, shape in zip(batch, ((3, *SIZE), (3, *SIZE), (1, *SIZE)), strict=True):
            assert tensor.dtype == torch.float32
            assert tensor.shape == (3, *shape)
        for i in range(3):
            expected = dataset[3 * number + i]
            assert all((t[i].numpy() == e).all() for t, e in zip(batch, expected, strict=True))


@pytest.mark.parametrize(("start", "stop"), [(0, 2), (1, 3), (2, None), (3, 3)])
def test_batches_may_start_and_stop_in_the_middle(
    start: int, stop: int | None, images: Pixels
) -> None:
    dataset = make(images, samples=9, rotation="slight")
    whole = list(batches(dataset, 3))
    part = list(batches(dataset, 3, start, stop))
    assert len(part) == len(whole[start:stop])
    assert all(same(a, b) for a, b in zip(part, whole[start:stop], strict=True))
    assert not same(whole[0], whole[1])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12's, of any threads
def test_the_number_of_workers_changes_nothing(images: Pixels) -> None:
    dataset = make(images, samples=12, rotation="full")
    alone = list(batches(dataset, 2, 1))
    shared = list(batches(dataset, 2, 1, workers=2))
    assert len(alone) == len(shared) == 5
    assert all(same(a, b) for a, b in zip(alone, shared, strict=True))
    assert not same(alone[0], alone[1])


def test_global_seeds_change_nothing(images: Pixels) -> None:
    streams = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        streams.append(next(batches(make(images), 4)))
    assert same(*streams)


# ---------------------------------------------------------------------------- textures


def test_textures_of_a_folder_are_what_anomalies_are_made_of(
    images: Pixels, textures: FolderTextures
) -> None:
    dataset = make(images, textures=textures, samples=40)
    seen = set()
    for index in range(40):
        image, clean, mask = dataset[index]
        if not mask.any():
            continue
        where = mask[0] > 0
        fits = [name for name, colour in COLOURS.items() if blends(image, clean, where, colour)]
        assert len(fits) == 1
        seen.add(fits[0])
    assert seen == set(COLOURS)


def blends(
    image: np.ndarray, clean: np.ndarray, where: np.ndarray, colour: tuple[int, int, int]
) -> bool:
    """Tell whether the pixels lie between the clean ones and a colour, all at the same share."""
    way = np.array(colour, np.float64)[:, None] - clean[:, where]
    change = (image - clean)[:, where]
    share = float((change * way).sum() / (way * way).sum())
    return bool(np.abs(change - share * way).max() < 1e-2)


def test_procedural_textures_need_no_folder(images: Pixels) -> None:
    """Inside the mask there is a texture, not one flat colour."""
    varied = 0
    for index in range(24):
        image, clean, mask = make(images)[index]
        where = mask[0] > 0
        if where.sum() > 50:
            varied += (image - clean)[:, where].std() > 5
    assert varied > 5
