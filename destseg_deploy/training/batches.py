"""Batches of training samples, made in two ways that give the same samples.

``DeviceLoader`` makes a whole batch on the training device: images and textures stay there as
uint8, and only the random choices travel. ``AnomalyDataset`` and ``reference_batches`` prepare
image by image in worker processes, as the reference does. What a sample consists of is decided by
``Sampler``, from the sample's number and the seed alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from destseg_deploy.data.synthesis import Draw, draw, synthesize
from destseg_deploy.data.textures import Textures
from destseg_deploy.environment import allowed_cores
from destseg_deploy.training.synthesis_torch import Batch, Draws, stack_draws, synthesize_batch
from destseg_deploy.training.texture_bank import Request, Submit, TextureBank

BATCHES_AHEAD = 4
"""Batches whose textures are decoded while the device still trains on earlier ones."""

Arrays = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class SamplePlan:
    """What one sample consists of.

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
    """An endless list of sample plans.

    Plan ``i`` depends only on the seed and ``i``. So a run is the same for any number of workers
    and wherever it is continued. All normal images are used once, in random order, before any is
    used again. There may be fewer images than a batch has samples.

    Attributes:
        images: Number of normal images.
        textures: Number of textures.
        rotation: One of ``synthesis.ROTATIONS``.
        seed: Seed of every random choice.
    """

    images: int
    textures: int
    rotation: str
    seed: int

    def plan(self, index: int) -> SamplePlan:
        """Return the plan of sample ``index``."""
        # The middle number keeps the two streams apart: 0 is the order of images, 1 a sample.
        rng = np.random.default_rng([self.seed, 1, index])
        epoch, position = divmod(index, self.images)
        order = np.random.default_rng([self.seed, 0, epoch]).permutation(self.images)
        texture = int(rng.integers(self.textures))
        return SamplePlan(int(order[position]), texture, draw(rng, self.rotation))


class DeviceLoader:
    """Makes batches on the training device; the host never waits for the device."""

    def __init__(
        self,
        images: NDArray[np.uint8],
        bank: TextureBank,
        sampler: Sampler,
        *,
        batch_size: int,
        workers: int = 2,
    ) -> None:
        """Copy the images to the bank's device.

        Args:
            images: uint8 (M, H, W, 3), normal images.
            bank: Textures of the same size, on the training device.
            sampler: What each sample consists of.
            batch_size: Images per batch.
            workers: Threads that decode textures ahead; 0 decodes them when they are needed.
        """
        self.device = bank.device
        pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        self.images = pixels.to(self.device)
        self.bank = bank
        self.sampler = sampler
        self.batch_size = batch_size
        self.workers = workers

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield batches ``start`` to ``stop - 1``; each depends only on its number.

        Raises:
            DataError: If a texture cannot be read.
        """
        pool = ThreadPoolExecutor(self.workers) if self.workers else None
        # Without a pool the decoding is put off until the batch is made.
        submit: Submit = partial if pool is None else lambda *what: pool.submit(*what).result
        orders: deque[_Order] = deque()
        try:
            planned = start
            for step in range(start, stop):
                while planned < min(step + BATCHES_AHEAD, stop):
                    orders.append(self._order(planned, submit))
                    planned += 1
                yield self._make(orders.popleft())
        finally:
            # Also reached when the caller drops the generator. Textures being decoded are waited
            # for, queued ones are cancelled, and no thread outlives the run.
            if pool is not None:
                pool.shutdown(cancel_futures=True)

    def _order(self, step: int, submit: Submit) -> _Order:
        first = step * self.batch_size
        plans = [self.sampler.plan(first + i) for i in range(self.batch_size)]
        images = torch.tensor([plan.image for plan in plans])
        textures = self.bank.request([plan.texture for plan in plans], submit)
        return _Order(images, textures, stack_draws([plan.choices for plan in plans]))

    def _make(self, order: _Order) -> Batch:
        chosen = order.images
        if self.device.type != "cpu":
            # Only a copy from pinned memory runs without the host waiting for it.
            chosen = chosen.pin_memory().to(self.device, non_blocking=True)
        textures = self.bank.take(order.textures)
        return synthesize_batch(self.images[chosen], textures, order.draws.to(self.device))


@dataclass(frozen=True, eq=False)
class _Order:
    """A batch that is planned and whose textures are being decoded."""

    images: Tensor
    textures: Request
    draws: Draws


class AnomalyDataset(Dataset[Arrays]):
    """Training samples by number, each made in NumPy as the reference makes it."""

    def __init__(
        self, images: NDArray[np.uint8], textures: Textures, sampler: Sampler, samples: int
    ) -> None:
        """Keep what the samples are made of.

        Args:
            images: uint8 (M, H, W, 3), normal images.
            textures: Textures of the same size. They are read anew for each sample.
            sampler: What each sample consists of.
            samples: Number of samples of the run.
        """
        self.images = images
        self.textures = textures
        self.sampler = sampler
        self.samples = samples

    def __len__(self) -> int:
        """Return the number of samples of the run."""
        return self.samples

    def __getitem__(self, index: int) -> Arrays:
        """Return corrupted and clean image, float32 (3, H, W), and mask, float32 (1, H, W)."""
        plan = self.sampler.plan(index)
        texture = self.textures.read(plan.texture)
        sample = synthesize(self.images[plan.image], texture, plan.choices)
        return (
            np.ascontiguousarray(sample.image.transpose(2, 0, 1)),
            np.ascontiguousarray(sample.clean.transpose(2, 0, 1)),
            sample.mask[None].astype(np.float32),
        )


def reference_batches(
    dataset: AnomalyDataset, batch_size: int, start: int, stop: int, *, workers: int = 0
) -> Iterator[Batch]:
    """Yield batches ``start`` to ``stop - 1`` of the dataset.

    Args:
        dataset: The samples.
        batch_size: Images per batch.
        start: Number of the first batch.
        stop: Number of the batch after the last.
        workers: Processes that prepare batches ahead; 0 prepares them in this process.
    """
    part = Subset(dataset, range(start * batch_size, stop * batch_size))
    pinned = torch.cuda.is_available()
    workers = min(workers, len(allowed_cores()))  # more would wait for each other
    yield from DataLoader(part, batch_size, num_workers=workers, pin_memory=pinned)
