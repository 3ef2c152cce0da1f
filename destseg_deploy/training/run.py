"""A whole run: from a folder of normal images to a checkpoint, continued where it was interrupted.

In phase one the student sees the corrupted image and learns to give the teacher's features of the
clean image. In phase two the student is frozen, and the segmentation network learns to find the
corruption in the products of both networks' features (paper, section 3).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from destseg_deploy.data.datasets import DataSet, open_dataset
from destseg_deploy.data.seen import names_below
from destseg_deploy.data.synthesis import PAPER_ROTATIONS
from destseg_deploy.data.textures import open_textures
from destseg_deploy.errors import SpecError, TrainingError
from destseg_deploy.evaluation.test_set import score_images
from destseg_deploy.files import making, sha256
from destseg_deploy.locks import locked
from destseg_deploy.models.destseg import DeSTSeg
from destseg_deploy.models.inference import normalize_pixels
from destseg_deploy.models.weights import (
    checkpoint_spec,
    fit_statistics,
    is_checkpoint,
    load_teacher,
    save_checkpoint,
)
from destseg_deploy.predictor import Predictor
from destseg_deploy.runtime.torch_runtime import PyTorchRuntime
from destseg_deploy.spec import (
    FileRecord,
    ModelSpec,
    TeacherRecord,
    Threshold,
    TrainingRecord,
    check_output,
)
from destseg_deploy.spec.limits import check_name
from destseg_deploy.thresholds import from_normal, too_few
from destseg_deploy.training.batches import (
    AnomalyDataset,
    DeviceLoader,
    Sampler,
    reference_batches,
)
from destseg_deploy.training.checkpointing import Identity, RunFiles, RunState, state_path
from destseg_deploy.training.logs import TensorBoardLog, check_losses, write_losses
from destseg_deploy.training.loop import Loop, Observers, Source, StepReport
from destseg_deploy.training.precision import (
    Precision,
    compile_networks,
    pick_device,
    pick_precision,
)
from destseg_deploy.training.recipe import (
    PAPER,
    PRESETS,
    Recipe,
    TrainingOptions,
    check_option,
    phases,
)
from destseg_deploy.training.texture_bank import TextureBank
from destseg_deploy.training.threads import computing_with
from destseg_deploy.training.views import View, find_view, read_view

DEFAULTS = TrainingOptions()

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


def open_bank(textures: Path | None, recipe: Recipe, device: str) -> TextureBank:
    """Return textures for all runs of a recipe; each texture is decoded once for all of them.

    Raises:
        DataError: If the folder does not exist or holds no image.
        BackendError: If the device is not there.
    """
    return TextureBank(open_textures(textures, (recipe.size, recipe.size)), pick_device(device))


def train(
    data: Path | str | DataSet,
    output: Path | str,
    recipe: Recipe = PRESETS["paper"],
    options: TrainingOptions = DEFAULTS,
    *,
    textures: Path | TextureBank | None = None,
    report: Callable[[StepReport], None] = lambda report: None,
    notify: Callable[[str], None] = lambda message: None,
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
    watch = Observers(report)
    with nullcontext() if held else hold(output), computing_with(options.threads):
        return _train(open_dataset(data), output, recipe, options, textures, watch, notify, held)


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
    data: DataSet,
    output: Path,
    recipe: Recipe,
    options: TrainingOptions,
    textures: Path | TextureBank | None,
    watch: Observers,
    notify: Callable[[str], None],
    held: bool,
) -> ModelSpec:
    """Train while the output is held; see ``train``."""
    setup = prepare(data, recipe, options, textures)
    setup.spec(output.name).check(str(output))  # a spec that is refused must not cost the training
    files = RunFiles(output, setup.identity())
    if not options.restart and (done := files.finished()):
        notify(f"{output}: trained with these options before; --restart trains it again")
        return done
    _name_replaced(data.source, output, options, notify)
    files.reserve(setup.loop.model)
    state = None if options.restart and not held else files.read_state()
    if state is None:
        state = RunState.fresh(setup.recipe.steps)
    else:
        notify(f"{output}: continuing after step {state.step} of {setup.recipe.steps}")
    if setup.bank.textures.name == "procedural":
        notify(f"{output}: {NO_TEXTURES}")
    for remark in _remarks(setup, recipe):
        notify(f"{output}: {remark}")
    if options.compiled:
        compile_networks(setup.loop.model, setup.bank.device)
    folder = options.tensorboard and options.tensorboard / output.stem
    with TensorBoardLog(folder, state.step) if folder else nullcontext() as log:
        observers = Observers(watch.report, log, files.write_state, options.save_every)
        setup.loop.fit(setup.source(), state, observers)
    spec = _describe(setup, files.digest, state)
    if setup.held_out:
        notify(f"{output}: scoring {len(setup.held_out)} held-out images to set the threshold")
        spec = replace(spec, threshold=_held_out_threshold(setup, spec))
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


def _name_replaced(
    source: Path, output: Path, options: TrainingOptions, notify: Callable[[str], None]
) -> None:
    """Say what a finished checkpoint loses, and refuse to replace that of another product.

    Raises:
        TrainingError: If it was trained on another folder.
    """
    try:
        old = ModelSpec.read(output)
    except SpecError:
        return
    before = old.training.data if old.training else ""
    if before and Path(before).resolve() != source.resolve() and not options.restart:
        raise TrainingError(
            f"{output}: trained on {before}, and a training on {source} would replace it. Choose "
            "another --output, or pass --restart to replace it."
        )
    if old.threshold is not None:
        notify(
            f"{output}: will be replaced, with its threshold {old.threshold.score:.6f} "
            f"({old.threshold.rule})"
        )


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


@dataclass(frozen=True, eq=False)
class Setup:
    """All that a run needs, ready to train.

    Attributes:
        data: What is trained on.
        recipe: What to train, with the rotation settled.
        options: How to train it.
        paths: The normal frames to train on.
        images: uint8 (M, H, W, 3), what is seen of them: whole frames, or crops.
        view: What the network sees of a frame.
        held_out: The normal images to set the threshold with.
        bank: Textures on the training device.
        teacher: Where the teacher's weights came from.
        loop: The networks, seeded, on the device, and the loop that trains them.
    """

    data: DataSet
    recipe: Recipe
    options: TrainingOptions
    paths: Sequence[Path]
    images: NDArray[np.uint8]
    view: View
    held_out: Sequence[Path]
    bank: TextureBank
    teacher: TeacherRecord
    loop: Loop

    def identity(self) -> Identity:
        """Return all that decides what the run computes."""
        return {
            "recipe": self.recipe.entries(),
            "images": hashlib.sha256(np.ascontiguousarray(self.images).data).hexdigest(),
            "held_out": [sha256(path) for path in self.held_out],  # they decide the threshold
            "textures": self.bank.textures.digest(),
            # without what is None, as checkpoints of format 1 hashed it
            "teacher": {k: v for k, v in asdict(self.teacher).items() if v is not None},
            "device": self.loop.precision.device.type,
            "precision": self.loop.precision.name,
            "literal": self.options.literal,
            "compiled": self.options.compiled,
            "false_reject_rate": self.options.false_reject_rate,
            **self.view.identity(),
        }

    def spec(self, file: str = "") -> ModelSpec:
        """Return the checkpoint's spec, still without what the training brings."""
        record = FileRecord(file, "")
        spec = checkpoint_spec(self.data.name, self.view.network, record, teacher=self.teacher)
        return replace(spec, **self.view.entries())

    def source(self) -> Source:
        """Return the batches: made on the device, or in processes as the reference makes them."""
        textures, size, workers = self.bank.textures, self.recipe.batch_size, self.options.workers
        rotation, seed = str(self.recipe.rotation), self.recipe.seed
        sampler = Sampler(len(self.images), len(textures), rotation, seed)
        if not self.options.literal:
            loader = DeviceLoader(self.images, self.bank, sampler, batch_size=size, workers=workers)
            return loader.batches
        samples = AnomalyDataset(self.images, textures, sampler, size * self.recipe.steps)
        return lambda start, stop: reference_batches(samples, size, start, stop, workers=workers)


def prepare(
    data: Path | DataSet,
    recipe: Recipe,
    options: TrainingOptions = DEFAULTS,
    textures: Path | TextureBank | None = None,
) -> Setup:
    """Read the images and make the networks; arguments and errors are those of ``train``."""
    data = open_dataset(data)
    check_name(data.name, f"{data.source}: name")  # it goes into the spec, hours later
    precision = _precision(options, recipe)
    recipe = recipe.for_category(data.name)
    paths, held_out = split_holdout(data.train(), recipe.holdout)
    view = find_view([*paths, *held_out], recipe, options.region)
    bank = textures
    if not isinstance(bank, TextureBank):
        bank = open_bank(bank, recipe, options.device)
    torch.manual_seed(recipe.seed)
    model = DeSTSeg()
    teacher = load_teacher(model.teacher_net, options.teacher_weights, source=options.teacher)
    images = read_view(paths, view, recipe)
    if teacher.source == "random":
        pixels = torch.from_numpy(images[:32].transpose(0, 3, 1, 2)).float()
        fit_statistics(model.teacher_net, normalize_pixels(pixels))
    loop = Loop(model, recipe, precision, literal=options.literal)
    return Setup(data, recipe, options, paths, images, view, held_out, bank, teacher, loop)


def _precision(options: TrainingOptions, recipe: Recipe) -> Precision:
    device, literal = pick_device(options.device), options.literal
    # The paper trains in fp32, so neither its recipe nor its loop takes a half precision by itself.
    exact = literal or recipe.name == PAPER
    wanted = "fp32" if exact and options.precision == "auto" else options.precision
    name = pick_precision(wanted, device)
    check_option(not literal or name == "fp32", "precision", name, "fp32 with literal")
    return Precision(name, device)


def split_holdout(images: Sequence[Path], share: float) -> tuple[list[Path], list[Path]]:
    """Split normal images into those to train on and those held out, spread evenly.

    Raises:
        TrainingError: If the share leaves no image to train on.
    """
    count = math.ceil(share * len(images))
    if count >= len(images):
        raise TrainingError(
            f"holdout {share} of {len(images)} images leaves none to train on. Lower it."
        )
    chosen = {round((i + 0.5) * len(images) / count - 0.5) for i in range(count)}
    return (
        [path for i, path in enumerate(images) if i not in chosen],
        [path for i, path in enumerate(images) if i in chosen],
    )


def _describe(setup: Setup, digest: str, state: RunState) -> ModelSpec:
    """Return the checkpoint's spec, still without its threshold and its file."""
    record = TrainingRecord(
        recipe=setup.recipe.entries(),
        data=str(setup.data.source),
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


def _held_out_threshold(setup: Setup, spec: ModelSpec) -> Threshold:
    """Set the threshold with images that were not trained on, in float32 as the model is served."""
    served = DeSTSeg()  # a copy, because the trained one may be compiled or on another device
    served.load_state_dict(setup.loop.model.state_dict())
    scores, peaks = score_images(Predictor(PyTorchRuntime(served.eval(), spec)), setup.held_out)
    return from_normal(scores, peaks, setup.options.false_reject_rate)
