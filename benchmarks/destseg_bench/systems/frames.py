"""Normal images for training: decoded and prepared once, then drawn batch by batch.

``TrainingFrames`` goes through shuffled epochs, for the systems that see images as ``prepare``
returns them. ``BgrFrames`` draws with replacement and rotates some images, as DRAEM and DSR do;
these two see BGR in [0, 1], resized by OpenCV without antialiasing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from destseg_bench.systems.system import Task
from destseg_deploy.data.images import read_image
from destseg_deploy.data.synthesis import draw, noise_mask
from destseg_deploy.errors import DataError

Pixels = NDArray[np.uint8]
NORMAL_SHARE = 0.5
"""Share of DRAEM's and DSR's training samples that stay normal."""


class TrainingFrames:
    """The normal images of a task in host memory, in shuffled epochs.

    Batch ``i`` depends on the seed and ``i`` alone, so that steps can be timed without training
    what comes before. An epoch drops what does not fill a batch. If there are fewer images than a
    batch takes, images repeat.
    """

    def __init__(
        self, task: Task, prepare: Callable[[Pixels], NDArray[np.float32]], size: int
    ) -> None:
        """Decode the images and prepare each.

        Args:
            task: Its ``images`` are read.
            prepare: Maps uint8 (H, W, 3) RGB to float32 (3, h, w); the system's.
            size: Images per batch.

        Raises:
            DataError: If there is no image or one cannot be read.
        """
        self._images = torch.from_numpy(np.stack(_decode(task, prepare)))
        self._device = task.device
        self._seed = task.seed
        self._size = size

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._images)

    @property
    def batches_per_epoch(self) -> int:
        """Steps of an epoch, at least 1."""
        return max(1, len(self._images) // self._size)

    def numbers(self, step: int) -> NDArray[np.int64]:
        """Return the images of a step's batch, int64 (size,)."""
        epoch, position = divmod(step, self.batches_per_epoch)
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._images))
        start = position * self._size
        # resize repeats the order where it is shorter than a batch
        return np.resize(order, max(len(order), self._size))[start : start + self._size]

    def batch(self, step: int) -> Tensor:
        """Return a step's batch on the device, float32 (size, 3, H, W)."""
        return self._images[self.numbers(step)].to(self._device)


class BgrFrames:
    """The normal images of a task, decoded once, drawn with replacement and sometimes rotated."""

    def __init__(self, task: Task, size: tuple[int, int], rotated: float) -> None:
        """Decode and resize.

        Args:
            task: Its ``images`` are read.
            size: Height and width.
            rotated: Share of the draws that are rotated, by up to 90 degrees either way.

        Raises:
            DataError: If there is no image or one cannot be read.
        """
        self._images = _decode(task, lambda frame: _resized_bgr(frame, size))
        self._rotated = rotated

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._images)

    def draw(self, rng: np.random.Generator) -> Pixels:
        """Draw an image, uint8 (H, W, 3) BGR."""
        image: Pixels = self._images[int(rng.integers(len(self._images)))]
        degrees = rng.uniform(-90.0, 90.0)
        return rotate_on_black(image, degrees) if rng.random() < self._rotated else image


def plain_bgr(frame: Pixels, size: tuple[int, int]) -> NDArray[np.float32]:
    """Resize bilinearly without antialiasing: each pixel comes from four, whatever the scale.

    Args:
        frame: uint8 (H, W, 3) RGB.
        size: Height and width.

    Returns:
        float32 (3, *size), BGR in [0, 1].
    """
    return as_floats(_resized_bgr(frame, size)).transpose(2, 0, 1).copy()


def as_floats(image: Pixels) -> NDArray[np.float32]:
    """Map [0, 255] to [0, 1]."""
    return image.astype(np.float32) / np.float32(255)


def rotate_on_black(image: Pixels, degrees: float) -> Pixels:
    """Rotate (H, W, 3) counter-clockwise about the centre; uncovered corners turn black."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    rotated = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR)
    return rotated.astype(np.uint8, copy=False)


def draw_mask(
    height: int, width: int, rng: np.random.Generator
) -> tuple[NDArray[np.bool_], np.float32]:
    """Draw where an anomaly is and how much of the image shows through it.

    Returns:
        DeSTSeg's mask of Perlin noise, bool (height, width), but empty for half of the draws; and
        beta in [0, 0.8), the share of the normal image.
    """
    choices = draw(rng)
    mask = noise_mask(height, width, choices)
    normal = rng.random() < NORMAL_SHARE
    return np.zeros_like(mask) if normal else mask, np.float32(choices.beta)


def _decode(task: Task, prepare: Callable[[Pixels], NDArray[Any]]) -> list[NDArray[Any]]:
    if not task.images:
        raise DataError(
            f"{task.category}: no normal images to train on. Expected some in train/good."
        )
    return [prepare(read_image(path)) for path in task.images]


def _resized_bgr(frame: Pixels, size: tuple[int, int]) -> Pixels:
    resized = cv2.resize(frame, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(resized[:, :, ::-1]).astype(np.uint8, copy=False)
