"""Batches made on the training device: uint8 images and textures stay there, choices travel."""

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

from destseg_deploy.data.sampler import Sampler
from destseg_deploy.data.synthesis_torch import Batch, Draws, stack_draws, synthesize_batch
from destseg_deploy.data.texture_bank import Fetch, Read, Request, Submit, TextureBank

AHEAD = 4
"""Batches whose textures are being decoded while the device trains."""


@dataclass(frozen=True, eq=False)
class _Order:
    """A batch that has been planned and not been made."""

    images: Tensor
    textures: Request
    draws: Draws


class Feed:
    """The samples of data/loader.py, a batch at a time, without a wait for the device."""

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
            sampler: What each sample is made of.
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
        """Yield batches ``start`` to ``stop - 1``; each depends on its number alone.

        Raises:
            DataError: If a texture cannot be read.
        """
        pool = ThreadPoolExecutor(self.workers) if self.workers else None
        submit = _later if pool is None else partial(_in_pool, pool)
        orders: deque[_Order] = deque()
        try:
            planned = start
            for step in range(start, stop):
                while planned < min(step + AHEAD, stop):
                    orders.append(self._order(planned, submit))
                    planned += 1
                yield self._make(orders.popleft())
        finally:
            if pool is not None:  # what is being decoded is waited for, what is queued is not
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
            chosen = chosen.pin_memory().to(self.device, non_blocking=True)
        textures = self.bank.take(order.textures)
        return synthesize_batch(self.images[chosen], textures, order.draws.to(self.device))


def _later(read: Read, number: int) -> Fetch:
    return partial(read, number)


def _in_pool(pool: ThreadPoolExecutor, read: Read, number: int) -> Fetch:
    return pool.submit(read, number).result
