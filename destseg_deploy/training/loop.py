"""The loop over both phases. It waits for the device once in ten steps, to read the losses."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import SGD

from destseg_deploy.data.synthesis_torch import Batch
from destseg_deploy.errors import TrainingError
from destseg_deploy.models.destseg import DeSTSeg
from destseg_deploy.models.inference import imagenet_statistics, normalize_pixels
from destseg_deploy.recipe import Recipe
from destseg_deploy.training.journal import Journal
from destseg_deploy.training.place import Precision, tuned_convolutions
from destseg_deploy.training.resume import RunState, capture, restore_momentum
from destseg_deploy.training.schedule import Phase, make_optimizer, phases, rate_factor
from destseg_deploy.training.steps import LeanSteps, LiteralSteps, Steps

LOG_EVERY = 10
"""Steps between reads of the loss: each read waits for the device."""

Source = Callable[[int, int], Iterator[Batch]]
"""Gives the batches from one step to before another."""


@dataclass(frozen=True)
class Progress:
    """What a training run reports each step.

    Attributes:
        phase: ``student`` or ``segmentation``.
        done: Steps done, of both phases together.
        total: Steps of both phases.
        loss: The latest loss that was read; summed over the batch in phase one, as the paper's.
    """

    phase: str
    done: int
    total: int
    loss: float


class Loop:
    """Trains a model through both phases, from any step."""

    def __init__(
        self,
        model: DeSTSeg,
        recipe: Recipe,
        device: torch.device,
        precision: str,
        *,
        literal: bool = False,
        report: Callable[[Progress], None] = lambda progress: None,
        journal: Journal | None = None,
        save: Callable[[RunState], None] | None = None,
        save_every: float = 60.0,
    ) -> None:
        """Put the model on the device; lean steps run in channels-last order, the fast one.

        Args:
            model: Trained in place.
            recipe: The schedule.
            device: Where to train.
            precision: ``fp32``, ``bf16`` or ``fp16``.
            literal: Do each step as the reference does; see ``steps.LiteralSteps``.
            report: Called after each step.
            journal: Takes losses and pictures.
            save: Takes the state about every ``save_every`` seconds.
            save_every: In seconds.
        """
        self.model = model.to(device)
        self._statistics = imagenet_statistics(device)
        self.recipe = recipe
        self.device = device
        self.precision = Precision(precision, device)
        self.steps: Steps = (LiteralSteps if literal else LeanSteps)(recipe.gamma)
        self.order = torch.contiguous_format if literal else torch.channels_last
        model.to(memory_format=self.order)  # type: ignore[call-overload]  # not in its stub
        self.report = report
        self.journal = journal
        self.save = save
        self.save_every = save_every

    def fit(self, source: Source, state: RunState) -> NDArray[np.float32]:
        """Train from the state on; return the loss of every step.

        Args:
            source: The batches.
            state: Where to begin; it is kept up to date.

        Raises:
            TrainingError: If a loss is not finite.
        """
        if state.weights:
            self.model.load_state_dict(state.weights)
        if state.scaler:
            self.precision.scaler.load_state_dict(state.scaler)
        with tuned_convolutions(self.device):
            for phase in phases(self.recipe):
                if state.step < phase.stop:
                    self._phase(phase, source, state)
        self.model.eval()
        return state.losses

    def _phase(self, phase: Phase, source: Source, state: RunState) -> None:
        optimizer = make_optimizer(self.model, self.recipe, phase)
        if state.step > phase.start:
            restore_momentum(state, optimizer)
        state.weights, state.momentum = {}, []
        rates = [group["lr"] for group in optimizer.param_groups]
        self.steps.enter(self.model, phase.name)
        loss = float(state.losses[state.step - 1]) if state.step > phase.start else math.nan
        saved, unread = time.monotonic(), list[Tensor]()
        for step, batch in enumerate(source(state.step, phase.stop), state.step):
            factor = rate_factor(self.recipe, phase, step)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            unread.append(self.step(phase, optimizer, batch))
            last = step + 1 == phase.stop
            if (step - phase.start) % LOG_EVERY == 0 or last:
                loss = _read(phase, unread, state)
                self._write_journal(phase, state, optimizer, batch, last)
                if self.save is not None and (last or time.monotonic() - saved > self.save_every):
                    self.save(capture(state, self.model, optimizer, self.precision, ended=last))
                    saved = time.monotonic()
            self.report(Progress(phase.name, step + 1, len(state.losses), loss))

    def step(self, phase: Phase, optimizer: SGD, batch: Batch) -> Tensor:
        """Do one step of a phase that ``steps.enter`` has prepared.

        Args:
            phase: Which network learns.
            optimizer: That network's.
            batch: Corrupted images, clean images and masks.

        Returns:
            The loss, a scalar tensor that is not waited for.
        """
        image, clean, mask = (part.to(self.device, non_blocking=True) for part in batch)
        image, clean = self._pixels(image), self._pixels(clean)
        with self.precision.autocast():
            loss = self.steps.loss(self.model, phase.name, image, clean, mask)
        optimizer.zero_grad()
        scaler = self.precision.scaler
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    def _pixels(self, images: Tensor) -> Tensor:
        pixels = normalize_pixels(images, self._statistics)
        return pixels.contiguous(memory_format=self.order)

    def _write_journal(
        self, phase: Phase, state: RunState, optimizer: SGD, batch: Batch, last: bool
    ) -> None:
        if self.journal is None:
            return
        rates = [group["lr"] for group in optimizer.param_groups]
        self.journal.write_steps(phase, state, rates)
        if self.journal.wants_pictures(state.step, last):
            self.journal.write_pictures(state.step, batch, self._segmentation(batch[0]))

    @torch.no_grad()
    def _segmentation(self, image: Tensor) -> Tensor:
        """Return the maps of a batch as they are now, (N, 1, h, w); nothing is learnt from it."""
        parts = (self.model.student_net, self.model.segmentation_net)
        modes = [part.training for part in parts]
        self.model.eval()
        with self.precision.autocast():
            features = self.model.features(self._pixels(image.to(self.device)))
            segmentation = self.model.segment(*features)
        for part, training in zip(parts, modes, strict=True):
            part.train(training)
        return segmentation


def _read(phase: Phase, unread: list[Tensor], state: RunState) -> float:
    """Wait for the losses of the last steps and note them; return the latest.

    Raises:
        TrainingError: If one is not finite.
    """
    values = torch.stack(unread).float().cpu().numpy()
    unread.clear()
    state.losses[state.step : state.step + len(values)] = values
    for i in np.flatnonzero(~np.isfinite(values)):
        step = state.step - phase.start + int(i) + 1
        raise TrainingError(
            f"the {phase.name} loss is {values[i]} at step {step}. No checkpoint was written. "
            "Train again with --restart, in fp32 (--precision fp32) or at lower rates; check the "
            "images for constant ones."
        )
    state.step += len(values)
    return float(values[-1])
