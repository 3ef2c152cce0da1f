"""The training loop over both phases. It waits for the device only every ten steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.optim import SGD

from destseg_deploy.errors import TrainingError
from destseg_deploy.models.destseg import DeSTSeg
from destseg_deploy.models.inference import imagenet_statistics, normalize_pixels
from destseg_deploy.training.checkpointing import (
    RunState,
    capture,
    check_networks,
    restore_momentum,
)
from destseg_deploy.training.logs import TensorBoardLog
from destseg_deploy.training.precision import Precision, tuned_convolutions
from destseg_deploy.training.recipe import Phase, Recipe, phases, rate_factor
from destseg_deploy.training.steps import LeanSteps, LiteralSteps, Steps, make_optimizer
from destseg_deploy.training.synthesis_torch import Batch
from destseg_deploy.training.threads import computing_with

READ_EVERY = 10
"""Steps between two reads of the loss. Each read waits for the device."""

Source = Callable[[int, int], Iterator[Batch]]
"""Takes a first step and a stop; yields the batches of the steps from the first to before stop."""


@dataclass(frozen=True)
class StepReport:
    """What a training reports after each step.

    Attributes:
        phase: ``student`` or ``segmentation``.
        done: Steps done, of both phases together.
        total: Steps of both phases.
        loss: The latest loss that was read from the device; NaN while none was read. In the
            student's phase it is the sum over the batch.
    """

    phase: str
    done: int
    total: int
    loss: float


@dataclass(frozen=True)
class Observers:
    """Who is told about a training as it proceeds.

    Attributes:
        report: Called after each step.
        log: TensorBoard's log; None for no log.
        save: Called with the state at the end of each phase, and after a read of the loss when
            ``save_every`` seconds have passed; None to save nothing.
        save_every: Seconds between two saved states.
    """

    report: Callable[[StepReport], None] = lambda report: None
    log: TensorBoardLog | None = None
    save: Callable[[RunState], None] | None = None
    save_every: float = 60.0


SILENT = Observers()


class Loop:
    """Trains a model through both phases, from any step."""

    def __init__(
        self, model: DeSTSeg, recipe: Recipe, precision: Precision, *, literal: bool = False
    ) -> None:
        """Move the model to the device of the precision.

        Args:
            model: Trained in place.
            recipe: The schedule.
            precision: Precision and device.
            literal: Do each step as the reference does; see ``steps.LiteralSteps``.
        """
        self.model = model.to(precision.device)
        self.recipe = recipe
        self.precision = precision
        self.steps: Steps = (LiteralSteps if literal else LeanSteps)(recipe.gamma)
        # Convolutions are faster in channels-last order; the reference uses the default order.
        self.order = torch.contiguous_format if literal else torch.channels_last
        model.to(memory_format=self.order)  # type: ignore[call-overload]  # not in its stub
        self._statistics = imagenet_statistics(precision.device)

    def fit(self, source: Source, state: RunState, observers: Observers = SILENT) -> None:
        """Train from the state to the end; the model is in eval mode afterwards.

        Args:
            source: The batches.
            state: Where to begin. Its step, losses and seconds are kept up to date.
            observers: Who is told.

        Raises:
            TrainingError: If a loss is not finite, or the state belongs to other networks.
        """
        check_networks(state, self.model, self.recipe.steps, self.precision)
        if state.weights:
            self.model.load_state_dict(state.weights)
        if state.scaler:
            self.precision.scaler.load_state_dict(state.scaler)
        with computing_with(state.threads), tuned_convolutions(self.precision.device):
            for phase in phases(self.recipe):
                if state.step < phase.stop:
                    self._phase(phase, source, state, observers)
        self.model.eval()

    def _phase(self, phase: Phase, source: Source, state: RunState, observers: Observers) -> None:
        optimizer = make_optimizer(self.model, self.recipe, phase)
        if state.step > phase.start:
            restore_momentum(state, optimizer)
        # They are in the model and the optimiser now; a second copy would only take memory.
        state.weights, state.momentum = {}, []
        rates = [group["lr"] for group in optimizer.param_groups]
        self.steps.enter(self.model, phase.name)
        loss = float(state.losses[state.step - 1]) if state.step > phase.start else math.nan
        started, saved = time.perf_counter() - state.seconds, time.monotonic()
        unread: list[Tensor] = []
        for step, batch in enumerate(source(state.step, phase.stop), state.step):
            # From the phase's own rates and the step alone, so that a continued run has the rates
            # of an uninterrupted one.
            factor = rate_factor(self.recipe, phase, step)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            unread.append(self.step(phase, optimizer, batch))
            last = step + 1 == phase.stop
            if (step - phase.start) % READ_EVERY == 0 or last:
                loss = _read(phase, unread, state)
                state.seconds = time.perf_counter() - started
                self._log(observers.log, phase, state, optimizer, batch, last)
                # Only after a finite loss was read, so that no state after a NaN is ever saved.
                if observers.save and (last or time.monotonic() - saved > observers.save_every):
                    observers.save(
                        capture(state, self.model, optimizer, self.precision, ended=last)
                    )
                    saved = time.monotonic()
            observers.report(StepReport(phase.name, step + 1, len(state.losses), loss))

    def step(self, phase: Phase, optimizer: SGD, batch: Batch) -> Tensor:
        """Do one step of a phase that ``steps.enter`` has prepared.

        Args:
            phase: The phase.
            optimizer: The optimiser of the phase's network.
            batch: Corrupted images, clean images and masks.

        Returns:
            The loss, a scalar tensor on the device. The step does not wait for it.
        """
        image, clean, mask = (part.to(self.precision.device, non_blocking=True) for part in batch)
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

    def _log(
        self,
        log: TensorBoardLog | None,
        phase: Phase,
        state: RunState,
        optimizer: SGD,
        batch: Batch,
        last: bool,
    ) -> None:
        if log is None:
            return
        log.write_steps(phase, state, [group["lr"] for group in optimizer.param_groups])
        if log.wants_pictures(state.step, last):
            log.write_pictures(state.step, batch, self._segmentation(batch[0]))

    @torch.no_grad()
    def _segmentation(self, image: Tensor) -> Tensor:
        """Return the present segmentation of a batch, (N, 1, h, w), without training on it."""
        parts = (self.model.student_net, self.model.segmentation_net)
        modes = [part.training for part in parts]
        # In train mode this pass would change the BatchNorm statistics.
        self.model.eval()
        with self.precision.autocast():
            features = self.model.features(self._pixels(image.to(self.precision.device)))
            segmentation = self.model.segment(*features)
        for part, training in zip(parts, modes, strict=True):
            part.train(training)
        return segmentation


def _read(phase: Phase, unread: list[Tensor], state: RunState) -> float:
    """Wait for the losses of the last steps and note them in the state; return the latest.

    Raises:
        TrainingError: If one is not finite.
    """
    # One stacked copy: a copy of each loss would wait for the device ten times.
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
