"""The files of a run: what earlier calls of it left, and what it writes beside its checkpoint.

Earlier calls left a finished checkpoint, or the state to continue from.

Every sample depends on its number alone. So the weights, the optimiser's momentum, the state of the
loss scaling and the step are all that a run needs to continue, and a continued run ends with the
same bits as an uninterrupted one.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from torch.optim import Optimizer

from destseg_deploy.errors import DestsegError, SpecError, TrainingError
from destseg_deploy.files import refuse_others, replacing, reserve
from destseg_deploy.memory import refuse_shortage
from destseg_deploy.models.destseg import DeSTSeg
from destseg_deploy.spec import ModelSpec
from destseg_deploy.training.precision import Precision
from destseg_deploy.training.recipe import Recipe, phases

Identity = dict[str, Any]
"""All that decides what a run computes, as plain JSON values."""

HEADER = ("step", "phase", "loss")
"""Columns of the table of losses."""


@dataclass(eq=False)
class RunState:
    """How far a run is.

    Attributes:
        step: Steps done, of both phases together.
        losses: float32 (steps of the run,): the loss of each step done, NaN for the others.
        weights: State dict of the networks; empty at the beginning.
        momentum: The optimiser's buffers in the phase of ``step``, one for each parameter. Empty at
            the beginning of a phase, and in fp16 while every step has overflowed.
        scaler: State of the loss scaling of fp16; empty in other precisions.
        seconds: Time of training so far.
        threads: PyTorch's CPU threads. Sums are split among them, so another number rounds
            otherwise; a continued run therefore takes the number it began with.
    """

    step: int
    losses: NDArray[np.float32]
    weights: dict[str, Tensor] = field(default_factory=dict)
    momentum: list[Tensor] = field(default_factory=list)
    scaler: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    threads: int = field(default_factory=torch.get_num_threads)

    @classmethod
    def fresh(cls, steps: int) -> RunState:
        """Return the state before the first of ``steps`` steps."""
        return cls(0, np.full(steps, np.nan, np.float32))


def capture(
    state: RunState, net: DeSTSeg, optimizer: Optimizer, precision: Precision, *, ended: bool
) -> RunState:
    """Return a state that is complete, ready to be saved. Its tensors are those in training.

    Args:
        state: The step, the losses and the time so far.
        net: The networks.
        optimizer: The optimiser of the phase.
        precision: Holds the loss scaling.
        ended: Whether the phase is over. Its momentum is then not kept.
    """
    parameters = [] if ended else _parameters(optimizer)
    buffers = [optimizer.state.get(p, {}).get("momentum_buffer") for p in parameters]
    momentum = [buffer for buffer in buffers if buffer is not None]
    scaler = precision.scaler.state_dict()
    weights = dict(net.state_dict())
    return replace(state, weights=weights, momentum=momentum, scaler=scaler)


def restore_momentum(state: RunState, optimizer: Optimizer) -> None:
    """Give a new optimiser the momentum of the state."""
    if state.momentum:
        shapes = [buffer.shape for buffer in state.momentum]
        if shapes != [p.shape for p in _parameters(optimizer)]:
            raise TrainingError(_MISFIT.format("the momenta"))
        for p, buffer in zip(_parameters(optimizer), state.momentum, strict=True):
            # empty_like keeps the parameter's memory order (channels-last). With another order the
            # update would run through the elements in another order and could round differently.
            kept = torch.empty_like(p, requires_grad=False)
            optimizer.state[p]["momentum_buffer"] = kept.copy_(buffer)


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def state_path(checkpoint: Path) -> Path:
    """Return where the state of an unfinished run is saved."""
    return checkpoint.with_suffix(".resume")


class RunFiles:
    """The checkpoint that a run makes, and its saved state ``<checkpoint>.resume`` beside it."""

    def __init__(self, checkpoint: Path, identity: Identity) -> None:
        """Name the files; nothing is read or written.

        Args:
            checkpoint: The checkpoint that the run makes.
            identity: What the run computes. A state of another identity is refused.
        """
        self.checkpoint = checkpoint
        self.state = state_path(checkpoint)
        self.digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self._identity = identity

    def finished(self) -> ModelSpec | None:
        """Return the spec of a complete checkpoint of the same identity, or None.

        The state of a finished run that was killed at its very end is deleted. The state of a run
        with other options stays, because its user may continue it.
        """
        try:
            spec = ModelSpec.read(self.checkpoint)
            spec.check_artifact(self.checkpoint)
        except DestsegError:
            return None
        if spec.training is None or spec.training.identity != self.digest:
            return None
        with suppress(TrainingError):  # of other options, or damaged
            if self.read_state() is not None:
                self.remove_state()
        return spec

    def replaced(self, source: Path, *, restart: bool) -> str:
        """Return what a finished checkpoint of other options loses; empty if nothing.

        Args:
            source: The data that this run is trained on.
            restart: Allow to replace the checkpoint of another product.

        Raises:
            TrainingError: If it was trained on another folder.
        """
        try:
            old = ModelSpec.read(self.checkpoint)
        except SpecError:
            return ""
        before = old.training.data if old.training else ""
        if before and Path(before).resolve() != source.resolve() and not restart:
            raise TrainingError(
                f"{self.checkpoint}: trained on {before}, and a training on {source} would replace "
                "it. Choose another --output, or pass --restart to replace it."
            )
        if old.threshold is None:
            return ""
        return (
            f"{self.checkpoint}: will be replaced, with its threshold {old.threshold.score:.6f} "
            f"({old.threshold.rule})"
        )

    def write_state(self, state: RunState) -> None:
        """Save the state. A kill at any moment leaves either the old or the new file, complete.

        Raises:
            TrainingError: If it cannot be written. The state of before is then as it was.
        """
        tensors = {f"net.{name}": tensor for name, tensor in state.weights.items()}
        # Zero-padded numbers, so that sorting the names gives the parameters' order.
        tensors |= {f"momentum.{i:04d}": tensor for i, tensor in enumerate(state.momentum)}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        tensors["losses"] = torch.from_numpy(state.losses)
        notes = {"identity": self._identity, "step": state.step, "scaler": state.scaler}
        notes |= {"seconds": state.seconds, "threads": state.threads}
        metadata = {name: json.dumps(value) for name, value in notes.items()}
        metadata["digest"] = _digest(metadata, tensors)
        try:
            with replacing(self.state) as temporary:
                # save_file would leave temporary files of its own when killed.
                temporary.write_bytes(save(tensors, metadata))
        except OSError as error:
            raise TrainingError(
                f"{self.state}: the state after step {state.step} cannot be saved "
                f"({error.strerror or error}). What was saved before is intact. Make room, or make "
                "the folder writable, and repeat the command."
            ) from error

    def reserve(self, net: DeSTSeg) -> None:
        """Make sure that the folder takes all that the run writes, before it trains for hours.

        Raises:
            OutputError: If it cannot be written or lacks room.
        """
        weights = sum(t.numel() * t.element_size() for t in net.state_dict().values())
        momentum = sum(p.numel() * p.element_size() for p in net.parameters())
        there = self.state.stat().st_size if self.state.is_file() else 0
        # A new state is written beside the old one.
        size = max(2 * (weights + momentum) - there, weights)
        reserve(self.state.parent, size, "the states and the checkpoint of the training")

    def read_state(self) -> RunState | None:
        """Return the saved state; None when there is no file.

        Raises:
            TrainingError: If the file is damaged, or belongs to a run with other options.
        """
        if not self.state.exists():
            return None
        try:
            then, state = _load(self.state)
        except Exception as error:  # damaged bytes can raise any exception in a parser
            refuse_shortage(error, str(self.state))
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise TrainingError(
                f"{self.state}: the state of an interrupted run cannot be read ({reason}). Pass "
                "--restart to train from the beginning."
            ) from error
        if other := _difference(then, self._identity):
            raise TrainingError(
                f"{self.state}: an interrupted run with other options is there ({other}). Repeat "
                "those to continue it, or pass --restart to train from the beginning."
            )
        return state

    def remove_state(self) -> None:
        """Delete the state, and the temporary file of an interrupted write by older versions."""
        self.state.unlink(missing_ok=True)
        self.state.with_name(f".{self.state.name}").unlink(missing_ok=True)


def _load(path: Path) -> tuple[Identity, RunState]:
    with safe_open(path, framework="pt") as file:
        texts = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    if texts.pop("digest") != _digest(texts, tensors):
        raise ValueError("its content is not what was saved")
    notes = {name: json.loads(text) for name, text in texts.items()}
    state = RunState(
        step=notes["step"],
        losses=tensors.pop("losses").numpy(),
        weights={n.removeprefix("net."): t for n, t in tensors.items() if n.startswith("net.")},
        momentum=[tensors[n] for n in sorted(tensors) if n.startswith("momentum.")],
        scaler=notes["scaler"],
        seconds=notes["seconds"],
        threads=notes["threads"],
    )
    _check_progress(state)
    return notes["identity"], state


def _digest(notes: dict[str, str], tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 over all that a state holds, by its names."""
    digest = hashlib.sha256(json.dumps(notes, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _check_progress(state: RunState) -> None:
    """Refuse a state whose parts contradict each other.

    Raises:
        ValueError: With what does not fit.
    """
    steps = len(state.losses)
    if state.losses.dtype != np.float32 or state.losses.ndim != 1:
        raise ValueError("its losses are no float32 vector")
    if type(state.step) is not int or not 0 <= state.step <= steps:
        raise ValueError(f"its step is {state.step!r}, expected 0 to {steps}")
    if state.step > 0 and not state.weights:
        raise ValueError("it has no weights")
    if not np.isfinite(state.losses[: state.step]).all():
        raise ValueError("it lacks losses of steps that are done")
    if type(state.threads) is not int or state.threads < 1:
        raise ValueError(f"its threads are {state.threads!r}, expected 1 or more")
    if not (isinstance(state.seconds, float | int) and 0 <= state.seconds < math.inf):
        raise ValueError(f"its seconds are {state.seconds!r}, expected a duration")


def check_networks(state: RunState, net: DeSTSeg, steps: int, precision: Precision) -> None:
    """Make sure that a state belongs to these networks and this schedule.

    Raises:
        TrainingError: If not.
    """
    own = {name: (t.shape, t.dtype) for name, t in net.state_dict().items()}
    kept = {name: (t.shape, t.dtype) for name, t in state.weights.items()}
    scaler = precision.scaler.state_dict()
    wrong = {
        "the number of steps": len(state.losses) != steps,
        "the weights": kept != own and bool(kept),
        "the scale of fp16": state.scaler.keys() != scaler.keys() and bool(state.scaler),
    }
    for name, differs in wrong.items():
        if differs:
            raise TrainingError(_MISFIT.format(name))


_MISFIT = (
    "the state of the interrupted run does not fit: {} differ from what this run trains. Pass "
    "--restart to train from the beginning."
)


def _difference(then: Identity, now: Identity) -> str:
    """Return the first entry that differs, as text for an error; empty when none differs."""
    # The recipe is laid open: "seed 0, now 1" tells the user more than two whole recipes. It comes
    # first, because it also decides others: another size gives other images.
    a, b = ({**one.get("recipe", {}), **one, "recipe": None} for one in (then, now))
    for name in {**a, **b}:
        if a.get(name) != b.get(name):
            return f"{name} {a.get(name)!s:.40}, now {b.get(name)!s:.40}"
    return ""


def check_losses(checkpoint: Path) -> None:
    """Refuse to replace a table that ``write_losses`` did not write.

    Raises:
        OutputError: If there is one.
    """
    refuse_others([_losses_of(checkpoint)], _is_losses)


def _losses_of(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{checkpoint.stem}-losses.csv")


def _is_losses(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.readline(100).rstrip() == ",".join(HEADER).encode()
    except OSError:
        return False


def write_losses(checkpoint: Path, recipe: Recipe, losses: NDArray[np.float32]) -> None:
    """Write the loss of every step to ``<name>-losses.csv`` beside the checkpoint.

    Columns: ``step`` from 1 on, ``phase``, ``loss``.
    """
    with (
        replacing(_losses_of(checkpoint)) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for phase in phases(recipe):
            for step in range(phase.start, phase.stop):
                writer.writerow((step + 1, phase.name, f"{losses[step]:.6g}"))
