"""Makes the batches of coming steps on threads, so that a GPU need not wait for the host."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

Made = TypeVar("Made")
DEPTH = 4


class Ahead(Generic[Made]):
    """Batches by step; while one is used, the next four are made.

    On a CPU each is made when it is asked for: the threads would only take turns with the step.
    """

    def __init__(self, make: Callable[[int], Made], steps: int, device: torch.device) -> None:
        """Start nothing yet.

        Args:
            make: Makes the batch of a step; called on several threads.
            steps: None is made from here on.
            device: Where the steps run.
        """
        self._make = make
        self._steps = steps
        self._depth = 0 if device.type == "cpu" else DEPTH
        self._pool: ThreadPoolExecutor | None = None
        self._coming: dict[int, Future[Made]] = {}

    def __call__(self, step: int) -> Made:
        """Return the batch of a step; steps in order find it made.

        Errors are those of making it.
        """
        if self._depth == 0:
            return self._make(step)
        pool = self._pool = self._pool or ThreadPoolExecutor(self._depth)
        for i in range(step, max(step + 1, min(step + 1 + self._depth, self._steps))):
            if i not in self._coming:
                self._coming[i] = pool.submit(self._make, i)
        return self._coming.pop(step).result()

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pool, self._coming = None, {}
