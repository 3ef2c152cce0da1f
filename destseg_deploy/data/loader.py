"""Training samples an image at a time, as the reference prepares them: worker processes, NumPy.

data/feed.py gives the same samples, made on the training device; this is what it is held against.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Subset

from destseg_deploy.data.sampler import Sampler
from destseg_deploy.data.synthesis import synthesize
from destseg_deploy.data.synthesis_torch import Batch
from destseg_deploy.data.texture_source import Textures


class AnomalyDataset(Dataset[tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]]):
    """Synthetic anomalies, addressed by sample number."""

    def __init__(
        self, images: NDArray[np.uint8], textures: Textures, sampler: Sampler, samples: int
    ) -> None:
        """Hold what samples are made of.

        Args:
            images: uint8 (M, H, W, 3), normal images.
            textures: Textures of the same size, read anew for each sample.
            sampler: What each sample is made of.
            samples: How many samples the run draws.
        """
        self.images = images
        self.textures = textures
        self.sampler = sampler
        self.samples = samples

    def __len__(self) -> int:
        """Return the number of samples of the run."""
        return self.samples

    def __getitem__(
        self, index: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Return corrupted and clean image (3, H, W) and mask (1, H, W) of a sample."""
        plan = self.sampler.plan(index)
        texture = self.textures.read(plan.texture)
        sample = synthesize(self.images[plan.image], texture, plan.choices)
        return (
            np.ascontiguousarray(sample.image.transpose(2, 0, 1)),
            np.ascontiguousarray(sample.clean.transpose(2, 0, 1)),
            sample.mask[None].astype(np.float32),
        )


def batches(
    dataset: AnomalyDataset,
    batch_size: int,
    start: int = 0,
    stop: int | None = None,
    *,
    workers: int = 0,
) -> Iterator[Batch]:
    """Yield the dataset's samples in order, ``batch_size`` at a time.

    Args:
        dataset: The samples.
        batch_size: Images per batch.
        start: The batch to begin with.
        stop: The batch to end before; None for the last.
        workers: Processes that prepare batches ahead; 0 prepares them in this one.
    """
    end = len(dataset) if stop is None else stop * batch_size
    part = Subset(dataset, range(start * batch_size, end))
    pinned = torch.cuda.is_available()
    yield from DataLoader(part, batch_size, num_workers=workers, pin_memory=pinned)
