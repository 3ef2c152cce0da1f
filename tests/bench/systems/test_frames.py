"""Normal images for training: how they are resized, drawn and put into epochs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from destseg_bench.systems import frames as frames_module
from destseg_bench.systems.frames import BgrFrames, TrainingFrames, draw_mask, plain_bgr
from destseg_bench.systems.system import Task, normalized
from destseg_deploy.errors import DataError

SIDE = 64


def numbered(count: int) -> Task:
    return Task(Path("cable"), tuple(Path(f"{i}.png") for i in range(count)), "quick")


def prepare(frame: np.ndarray) -> np.ndarray:
    return normalized(frame, (32, 32))


def test_resize_is_plain_and_channels_are_bgr() -> None:
    stripes = np.zeros((16, 4 * SIDE, 3), np.uint8)
    stripes[:, 0::4] = stripes[:, 3::4] = 255  # a bilinear sample lies between 1 and 2
    assert plain_bgr(stripes, (16, SIDE)).max() == 0
    assert cv2.resize(stripes, (SIDE, 16), interpolation=cv2.INTER_AREA).max() > 100
    red = np.zeros((8, 8, 3), np.uint8)
    red[:, :, 0] = 51
    prepared = plain_bgr(red, (8, 8))
    assert prepared.dtype == np.float32
    assert prepared.flags.c_contiguous
    assert prepared[:, 0, 0].tolist() == pytest.approx([0, 0, 0.2])


def test_every_image_is_used_once_per_epoch_and_epochs_differ(task: Task) -> None:
    frames = TrainingFrames(task, prepare, 4)
    per_epoch = frames.batches_per_epoch
    assert per_epoch == len(task.images) // 4
    epochs = [
        np.concatenate([frames.numbers(e * per_epoch + i) for i in range(per_epoch)])
        for e in range(2)
    ]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 4 * per_epoch
    assert not np.array_equal(*epochs)
    np.testing.assert_array_equal(frames.numbers(0), epochs[0][:4])
    assert frames.batch(0).shape == (4, 3, 32, 32)


def test_few_images_fill_a_batch(task: Task) -> None:
    frames = TrainingFrames(replace(task, images=task.images[:3]), prepare, 8)
    assert sorted(np.bincount(frames.numbers(5)).tolist()) == [2, 3, 3]


@pytest.mark.parametrize(
    "frames",
    [lambda task: TrainingFrames(task, prepare, 8), lambda task: BgrFrames(task, (8, 8), 0.3)],
)
def test_a_category_without_images_is_refused(frames: Callable[[Task], object]) -> None:
    with pytest.raises(DataError, match="cable: no normal images"):
        frames(numbered(0))


def test_images_are_drawn_with_replacement(monkeypatch) -> None:
    def read(path: Path) -> np.ndarray:
        return np.full((8, 8, 3), 10 * int(path.stem), np.uint8)

    monkeypatch.setattr(frames_module, "read_image", read)
    frames = BgrFrames(numbered(5), (8, 8), rotated=0.0)
    rng = np.random.default_rng(0)
    drawn = [int(frames.draw(rng)[4, 4, 0]) for _ in range(500)]
    assert len(frames) == 5
    assert [abs(drawn.count(value) - 100) < 40 for value in (0, 10, 20, 30, 40)] == [True] * 5
    assert len(set(drawn[:5])) < 5  # an epoch would hold each once


def test_the_stated_share_is_rotated_on_black(monkeypatch) -> None:
    white = np.full((SIDE, SIDE, 3), 255, np.uint8)
    monkeypatch.setattr(frames_module, "read_image", lambda path: white)
    frames = BgrFrames(numbered(1), (SIDE, SIDE), rotated=0.3)
    rng = np.random.default_rng(0)
    corners = np.array([frames.draw(rng)[0, 0].max() for _ in range(1000)])
    assert abs((corners < 255).sum() - 300) < 50
    assert (corners == 0).sum() > 200


def test_half_of_the_masks_are_empty_and_the_image_shows_through(monkeypatch) -> None:
    full = np.ones((4, 4), np.bool_)
    monkeypatch.setattr(frames_module, "noise_mask", lambda height, width, choices: full)
    rng = np.random.default_rng(0)
    masks, betas = zip(*(draw_mask(4, 4, rng) for _ in range(1000)), strict=True)
    assert abs(sum(mask.any() for mask in masks) - 500) < 60
    assert 0 <= min(betas) < 0.01
    assert 0.79 < max(betas) < 0.8
