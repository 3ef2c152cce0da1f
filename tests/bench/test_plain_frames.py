"""Frames of DRAEM and DSR: how they are resized and drawn."""

from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")

from destseg_bench.baselines import plain_frames
from destseg_bench.baselines.plain_frames import PlainFrames, plain_bgr
from destseg_bench.baselines.system import Task
from destseg_deploy.errors import DataError

SIDE = 64


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


def task(count: int) -> Task:
    return Task(Path("cable"), tuple(Path(f"{i}.png") for i in range(count)), "quick")


def test_images_are_drawn_with_replacement(monkeypatch) -> None:
    def read(path: Path) -> np.ndarray:
        return np.full((8, 8, 3), 10 * int(path.stem), np.uint8)

    monkeypatch.setattr(plain_frames, "read_image", read)
    frames = PlainFrames(task(5), (8, 8), turned=0.0)
    rng = np.random.default_rng(0)
    drawn = [int(frames.pick(rng)[4, 4, 0]) for _ in range(500)]
    assert len(frames) == 5
    assert [abs(drawn.count(value) - 100) < 40 for value in (0, 10, 20, 30, 40)] == [True] * 5
    assert len(set(drawn[:5])) < 5  # an epoch would hold each once


def test_the_stated_share_is_turned_on_black(monkeypatch) -> None:
    white = np.full((SIDE, SIDE, 3), 255, np.uint8)
    monkeypatch.setattr(plain_frames, "read_image", lambda path: white)
    frames = PlainFrames(task(1), (SIDE, SIDE), turned=0.3)
    rng = np.random.default_rng(0)
    corners = np.array([frames.pick(rng)[0, 0].max() for _ in range(1000)])
    assert abs((corners < 255).sum() - 300) < 50
    assert (corners == 0).sum() > 200


def test_a_category_without_images_is_refused() -> None:
    with pytest.raises(DataError, match="cable: no normal images"):
        PlainFrames(task(0), (SIDE, SIDE), 0.3)
