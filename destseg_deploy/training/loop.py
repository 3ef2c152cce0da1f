"""The training loop: losses, steps and optimisers of both phases, and the loop over them.

It waits for the device only every ten steps. Losses: paper, section 3; rates: supplement, section
A. ``LeanSteps`` computes only what a gradient needs; ``literal.LiteralSteps`` computes all that the
reference computes. Both give the same gradients (``tests/deploy/training/test_steps.py``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import SGD

from destseg_deploy.errors import TrainingError
from destseg_deploy.models.destseg import DeSTSeg, cosine_distances, upsample
from destseg_deploy.models.inference import imagenet_statistics, normalize_pixels
from destseg_deploy.training.batches import Batch
from destseg_deploy.training.checkpointing import (
    RunState,
    capture,
    check_networks,
    restore_momentum,
)
from destseg_deploy.training.logs import TensorBoardLog
from destseg_deploy.training.precision import Precision, computing_with, tuned_convolutions
from destseg_deploy.training.recipe import Phase, Recipe, phases, rate_factor

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


def student_loss(teacher: list[Tensor], student: list[Tensor]) -> Tensor:
    """Return the loss of phase one: 1 - cos, averaged over pixels, summed over levels and images.

    The sum over the batch ties the learning rate to the batch size, as in the reference.

    Args:
        teacher: Unit-length features of the clean images, three levels of (N, C, h, w).
        student: Those of the corrupted images.
    """
    distances = cosine_distances(teacher, student)
    return torch.stack([d.mean(dim=(1, 2, 3)).sum() for d in distances]).sum()


def segmentation_loss(logits: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """Return the loss of phase two: focal loss plus L1, both averaged over all pixels.

    It is computed from logits, so that a pixel that is wrong by far keeps its gradient. From
    probabilities, the logarithm must be cut somewhere (the reference cuts it at -100), and float32
    holds no probability between 1 - 6e-8 and 1.

    Args:
        logits: float (N, 1, h, w); their sigmoid is the segmentation.
        mask: float (N, 1, H, W) of 0 and 1; resized to (h, w) and cut at one half.
        gamma: Exponent of the focal loss. There are no class weights.
    """
    anomalous = upsample(mask, logits.shape[-2:]) >= 0.5
    right = torch.where(anomalous, logits, -logits)  # log-odds of the right answer
    wrong = torch.sigmoid(-right)  # the distance from the right answer: 1 - p, and |p - target|
    focal = -(wrong**gamma) * functional.logsigmoid(right)
    return focal.mean() + wrong.mean()


class Steps(Protocol):
    """How a phase prepares the networks and computes a loss."""

    order: torch.memory_format
    """Memory order of weights and images."""

    def enter(self, net: DeSTSeg, phase: str) -> None:
        """Set modes and gradients of the networks for ``student`` or ``segmentation``."""

    def loss(self, net: DeSTSeg, phase: str, image: Tensor, clean: Tensor, mask: Tensor) -> Tensor:
        """Return the loss of a batch.

        Args:
            net: The networks.
            phase: ``student`` or ``segmentation``.
            image: The corrupted images, float (N, 3, H, W), ImageNet-normalised.
            clean: The same images without the anomaly.
            mask: float (N, 1, H, W) of 0 and 1: the anomaly.
        """


class LeanSteps:
    """Computes only what contributes a gradient.

    Phase one runs no segmentation network and the teacher once. Phase two computes no gradient
    through the student.
    """

    order = torch.channels_last
    """Faster in convolutions."""

    def __init__(self, gamma: float) -> None:
        """Take the exponent of the focal loss."""
        self.gamma = gamma

    def enter(self, net: DeSTSeg, phase: str) -> None:
        """Train one network; the other one keeps its weights and BatchNorm statistics."""
        student = phase == "student"
        net.student_net.train(student).requires_grad_(student)
        net.segmentation_net.train(not student).requires_grad_(not student)

    def loss(self, net: DeSTSeg, phase: str, image: Tensor, clean: Tensor, mask: Tensor) -> Tensor:
        """Return the loss of a batch; see ``Steps``."""
        if phase == "student":
            return student_loss(*net.features(image, clean))
        with torch.no_grad():
            teacher, student = net.features(image)
        return segmentation_loss(net.segment(teacher, student, logits=True), mask, self.gamma)


def make_optimizer(net: DeSTSeg, recipe: Recipe, phase: Phase) -> SGD:
    """Return the optimiser of a phase's network, at the recipe's rates (supplement, section A)."""
    sgd = partial(SGD, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    if phase.name == "student":
        return sgd(net.student_net.parameters(), recipe.student_lr)
    groups = [
        {"params": net.segmentation_net.res.parameters(), "lr": recipe.res_lr},
        {"params": net.segmentation_net.head.parameters(), "lr": recipe.head_lr},
    ]
    return sgd(groups, recipe.head_lr)


class Loop:
    """Trains a model through both phases, from any step."""

    def __init__(
        self,
        model: DeSTSeg,
        recipe: Recipe,
        precision: Precision,
        steps: Callable[[float], Steps] = LeanSteps,
    ) -> None:
        """Move the model to the device of the precision.

        Args:
            model: Trained in place.
            recipe: The schedule.
            precision: Precision and device.
            steps: How to do each step; takes the exponent of the focal loss.
        """
        self.model = model.to(precision.device)
        self.recipe = recipe
        self.precision = precision
        self.steps = steps(recipe.gamma)
        self.order = self.steps.order
        model.to(memory_format=self.order)  # type: ignore[call-overload]  # torch declares no overload with memory_format
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
