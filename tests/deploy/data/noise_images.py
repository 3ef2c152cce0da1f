"""Folders of images of noise."""

from pathlib import Path

import cv2
import numpy as np


def write_noise(
    folder: Path, count: int, *, same: bool = False, size: tuple[int, int] = (40, 50)
) -> Path:
    """Write images whose pixels lie in 90..109, and return the folder."""
    folder.mkdir(exist_ok=True)
    for i in range(count):
        noise = np.random.default_rng(0 if same else i).integers(90, 110, (*size, 3))
        cv2.imwrite(str(folder / f"{i}.png"), noise.astype(np.uint8))
    return folder
