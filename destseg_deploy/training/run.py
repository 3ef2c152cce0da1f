"""A whole run: from a folder of normal images to a checkpoint, continued where it was interrupted.

Phase one teaches the student to give the teacher's features of the clean image when it sees the
corrupted one. Phase two freezes the student and teaches the segmentation network to find the
corruption in the products of both networks' features (methods.md 3.1.7).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from destseg_deploy.data.texture_bank import TextureBank
from destseg_deploy.errors import DestsegError, TrainingError
from destseg_deploy.evaluation import score_images
from destseg_deploy.models.destseg import DeSTSeg
from destseg_deploy.models.weights import checkpoint_spec, save_checkpoint
from destseg_deploy.predictor import Predictor
from destseg_deploy.recipe import PRESETS, Recipe, check_option
from destseg_deploy.runtime.pytorch import PyTorchRuntime
from destseg_deploy.spec import FileRecord, ModelSpec, Threshold
from destseg_deploy.thresholds import from_normal
from destseg_deploy.training.compiling import compile_networks
from destseg_deploy.training.journal import losses_path, open_journal, write_losses
from destseg_deploy.training.loop import Loop, Progress
from destseg_deploy.training.resume import (
    Identity,
    RunState,
    read_state,
    remove_state,
    resume_path,
    write_state,
)
from destseg_deploy.training.schedule import phases
from destseg_deploy.training.setup import Setup, prepare

NO_TEXTURES = (
    "no folder of textures was given, so anomalies are made of built-in procedural ones; the "
    "paper's are DTD's (--textures dtd/images)"
)


def train(
    category: Path,
    output: Path,
    recipe: Recipe = PRESETS["paper"],
    *,
    textures: Path | TextureBank | None = None,
    teacher_weights: Path | None = None,
    teacher: str = "imagenet",
    device: str = "auto",
    precision: str = "auto",
    workers: int = 2,
    literal: bool = False,
    compiled: bool = False,
    false_reject_rate: float = 0.01,
    tensorboard: Path | None = None,
    restart: bool = False,
    save_every: float = 60.0,
    report: Callable[[Progress], None] = lambda progress: None,
    notify: Callable[[str], None] = lambda message: None,
) -> ModelSpec:
    """Train DeSTSeg on a category's normal images and write the checkpoint.

    Beside it goes ``<name>-losses.csv``, the loss of every step. While it trains, the state is kept
    in ``<name>.resume``: the same call after an interruption goes on from there, to the same end.
    A finished run with the same options and images is not repeated.

    Args:
        category: A folder in the MVTec AD layout; only ``train/good`` is read.
        output: The checkpoint to write, ``<folder>/<category>.safetensors``.
        recipe: The schedule.
        textures: Folder of texture images such as ``dtd/images``; None for procedural ones. A bank,
            on the training device, is shared by several runs.
        teacher_weights: ImageNet weights; None for torchvision's cached or downloaded file.
        teacher: ``imagenet``, or ``random`` for demonstrations.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``fp32``, ``bf16`` or ``fp16`` (autocast), or ``auto``: see ``pick_precision``.
        workers: Threads that decode textures ahead; with ``literal``, processes that prepare
            samples. They do not change the result.
        literal: Train with the reference's loop, dead work included: fp32, an image at a time.
        compiled: Compile the networks with ``torch.compile``.
        false_reject_rate: Aim of the threshold that the held-out images give.
        tensorboard: Folder for TensorBoard's log; None for no log.
        restart: Ignore an interrupted or finished run.
        save_every: Seconds between two saved states.
        report: Called after each step.
        notify: Called with what the user should know: that a run is continued, or was done before.

    Returns:
        The checkpoint's spec; its threshold is None when no image was held out.

    Raises:
        DataError: If images or textures are missing or unreadable.
        WeightsError: If the teacher cannot be had.
        TrainingError: If an option cannot be trained with, the loss is no longer finite, or a run
            with other options was interrupted here.
        BackendError: If the device, the compiler or TensorBoard is not there.
    """
    check_option(
        0 < false_reject_rate < 1, "false_reject_rate", false_reject_rate, "between 0 and 1"
    )
    setup = prepare(
        category,
        recipe,
        textures=textures,
        teacher_weights=teacher_weights,
        teacher=teacher,
        device=device,
        precision=precision,
        literal=literal,
    )
    identity = {**setup.identity(), "compiled": compiled, "false_reject_rate": false_reject_rate}
    kept = resume_path(output)
    if not restart and (done := _finished(output, identity)):
        notify(f"{output}: trained with these options before; --restart trains it again")
        _clear(kept, identity)
        return done
    state = None if restart else read_state(kept, identity)
    if state is None:
        state = RunState(0, np.full(setup.recipe.steps, np.nan, np.float32))
    else:
        notify(f"{output}: continuing after step {state.step} of {setup.recipe.steps}")
    if setup.bank.textures.name == "procedural":
        notify(f"{output}: {NO_TEXTURES}")
    if compiled:
        compile_networks(setup.model, setup.device)
    clock = _Clock(state.seconds)
    with open_journal(tensorboard, state.step) as journal:
        Loop(
            setup.model,
            setup.recipe,
            setup.device,
            setup.precision,
            literal=literal,
            report=report,
            journal=journal,
            save=lambda now: write_state(kept, identity, replace(now, seconds=clock.seconds())),
            save_every=save_every,
        ).fit(setup.source(workers), state)
    spec = _describe(setup, category, identity, state, clock.seconds())
    if setup.held_out:
        threshold = _held_out_threshold(setup, spec, false_reject_rate)
        spec = replace(spec, threshold=threshold)
    write_losses(losses_path(output), setup.recipe, state.losses)
    spec = save_checkpoint(setup.model, spec, output)
    remove_state(kept)
    return spec


class _Clock:
    """Seconds of training, those before an interruption included."""

    def __init__(self, before: float) -> None:
        self._start = time.perf_counter() - before

    def seconds(self) -> float:
        return time.perf_counter() - self._start


def _finished(output: Path, identity: Identity) -> ModelSpec | None:
    """Return the spec of a checkpoint that such a run left, or None."""
    try:
        spec = ModelSpec.read(output)
        spec.check_artifact(output)
    except DestsegError:
        return None
    return spec if spec.training.get("identity") == _digest(identity) else None


def _clear(kept: Path, identity: Identity) -> None:
    """Delete the state of a finished run that was killed at its very end, and no other's."""
    with suppress(TrainingError):
        if read_state(kept, identity) is not None:
            remove_state(kept)


def _digest(identity: Identity) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _describe(
    setup: Setup, category: Path, identity: Identity, state: RunState, seconds: float
) -> ModelSpec:
    """Return the checkpoint's spec; its threshold and its file are still missing."""
    record: dict[str, Any] = {
        "recipe": asdict(setup.recipe),
        "data": str(category),
        "images": len(setup.images),
        "held_out": [path.name for path in setup.held_out],
        "textures": setup.bank.textures.name,
        "device": str(setup.device),
        "precision": setup.precision,
        "loop": "literal" if setup.literal else "lean",
        "seconds": round(seconds, 1),
        "losses": {p.name: float(state.losses[p.stop - 1]) for p in phases(setup.recipe)},
        "identity": _digest(identity),
    }
    size = (setup.recipe.size, setup.recipe.size)
    empty = FileRecord("", "")
    return checkpoint_spec(category.name, size, empty, teacher=setup.teacher, training=record)


def _held_out_threshold(setup: Setup, spec: ModelSpec, rate: float) -> Threshold:
    """Judge by normal images that were not trained on, in float32 as the model will be served."""
    served = DeSTSeg()  # a copy: the trained one may be compiled, and on another device
    served.load_state_dict(setup.model.state_dict())
    scores, peaks = score_images(Predictor(PyTorchRuntime(served.eval(), spec)), setup.held_out)
    return from_normal(scores, peaks, rate)
