"""Whole runs: from images of good parts to checkpoints, continued where they were interrupted.

In phase one the student sees the corrupted image and learns to give the teacher's features of the
clean image. In phase two the student is frozen, and the segmentation network learns to find the
corruption in the products of both networks' features (paper, section 3).

Several runs are trained in this process one after the other, or on a Ray cluster one for each
worker. Both end with the same bytes on the same kind of machine, because a run computes with the
same number of threads in both, and reads the same files at the same paths.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from destseg_deploy.cluster.connection import connected
from destseg_deploy.cluster.jobs import Bar, Notify, Seat, run_jobs
from destseg_deploy.cluster.place import Place
from destseg_deploy.data.datasets import DataSet
from destseg_deploy.data.seen import names_below
from destseg_deploy.data.synthesis import PAPER_ROTATIONS
from destseg_deploy.errors import TrainingError
from destseg_deploy.files import making
from destseg_deploy.locks import locked
from destseg_deploy.models.weights import is_checkpoint, save_checkpoint
from destseg_deploy.predictor import Predictor
from destseg_deploy.runtime.torch_runtime import PyTorchRuntime
from destseg_deploy.spec import ModelSpec, TrainingRecord, check_output
from destseg_deploy.thresholds import measure_normal, too_few
from destseg_deploy.training.batches import TextureBank
from destseg_deploy.training.checkpointing import (
    RunFiles,
    RunState,
    check_losses,
    state_path,
    write_losses,
)
from destseg_deploy.training.logs import TensorBoardLog
from destseg_deploy.training.loop import Observers, StepReport
from destseg_deploy.training.precision import compile_networks, computing_with, pick_threads
from destseg_deploy.training.recipe import PRESETS, Recipe, TrainingOptions, phases
from destseg_deploy.training.setup import DEFAULTS, Setup, open_bank, prepare

NO_TEXTURES = (
    "no folder of textures was given, so anomalies are made of built-in procedural ones; the "
    "paper's are DTD's (--textures dtd/images)"
)

RANDOM_TEACHER = (
    "the teacher has random weights, which is for demonstrations only; a model for real parts "
    "needs ImageNet's (--teacher-weights FILE)"
)


def checkpoint_path(folder: Path, category: str, seed: int | None = None) -> Path:
    """Return where a run's checkpoint goes: ``<category>.safetensors``, or ``-seed<seed>`` added.

    Args:
        folder: Folder of the checkpoints.
        category: Name of the category.
        seed: Given where several seeds are trained.
    """
    suffix = "" if seed is None else f"-seed{seed}"
    return folder / f"{category}{suffix}.safetensors"


@dataclass(frozen=True)
class PlannedRun:
    """A run to be trained.

    Attributes:
        data: What it is trained on.
        output: Its checkpoint.
        recipe: What to train, with the seed.
    """

    data: DataSet
    output: Path
    recipe: Recipe


def train_all(
    plan: Sequence[PlannedRun],
    options: TrainingOptions,
    textures: Path | None,
    place: Place,
    *,
    progress: Bar,
    notify: Notify,
) -> Iterator[tuple[PlannedRun, ModelSpec]]:
    """Train runs that share size and options; yield each with its spec when it is finished.

    Args:
        plan: The runs, at least one.
        options: As ``train``'s.
        textures: Folder of textures; None for procedural ones.
        place: This process, where each texture is decoded once for all runs; or a cluster, whose
            machines have the package and all files at the same paths.
        progress: Shows how far a run is; on a cluster for several at a time.
        notify: Called with what the user should know.

    Raises:
        JobError: At the end, if runs on a cluster failed; the others are finished.
        BackendError: If the cluster cannot be reached.
        DestsegError: What ``train`` raises: in this process at once; on a cluster only if two runs
            would write one checkpoint, or another command writes it.
    """
    outputs = [one.output for one in plan]
    refuse_shared(outputs)
    shared = shared_textures(textures, plan[0].recipe, options, place)
    seat = seat_of(options, place)
    jobs = [(one.output.stem, partial(_train_one, one, options, shared, seat)) for one in plan]
    with held_for(place, outputs, options):
        for i, spec in run_jobs(jobs, seat, progress, notify):
            yield plan[i], spec


def _train_one(
    planned: PlannedRun,
    options: TrainingOptions,
    textures: Path | TextureBank | None,
    seat: Seat,
    progress: Bar,
    notify: Notify,
) -> ModelSpec:
    label = f"training {planned.output.stem}"
    with computing_with(seat.threads), progress(label) as report:
        return train(
            planned.data,
            planned.output,
            planned.recipe,
            options,
            textures=textures,
            report=lambda s: report(s.done, s.total, f"{s.phase} loss {s.loss:.4f}"),
            notify=notify,
            held=not seat.place.here,
        )


def seat_of(options: TrainingOptions, place: Place) -> Seat:
    """Return where runs are trained; each takes a GPU, or as many CPUs as it has threads."""
    return Seat(place, options.device, pick_threads(options.threads))


def shared_textures(
    textures: Path | None, recipe: Recipe, options: TrainingOptions, place: Place
) -> Path | TextureBank | None:
    """Return textures for several runs: a bank in this process; on a cluster each run opens them.

    Raises:
        DataError: If the folder does not exist or holds no image.
        BackendError: If the device is not there.
    """
    return open_bank(textures, recipe, options.device) if place.here else textures


def refuse_shared(checkpoints: Sequence[Path]) -> None:
    """Refuse runs that would write the same checkpoint, as data sets of one name do.

    Raises:
        TrainingError: With the first such checkpoint.
    """
    for path in checkpoints:
        if checkpoints.count(path) > 1:
            raise TrainingError(
                f"{path}: several data sets of this name would be trained into it. Train each "
                "with an --output of its own."
            )


@contextmanager
def held_for(place: Place, outputs: Sequence[Path], options: TrainingOptions) -> Iterator[None]:
    """Hold the checkpoints of a cluster's runs in this process; in it, ``train`` holds each itself.

    Only the machine of a process knows that it has ended, and Ray may start a run again elsewhere:
    there, a lock of the worker that ended could not be taken over.

    Raises:
        BackendError: If the cluster cannot be reached.
        OutputError: If another command writes one, or it is something else.
    """
    if place.here:
        yield
        return
    # A restart deletes saved states: not before there is a cluster that can make new ones.
    with connected(place.on), ExitStack() as held:
        for output in outputs:
            held.enter_context(hold(output, restart=options.restart))
        yield


def train(
    data: Path | str | DataSet,
    output: Path | str,
    recipe: Recipe = PRESETS["paper"],
    options: TrainingOptions = DEFAULTS,
    *,
    textures: Path | TextureBank | None = None,
    report: Callable[[StepReport], None] = lambda report: None,
    notify: Notify = lambda message: None,
    held: bool = False,
) -> ModelSpec:
    """Train DeSTSeg on the images of good parts and write the checkpoint.

    The loss of every step is written beside it, to ``<name>-losses.csv``. During the training the
    state is saved to ``<name>.resume`` every ``save_every`` seconds and at the end of a phase. The
    same call after an interruption repeats the steps since then, and ends with the same bits on
    the same hardware. A finished run with the same options and images is not repeated.

    Args:
        data: A data set, or the folder or list that holds one; see ``data.datasets``. Only its
            images of good parts are read.
        output: The checkpoint to write; see ``checkpoint_path``.
        recipe: What to train.
        options: How to train it.
        textures: Folder of texture images such as ``dtd/images``; None for procedural ones. A bank
            from ``open_bank`` is shared by several runs.
        report: Called after each step.
        notify: Called with messages for the user, for example that a run is continued.
        held: The caller holds the output (see ``hold``), and calls again if this process ends. So
            a saved state is continued with ``restart``, too.

    Returns:
        The checkpoint's spec. Its threshold is None when no image was held out.

    Raises:
        DataError: If images or textures are missing or unreadable.
        WeightsError: If the teacher's weights cannot be loaded.
        TrainingError: If the loss is not finite, or an option cannot be trained with, or a run with
            other options was interrupted here.
        BackendError: If the device, the compiler or TensorBoard is missing.
        OutputError: If another run trains this checkpoint, the output is something else, or it
            cannot be written or lacks room.
    """
    output = Path(output)
    with nullcontext() if held else hold(output), computing_with(options.threads):
        return _train(data, output, recipe, options, textures, report, notify, held)


@contextmanager
def hold(output: Path, *, restart: bool = False) -> Iterator[None]:
    """Hold a checkpoint that is to be trained, so that no other run writes it.

    Args:
        output: The checkpoint; its folder is made.
        restart: Delete the state of an interrupted run.

    Raises:
        OutputError: If another run holds it, or it is something else.
    """
    check_output(output, ".safetensors", is_checkpoint)
    check_losses(output)
    with making(output.parent), locked(output):
        if restart:
            state_path(output).unlink(missing_ok=True)
        yield


def _train(
    data: Path | str | DataSet,
    output: Path,
    recipe: Recipe,
    options: TrainingOptions,
    textures: Path | TextureBank | None,
    report: Callable[[StepReport], None],
    notify: Notify,
    held: bool,
) -> ModelSpec:
    """Train while the output is held; see ``train``."""
    setup = prepare(data, recipe, options, textures)
    setup.spec(output.name).check(str(output))  # a spec that is refused must not cost the training
    files = RunFiles(output, setup.identity())
    if not options.restart and (done := files.finished()):
        notify(f"{output}: trained with these options before; --restart trains it again")
        return done
    if loss := files.replaced(setup.data.source, restart=options.restart):
        notify(loss)
    files.reserve(setup.loop.model)
    state = None if options.restart and not held else files.read_state()
    if state is None:
        state = RunState.fresh(setup.recipe.steps)
    else:
        notify(f"{output}: continuing after step {state.step} of {setup.recipe.steps}")
    for remark in _remarks(setup, recipe):
        notify(f"{output}: {remark}")
    _fit(setup, state, files, report)
    return _finish(setup, state, files, notify)


def _fit(
    setup: Setup, state: RunState, files: RunFiles, report: Callable[[StepReport], None]
) -> None:
    options = setup.options
    if options.compiled:
        compile_networks(setup.loop.model, setup.bank.device)
    folder = options.tensorboard and options.tensorboard / files.checkpoint.stem
    with TensorBoardLog(folder, state.step) if folder else nullcontext() as log:
        observers = Observers(report, log, files.write_state, options.save_every)
        setup.loop.fit(setup.source(), state, observers)


def _finish(setup: Setup, state: RunState, files: RunFiles, notify: Notify) -> ModelSpec:
    """Set the threshold and write the checkpoint."""
    spec, output, held_out = _describe(setup, files.digest, state), files.checkpoint, setup.held_out
    if held_out:
        notify(f"{output}: scoring {len(held_out)} held-out images to set the threshold")
        predictor = Predictor(PyTorchRuntime(setup.served(), spec))
        with computing_with(state.threads):  # those that the run began with, as in the steps
            threshold = measure_normal(predictor, held_out, setup.options.false_reject_rate)
        spec = replace(spec, threshold=threshold)
    try:
        write_losses(output, setup.recipe, state.losses)
        spec = save_checkpoint(setup.loop.model, spec, output)
    except OSError as error:
        raise TrainingError(
            f"{output}: cannot be written ({error.strerror or error}). The trained state is in "
            f"{files.state}: make room and repeat the command."
        ) from error
    # Last: a run that is killed before this line finds its state, or its finished checkpoint.
    files.remove_state()
    return spec


def _remarks(setup: Setup, asked: Recipe) -> Iterator[str]:
    """Yield what was chosen for the user, and what its threshold cannot promise."""
    if setup.bank.textures.name == "procedural":
        yield NO_TEXTURES
    by_paper = asked.rotation is None and setup.data.name in PAPER_ROTATIONS
    why = f"the paper's for {setup.data.name}" if by_paper else "--rotation changes it"
    yield f"rotation of the good parts: {setup.recipe.rotation} ({why})"
    if (grid := setup.view.grid) is not None:
        count = len(setup.images) // len(setup.paths)
        yield f"{count} crops of each frame, scaled to {grid.working[1]}x{grid.working[0]} pixels"
    if setup.teacher.source == "random":
        yield RANDOM_TEACHER
    if setup.held_out and (lack := too_few(len(setup.held_out), setup.options.false_reject_rate)):
        yield f"{lack} Raise --holdout, or set the threshold with more parts later."


def _describe(setup: Setup, digest: str, state: RunState) -> ModelSpec:
    """Return the checkpoint's spec, still without its threshold and its file."""
    record = TrainingRecord(
        recipe=setup.recipe.entries(),
        # Absolute: later commands look for the images from other folders.
        data=os.path.abspath(setup.data.source),
        images=len(setup.paths),
        held_out=names_below(setup.held_out, setup.data.train()),
        textures=setup.bank.textures.name,
        device=str(setup.loop.precision.device),
        precision=setup.loop.precision.name,
        loop="literal" if setup.options.literal else "lean",
        seconds=round(state.seconds, 1),
        losses={p.name: float(state.losses[p.stop - 1]) for p in phases(setup.recipe)},
        identity=digest,
    )
    return replace(setup.spec(), training=record)
