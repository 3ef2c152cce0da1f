"""What a run starts from: images, textures, networks, and what tells it from other runs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from destseg_deploy.atomic import sha256
from destseg_deploy.data.feed import Feed
from destseg_deploy.data.loader import AnomalyDataset, batches
from destseg_deploy.data.mvtec import list_train
from destseg_deploy.data.sampler import Sampler, decode_images
from destseg_deploy.data.texture_bank import TextureBank
from destseg_deploy.data.texture_source import open_textures
from destseg_deploy.errors import TrainingError
from destseg_deploy.models.destseg import DeSTSeg
from destseg_deploy.models.inference import normalize_pixels
from destseg_deploy.models.weights import fit_statistics, load_teacher
from destseg_deploy.recipe import Recipe, check_option
from destseg_deploy.training.loop import Source
from destseg_deploy.training.place import pick_device, pick_precision
from destseg_deploy.training.resume import Identity


@dataclass(frozen=True, eq=False)
class Setup:
    """All that a run needs.

    Attributes:
        recipe: The schedule, with the category's rotation settled.
        device: Where to train.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        literal: Whether to train with the reference's loop.
        images: uint8 (M, H, W, 3), the normal images to train on.
        held_out: The normal images to set the threshold with.
        bank: Textures on the device.
        model: The networks, seeded, with the teacher's weights.
        teacher: Where these came from.
    """

    recipe: Recipe
    device: torch.device
    precision: str
    literal: bool
    images: NDArray[np.uint8]
    held_out: Sequence[Path]
    bank: TextureBank
    model: DeSTSeg
    teacher: dict[str, str]

    def identity(self) -> Identity:
        """Return all that decides what the run computes."""
        return {
            "recipe": asdict(self.recipe),
            "images": hashlib.sha256(self.images.tobytes()).hexdigest(),
            "held_out": [sha256(path) for path in self.held_out],  # they decide the threshold
            "textures": self.bank.textures.digest(),
            "teacher": self.teacher,
            "device": self.device.type,
            "precision": self.precision,
            "literal": self.literal,
        }

    def source(self, workers: int) -> Source:
        """Return the batches: made on the device, or as the reference makes them."""
        size, steps = self.recipe.batch_size, self.recipe.steps
        rotation, seed = str(self.recipe.rotation), self.recipe.seed
        sampler = Sampler(len(self.images), len(self.bank.textures), rotation, seed)
        if not self.literal:
            return Feed(self.images, self.bank, sampler, batch_size=size, workers=workers).batches
        samples = AnomalyDataset(self.images, self.bank.textures, sampler, size * steps)
        return lambda start, stop: batches(samples, size, start, stop, workers=workers)


def prepare(
    category: Path,
    recipe: Recipe,
    *,
    textures: Path | TextureBank | None = None,
    teacher_weights: Path | None = None,
    teacher: str = "imagenet",
    device: str = "auto",
    precision: str = "auto",
    literal: bool = False,
) -> Setup:
    """Read the images and make the networks; arguments and errors are ``run.train``'s."""
    place = pick_device(device)
    precision = "fp32" if literal and precision == "auto" else pick_precision(precision, place)
    check_option(not literal or precision == "fp32", "precision", precision, "fp32 with literal")
    recipe = recipe.for_category(category.name)
    size = (recipe.size, recipe.size)
    paths, held_out = split_holdout(list_train(category), recipe.holdout)
    bank = textures
    if not isinstance(bank, TextureBank):
        bank = TextureBank(open_textures(bank, size), place)
    torch.manual_seed(recipe.seed)
    model = DeSTSeg()
    record = load_teacher(model.teacher_net, teacher_weights, source=teacher)
    images = decode_images(paths, size)
    if teacher == "random":
        fit_statistics(model.teacher_net, _normalized(images[:32]))
    return Setup(recipe, place, precision, literal, images, held_out, bank, model, record)


def split_holdout(images: Sequence[Path], share: float) -> tuple[list[Path], list[Path]]:
    """Split normal images into those to train on and those held out, spread evenly.

    Raises:
        TrainingError: If a share was asked for and there are too few images to leave any.
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


def _normalized(images: NDArray[np.uint8]) -> Tensor:
    """Return images as the networks see them, float (N, 3, H, W)."""
    return normalize_pixels(torch.from_numpy(images.transpose(0, 3, 1, 2)).float())
