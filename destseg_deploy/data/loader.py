"""Training samples as torch tensors: normal images in, corrupted and clean pairs out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from destseg_deploy.data.images import is_image, read_image
from destseg_deploy.data.resize import resize_image
from destseg_deploy.data.synthesis import synthesize
from destseg_deploy.data.textures import procedural_texture
from destseg_deploy.errors import DataError

Batch = tuple[Tensor, Tensor, Tensor]
"""Corrupted and clean images, float32 (N, 3, H, W) in [0, 255], and masks, float32 (N, 1, H, W)."""


def list_textures(folder: Path) -> list[Path]:
    """Return the images of a texture collection, at any depth, sorted (``dtd/images/*/*.jpg``).

    Raises:
        DataError: If the folder does not exist or holds no image.
    """
    textures = sorted(path for path in folder.rglob("*") if is_image(path))
    if not textures:
        raise DataError(
            f"{folder}: no texture images. Expected a folder such as dtd/images; leave the option "
            "out to use the built-in procedural textures."
        )
    return textures


class AnomalyDataset(Dataset[tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]]):
    """An endless supply of synthetic anomalies, addressed by sample number.

    Sample ``i`` depends on the seed and ``i`` alone, so a run is the same whatever the number of
    workers. Normal images are shuffled anew each time all have been used once; fewer images than
    a batch are fine.
    """

    def __init__(
        self,
        images: Sequence[Path],
        textures: Sequence[Path] | None,
        size: tuple[int, int],
        *,
        rotation: str,
        seed: int,
        samples: int,
    ) -> None:
        """Decode and resize the images once.

        Args:
            images: Normal images.
            textures: Texture files, or None for procedural ones.
            size: Height and width of the samples.
            rotation: One of ``synthesis.ROTATIONS``.
            seed: Seed of every random choice.
            samples: How many samples the run draws.
        """
        self.images = [resize_image(read_image(path), size) for path in images]
        self.textures = textures
        self.size = size
        self.rotation = rotation
        self.seed = seed
        self.samples = samples

    def __len__(self) -> int:
        """Return the number of samples of the run."""
        return self.samples

    def __getitem__(
        self, index: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Return corrupted and clean image (3, H, W) and mask (1, H, W) of a sample."""
        rng = np.random.default_rng([self.seed, 1, index])
        epoch, position = divmod(index, len(self.images))
        image = self.images[self._shuffled(epoch)[position]]
        sample = synthesize(image, self._texture(rng), rng, self.rotation)
        return (
            np.ascontiguousarray(sample.image.transpose(2, 0, 1)),
            np.ascontiguousarray(sample.clean.transpose(2, 0, 1)),
            sample.mask[None].astype(np.float32),
        )

    def _texture(self, rng: np.random.Generator) -> NDArray[np.uint8]:
        if self.textures is None:
            texture = procedural_texture(rng, max(self.size))
        else:
            texture = read_image(self.textures[int(rng.integers(len(self.textures)))])
        return resize_image(texture, self.size)

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.images))


def batches(dataset: AnomalyDataset, batch_size: int, *, workers: int = 0) -> Iterator[Batch]:
    """Yield the dataset's samples in order, ``batch_size`` at a time.

    Args:
        dataset: The samples.
        batch_size: Images per batch.
        workers: Processes that prepare batches ahead; 0 prepares them in this one.
    """
    loader = DataLoader(
        dataset, batch_size, num_workers=workers, pin_memory=torch.cuda.is_available()
    )
    yield from loader
