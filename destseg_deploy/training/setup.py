"""What a run needs, ready to train: images, textures, networks and their precision."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from destseg_deploy.data.datasets import DataSet, open_dataset
from destseg_deploy.data.finding import find_repeated
from destseg_deploy.data.textures import open_textures
from destseg_deploy.errors import TrainingError
from destseg_deploy.files import sha256
from destseg_deploy.models.destseg import DeSTSeg
from destseg_deploy.models.inference import normalize_pixels
from destseg_deploy.models.weights import checkpoint_spec, fit_statistics, load_teacher
from destseg_deploy.spec import FileRecord, ModelSpec, TeacherRecord
from destseg_deploy.spec.limits import check_name
from destseg_deploy.training.batches import DeviceLoader, Sampler, TextureBank
from destseg_deploy.training.checkpointing import Identity
from destseg_deploy.training.literal import AnomalyDataset, LiteralSteps, reference_batches
from destseg_deploy.training.loop import LeanSteps, Loop, Source
from destseg_deploy.training.precision import Precision, pick_device, pick_precision
from destseg_deploy.training.recipe import PAPER, Recipe, TrainingOptions, check_option
from destseg_deploy.training.views import View, find_view, read_view

DEFAULTS = TrainingOptions()


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

    def served(self) -> DeSTSeg:
        """Return a copy of the networks on the CPU in float32, as the model is served."""
        copy = DeSTSeg()  # the trained one may be compiled or on another device
        copy.load_state_dict(self.loop.model.state_dict())
        return copy.eval()

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


def open_bank(textures: Path | None, recipe: Recipe, device: str) -> TextureBank:
    """Return textures for all runs of a recipe; each texture is decoded once for all of them.

    Raises:
        DataError: If the folder does not exist or holds no image.
        BackendError: If the device is not there.
    """
    return TextureBank(open_textures(textures, (recipe.size, recipe.size)), pick_device(device))


def prepare(
    data: Path | str | DataSet,
    recipe: Recipe,
    options: TrainingOptions = DEFAULTS,
    textures: Path | TextureBank | None = None,
) -> Setup:
    """Read the images and make the networks; arguments and errors are those of ``train``."""
    data = open_dataset(data)
    # It goes into the spec, hours later.
    check_name(data.name, f"{data.source}: name", "Pass another one with --name.")
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
    loop = Loop(model, recipe, precision, LiteralSteps if options.literal else LeanSteps)
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
        TrainingError: If the share leaves no image to train on, or an image is there twice: it
            would be in both.
    """
    if found := find_repeated(images):
        first, second = (images[place] for place in found)
        raise TrainingError(
            f"{second}: the same image as {first}. Expected each image to train on once; leave one "
            "out."
        )
    # 0.07 of 100 images must stay 7 even where rounding makes it 7.000000000000001.
    count = math.ceil(round(share * len(images), 9))
    if count >= len(images):
        raise TrainingError(
            f"holdout {share} of {len(images)} images leaves none to train on. Lower it."
        )
    chosen = {round((i + 0.5) * len(images) / count - 0.5) for i in range(count)}
    return (
        [path for i, path in enumerate(images) if i not in chosen],
        [path for i, path in enumerate(images) if i in chosen],
    )
