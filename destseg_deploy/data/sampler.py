"""What each training sample is made of, by its number and the seed alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.data.images import read_image
from destseg_deploy.data.resize import resize_image
from destseg_deploy.data.synthesis import Draw, draw


@dataclass(frozen=True, eq=False)
class Plan:
    """What one sample is made of.

    Attributes:
        image: Number of the normal image.
        texture: Number of the texture.
        choices: The random choices of the synthesis.
    """

    image: int
    texture: int
    choices: Draw


@dataclass(frozen=True)
class Sampler:
    """An endless list of plans.

    Plan ``i`` depends on the seed and ``i`` alone, so a run is the same whatever prepares it and
    wherever it is resumed. Normal images are shuffled anew each time all have been used once; fewer
    images than a batch are fine.

    Attributes:
        images: How many normal images there are.
        textures: How many textures there are.
        rotation: One of ``synthesis.ROTATIONS``.
        seed: Seed of every random choice.
    """

    images: int
    textures: int
    rotation: str
    seed: int

    def plan(self, index: int) -> Plan:
        """Return what sample ``index`` is made of."""
        rng = np.random.default_rng([self.seed, 1, index])
        epoch, position = divmod(index, self.images)
        order = np.random.default_rng([self.seed, 0, epoch]).permutation(self.images)
        texture = int(rng.integers(self.textures))
        return Plan(int(order[position]), texture, draw(rng, self.rotation))


def decode_images(paths: Sequence[Path], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Decode and resize the normal images, once for the whole run; uint8 (M, H, W, 3) RGB.

    Raises:
        DataError: If one cannot be read.
    """
    return np.stack([resize_image(read_image(path), size) for path in paths])
