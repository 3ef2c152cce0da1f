"""The frames that an artifact is compared on: images at hand, and frames of our own beside them.

A comparison sees what its frames show. Two flat images, or good parts alone, leave whole regions of
the map at 0, where a graph may do what it likes. So frames that are sure to move the map are added
to whatever images are given: drawn parts, noise of several grain sizes, gradients, flat colours,
and copies of the given images with a drawn anomaly or another colour channel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.data.calibration import add_anomalies
from destseg_deploy.data.datasets import images_at_hand
from destseg_deploy.data.finding import common_folder
from destseg_deploy.data.images import read_image
from destseg_deploy.data.resize import resize_image
from destseg_deploy.data.sample.category import DEFECTS, render
from destseg_deploy.errors import DataError
from destseg_deploy.spec import ModelSpec

Frame = NDArray[np.uint8]
COUNT = 16
"""Images at hand that are compared, spread evenly over them."""

FEWEST = 4
"""The same with tiles, at least."""

SPOILED = 8
"""Of these, how many are compared a second time with an anomaly in them."""

RENDERED = 4
"""Rendered parts beside the images at hand."""

GRAINS = (1, 4, 16, 64)
"""Pixels of a 256 px frame along a side of a square of noise."""

COLOURS = ("red", "green", "blue")


@dataclass(frozen=True, eq=False)
class Frames:
    """What is compared.

    Attributes:
        images: uint8 (H, W, 3) at the artifact's input size.
        source: Where they are from, in words.
        channels: For each colour, pairs of places in ``images`` that differ in that colour alone.
    """

    images: tuple[Frame, ...]
    source: str
    channels: tuple[tuple[tuple[int, int], ...], ...] = ()


def verification_frames(
    images: Sequence[Path] | None, trained: ModelSpec, size: tuple[int, int], tiles: int = 1
) -> Frames:
    """Return up to ``COUNT`` frames of images at hand, and our own behind them.

    Args:
        images: See ``given_frames``.
        trained: See ``given_frames``.
        size: Height and width of the frames in pixels.
        tiles: Tiles of a frame. Each shows an image to the network, so that fewer frames are given.

    Raises:
        DataError: As ``given_frames``.
    """
    given, source = given_frames(images, trained, size, max(FEWEST, COUNT // tiles))
    own = [*_spoiled(given), *_drawn(size)]
    bases = [given[0], _noise(size, GRAINS[-1], seed=len(GRAINS), contrast=0.25)]
    shown = [*given, *own, *bases]
    first, pairs = len(shown) - len(bases), []
    for colour in range(len(COLOURS)):
        pairs.append(tuple((first + i, len(shown) + i) for i in range(len(bases))))
        shown += [_inverted(base, colour) for base in bases]
    return Frames(tuple(shown), f"{source}, {len(shown) - len(given)} of them drawn", tuple(pairs))


def given_frames(
    images: Sequence[Path] | None, trained: ModelSpec, size: tuple[int, int], count: int = COUNT
) -> tuple[list[Frame], str]:
    """Return up to ``count`` frames of the images at hand, and where they are from in words.

    Args:
        images: Image files. None stands for the test images of the training data where they are
            still at hand, and for rendered images otherwise.
        trained: A spec with the training's record, which names its data.
        size: Height and width of the frames in pixels.
        count: Frames, at most.

    Raises:
        DataError: If fewer than two images were given, all are the same, or one cannot be read or
            has a single colour.
    """
    if images is None:
        data = trained.training.data if trained.training else None
        images = images_at_hand(data)
        if len(images) < 2:
            return [_rendered(i, size) for i in range(count)], "rendered images"
    if len(images) < 2:
        raise DataError(f"--verify-images: {len(images)} images, expected at least 2 that differ.")
    chosen = np.unique(np.linspace(0, len(images) - 1, count).astype(int))
    frames = [resize_image(_read(images[i]), size) for i in chosen]
    common = common_folder([path.parent for path in images]) or images[0].parent
    if len({frame.tobytes() for frame in frames}) < 2:
        raise DataError(
            f"--verify-images: {common}: the {len(frames)} images are all the same. Expected at "
            "least 2 that differ."
        )
    return frames, f"images of {common}"


def _read(path: Path) -> Frame:
    image = read_image(path)
    if (image == image[0, 0]).all():
        raise DataError(
            f"{path}: all {image.shape[1]}x{image.shape[0]} pixels have the colour "
            f"{image[0, 0].tolist()}, which shows nothing. Pass photographs of parts with "
            "--verify-images."
        )
    return image


def _rendered(number: int, size: tuple[int, int]) -> Frame:
    """Return a rendered cable; every second one is defective."""
    return resize_image(_cable(number), size).copy()


@lru_cache(maxsize=COUNT + RENDERED)
def _cable(number: int) -> Frame:
    """Draw a cable of 256 px, once: each comparison shows the same ones."""
    defect = DEFECTS[number // 2 % len(DEFECTS)] if number % 2 else None
    image, _ = render(np.random.default_rng([number]), 256, defect)
    return image


def _spoiled(given: Sequence[Frame]) -> list[Frame]:
    """Return copies of some frames with a drawn anomaly: on good parts the map is flat."""
    chosen = np.unique(np.linspace(0, len(given) - 1, SPOILED).astype(int))
    frames = add_anomalies(np.stack([given[i] for i in chosen]), seed=2).frames
    return list(frames[len(chosen) :])


def _drawn(size: tuple[int, int]) -> Iterator[Frame]:
    """Give parts, noise, gradients and flat colours."""
    yield from (_rendered(COUNT + i, size) for i in range(RENDERED))
    yield from (_noise(size, grain, seed=i) for i, grain in enumerate(GRAINS))
    rows, columns = (np.linspace(0, 255, side) for side in size)
    planes = np.broadcast_arrays(rows[:, None], columns[None], (rows[:, None] + columns) / 2)
    gradient = np.stack(planes, axis=-1).astype(np.uint8)
    yield from (gradient, np.ascontiguousarray(255 - gradient[:, ::-1, ::-1]))
    for colour in range(len(COLOURS)):
        flat = np.zeros((*size, 3), np.uint8)
        flat[..., colour] = 255
        yield flat


def _noise(size: tuple[int, int], grain: int, *, seed: int, contrast: float = 1.0) -> Frame:
    """Return squares of random colours around grey."""
    rng, side = np.random.default_rng([COUNT, seed]), max(1, grain * min(size) // 256)
    squares = rng.random((-(-size[0] // side), -(-size[1] // side), 3))
    noise = squares.repeat(side, axis=0).repeat(side, axis=1)[: size[0], : size[1]]
    return np.asarray(127.5 + 255 * contrast * (noise - 0.5), np.uint8)


def _inverted(frame: Frame, colour: int) -> Frame:
    """Return a copy with one colour channel inverted."""
    changed = frame.copy()
    changed[..., colour] = 255 - changed[..., colour]
    return changed
