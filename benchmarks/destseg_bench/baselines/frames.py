"""Normal images for training: decoded and prepared once, then drawn in shuffled batches."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from destseg_bench.baselines.system import Task
from destseg_deploy.data.images import read_image
from destseg_deploy.data.resize import resize_image
from destseg_deploy.errors import DataError

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
"""ImageNet's, of RGB in [0, 1]."""

Prepare = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


class TrainingFrames:
    """The normal images of a task in host memory.

    Epochs are shuffled anew; batch ``i`` depends on the seed and ``i`` alone, so steps can be
    timed without training what comes before. Every epoch drops what does not fill a batch, unless
    there are fewer images than one batch takes: then images repeat.
    """

    def __init__(self, task: Task, prepare: Prepare, size: int) -> None:
        """Decode the images and prepare each.

        Args:
            task: Its ``images`` are read.
            prepare: The system's.
            size: Images per batch.

        Raises:
            DataError: If there is no image or one cannot be read.
        """
        if not task.images:
            raise DataError(f"{task.category}: no normal images to train on.")
        self._images = torch.from_numpy(np.stack([prepare(read_image(p)) for p in task.images]))
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
        return np.resize(order, max(len(order), self._size))[start : start + self._size]

    def batch(self, step: int) -> Tensor:
        """Return a step's batch on the device, float32 (size, 3, H, W)."""
        return self._images[self.numbers(step)].to(self._device)


def normalized(frame: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.float32]:
    """Resize with antialiasing and normalise as ImageNet's.

    Args:
        frame: uint8 (H, W, 3) RGB.
        size: Height and width.

    Returns:
        float32 (3, *size).
    """
    pixels = resize_image(frame, size).astype(np.float32) / 255
    return np.ascontiguousarray(((pixels - MEAN) / STD).transpose(2, 0, 1))
