"""Images as DRAEM and DSR see them: BGR in [0, 1], resized without antialiasing."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from destseg_bench.baselines.system import Task
from destseg_deploy.data.images import read_image
from destseg_deploy.errors import DataError


def plain_bgr(frame: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.float32]:
    """Resize bilinearly from four pixels each, whatever the scale.

    Args:
        frame: uint8 (H, W, 3) RGB.
        size: Height and width.

    Returns:
        float32 (3, *size), BGR in [0, 1].
    """
    return as_floats(_resized(frame, size)).transpose(2, 0, 1).copy()


def as_floats(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Map [0, 255] to [0, 1]."""
    return image.astype(np.float32) / np.float32(255)


def rotate_on_black(image: NDArray[np.uint8], degrees: float) -> NDArray[np.uint8]:
    """Rotate (H, W, 3) counter-clockwise about the centre; uncovered corners turn black."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    turned = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR)
    return turned.astype(np.uint8, copy=False)


def _resized(frame: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    resized = cv2.resize(frame, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(resized[:, :, ::-1]).astype(np.uint8, copy=False)


class PlainFrames:
    """The normal images of a task, decoded once, drawn with replacement and sometimes turned."""

    def __init__(self, task: Task, size: tuple[int, int], turned: float) -> None:
        """Decode and resize.

        Args:
            task: Its ``images`` are read.
            size: Height and width.
            turned: Share of the draws that are rotated, by up to 90 degrees either way.

        Raises:
            DataError: If there is no image or one cannot be read.
        """
        if not task.images:
            raise DataError(f"{task.category}: no normal images to train on.")
        self._images = [_resized(read_image(path), size) for path in task.images]
        self._turned = turned

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._images)

    def pick(self, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Draw an image, uint8 (H, W, 3) BGR."""
        image = self._images[int(rng.integers(len(self._images)))]
        turn = rng.uniform(-90.0, 90.0)
        return rotate_on_black(image, turn) if rng.random() < self._turned else image
