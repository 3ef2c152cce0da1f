"""Trains compared systems: a stage that descends a loss, batches made in advance, whole schedules.

``Descent`` is the stage that every trained system here is made of; what does not descend a loss
(PatchCore's memory bank, statistics) makes its ``Stage`` directly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from destseg_bench.systems.system import Report, Stage, System

Batch = TypeVar("Batch")

PREFETCHED = 4
"""Batches made in advance on a GPU; so many threads make them."""


def fit(system: System, report: Report = lambda done, total, stage: None) -> dict[str, list[float]]:
    """Train a system to the end of its schedule.

    Args:
        system: Changed in place.
        report: Called with the steps done, the steps of all stages, and the stage's name.

    Returns:
        Stage -> loss of every step.
    """
    stages = system.stages()
    total, done = sum(stage.steps for stage in stages), 0
    losses: dict[str, list[float]] = {}
    for stage in stages:
        stage.begin()
        kept = []
        for i in range(stage.steps):
            kept.append(stage.step(i))
            done += 1
            report(done, total, stage.name)
        stage.end()
        # Reading a loss waits for the device: once per stage instead of once per step.
        losses[stage.name] = [float(loss) for loss in kept]
    return losses


@dataclass(frozen=True)
class Descent(Generic[Batch]):
    """A stage that trains modules by steps of an optimizer down a loss.

    Attributes:
        name: The stage's name.
        steps: Number of steps.
        images: Images of a step.
        modules: In train mode during the steps, in eval mode afterwards.
        optimizer: Of the parameters that learn.
        batch: Makes the batch of step ``i``, from ``i`` alone.
        loss: Maps a batch to a scalar loss.
        rate: Learning rate of step ``i``; None to keep the optimizer's.
    """

    name: str
    steps: int
    images: int
    modules: tuple[torch.nn.Module, ...]
    optimizer: torch.optim.Optimizer
    batch: Callable[[int], Batch]
    loss: Callable[[Batch], Tensor]
    rate: Callable[[int], float] | None = None

    def stage(
        self, prefetch: torch.device | None = None, begin: Callable[[], None] = lambda: None
    ) -> Stage:
        """Return the stage.

        Args:
            prefetch: The device of the training, to make batches in advance for it; None where
                a batch costs nothing to make.
            begin: Called before the first step.
        """
        batches = Prefetched(self.batch, self.steps, prefetch or torch.device("cpu"))

        def step(number: int) -> Tensor:
            self._train(True)
            if self.rate is not None:
                self.optimizer.param_groups[0]["lr"] = self.rate(number)
            loss = self.loss(batches(number))
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            self.optimizer.step()
            return loss.detach()

        def end() -> None:
            batches.close()
            self._train(False)

        return Stage(self.name, self.steps, self.images, step, begin, end)

    def _train(self, on: bool) -> None:
        for module in self.modules:
            module.train(on)


def parameters(modules: Sequence[torch.nn.Module]) -> list[torch.nn.Parameter]:
    """Return the parameters of several modules, for one optimizer."""
    return [parameter for module in modules for parameter in module.parameters()]


class Prefetched(Generic[Batch]):
    """Batches by step; while one is used, threads make the next four.

    On a CPU each batch is made when it is asked for: threads would only compete with the step.
    """

    def __init__(self, make: Callable[[int], Batch], steps: int, device: torch.device) -> None:
        """Start no thread yet.

        Args:
            make: Makes the batch of a step; called on several threads.
            steps: Number of steps; later batches are not made in advance.
            device: Where the steps run.
        """
        self._make = make
        self._steps = steps
        self._depth = 0 if device.type == "cpu" else PREFETCHED
        self._pool: ThreadPoolExecutor | None = None
        self._coming: dict[int, Future[Batch]] = {}

    def __call__(self, step: int) -> Batch:
        """Return the batch of a step; it is ready if steps come in order.

        Errors are those of making the batch.
        """
        if self._depth == 0:
            return self._make(step)
        pool = self._pool = self._pool or ThreadPoolExecutor(self._depth)
        # A timed stage may repeat its last step, whose batch was taken before: make it again.
        for i in range(step, max(step + 1, min(step + 1 + self._depth, self._steps))):
            if i not in self._coming:
                self._coming[i] = pool.submit(self._make, i)
        return self._coming.pop(step).result()

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pool, self._coming = None, {}
