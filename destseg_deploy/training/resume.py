"""The state of an interrupted run: written now and then, continued from, deleted at the end.

Samples depend on their number alone, so weights, the optimiser's momentum and the step are all
there is to keep; a continued run ends with the same bits as one that was never interrupted.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from destseg_deploy.errors import TrainingError
from destseg_deploy.models.destseg import DeSTSeg
from destseg_deploy.training.place import Precision

Identity = dict[str, Any]
"""All that decides what a run computes, as plain JSON values."""


@dataclass
class RunState:
    """How far a run has come.

    Attributes:
        step: Steps done, of both phases together.
        losses: float32 (steps of the run,): the loss of each step done, NaN for the rest.
        weights: State dict of the networks; empty at the beginning.
        momentum: The optimiser's buffers in the phase of ``step``, one for each parameter; empty at
            the beginning of a phase and while it has taken no step (fp16 leaves out overflows).
        scaler: State of the loss scaling of fp16; empty without.
        seconds: How long it has trained.
    """

    step: int
    losses: NDArray[np.float32]
    weights: dict[str, Tensor] = field(default_factory=dict)
    momentum: list[Tensor] = field(default_factory=list)
    scaler: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def resume_path(checkpoint: Path) -> Path:
    """Return where the state of the run that makes a checkpoint is kept."""
    return checkpoint.with_suffix(".resume")


def capture(
    state: RunState, net: DeSTSeg, optimizer: Optimizer, precision: Precision, *, ended: bool
) -> RunState:
    """Return the state with all that is needed to continue; its tensors are those being trained.

    Args:
        state: The step and the losses so far.
        net: The networks.
        optimizer: Of the phase.
        precision: Holds the loss scaling.
        ended: Whether the phase is over; its momentum is then of no more use.
    """
    parameters = [] if ended else [p for group in optimizer.param_groups for p in group["params"]]
    buffers = [optimizer.state.get(p, {}).get("momentum_buffer") for p in parameters]
    momentum = [buffer for buffer in buffers if buffer is not None]
    scaler = precision.scaler.state_dict()
    return RunState(state.step, state.losses, dict(net.state_dict()), momentum, scaler)


def restore_momentum(state: RunState, optimizer: Optimizer) -> None:
    """Give a new optimiser the momentum of the state."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if state.momentum:
        for p, buffer in zip(parameters, state.momentum, strict=True):
            kept = torch.empty_like(p, requires_grad=False)  # in the parameter's memory order
            optimizer.state[p]["momentum_buffer"] = kept.copy_(buffer)


def write_state(path: Path, identity: Identity, state: RunState) -> None:
    """Write the state; whenever the process is killed, a whole one is there."""
    tensors = {f"net.{name}": tensor for name, tensor in state.weights.items()}
    tensors |= {f"momentum.{i:04d}": tensor for i, tensor in enumerate(state.momentum)}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    tensors["losses"] = torch.from_numpy(state.losses)
    notes = {"identity": identity, "step": state.step, "scaler": state.scaler}
    notes["seconds"] = state.seconds
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")  # one name, so that a killed run leaves no pile
    save_file(tensors, temporary, {name: json.dumps(value) for name, value in notes.items()})
    os.replace(temporary, path)


def read_state(path: Path, identity: Identity) -> RunState | None:
    """Return the state of an interrupted run of the same identity, or None when there is none.

    Raises:
        TrainingError: If the file is damaged, or is of a run with other options.
    """
    if not path.is_file():
        return None
    try:
        then, state = _load(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise TrainingError(
            f"{path}: the state of an interrupted run cannot be read ({reason}). Pass --restart to "
            "train from the beginning."
        ) from error
    other = _difference(then, identity)
    if other:
        raise TrainingError(
            f"{path}: an interrupted run with other options is there ({other}). Repeat those to "
            "continue it, or pass --restart to train from the beginning."
        )
    return state


def _load(path: Path) -> tuple[Identity, RunState]:
    """Return what a file holds."""
    with safe_open(path, framework="pt") as file:
        notes = {name: json.loads(text) for name, text in (file.metadata() or {}).items()}
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    state = RunState(
        step=notes["step"],
        losses=tensors.pop("losses").numpy(),
        weights={n.removeprefix("net."): t for n, t in tensors.items() if n.startswith("net.")},
        momentum=[tensors[n] for n in sorted(tensors) if n.startswith("momentum.")],
        scaler=notes["scaler"],
        seconds=notes["seconds"],
    )
    return notes["identity"], state


def remove_state(path: Path) -> None:
    """Delete the state and what an interrupted write may have left."""
    path.unlink(missing_ok=True)
    path.with_name(f".{path.name}").unlink(missing_ok=True)


def _difference(then: Identity, now: Identity) -> str:
    """Return the first entry that differs, as text; empty when none does."""
    a, b = _flat(then), _flat(now)
    for name in {**a, **b}:
        if a.get(name) != b.get(name):
            return f"{name} {a.get(name)!s:.40}, now {b.get(name)!s:.40}"
    return ""


def _flat(identity: Identity) -> dict[str, Any]:
    return {**identity, **identity.get("recipe", {}), "recipe": None}
