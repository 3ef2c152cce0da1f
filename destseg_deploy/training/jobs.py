"""Several runs in one go: categories times seeds, over one bank of textures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from destseg_deploy.data.texture_bank import TextureBank
from destseg_deploy.data.texture_source import open_textures
from destseg_deploy.recipe import Recipe
from destseg_deploy.spec import ModelSpec
from destseg_deploy.training.place import pick_device
from destseg_deploy.training.run import train


@dataclass(frozen=True)
class Job:
    """One run of several.

    Attributes:
        category: Folder in the MVTec AD layout.
        seed: Seed of the run.
        output: The checkpoint it makes.
    """

    category: Path
    seed: int
    output: Path

    @property
    def name(self) -> str:
        """What to call it on a screen."""
        return self.output.stem


def list_jobs(categories: Sequence[Path], seeds: Sequence[int], folder: Path) -> list[Job]:
    """Return the runs, category by category.

    The checkpoints are ``<folder>/<category>.safetensors``, and with several seeds
    ``<folder>/<category>-seed<seed>.safetensors``.
    """
    jobs = []
    for category in categories:
        for seed in seeds:
            name = category.name if len(seeds) == 1 else f"{category.name}-seed{seed}"
            jobs.append(Job(category, seed, folder / f"{name}.safetensors"))
    return jobs


def open_bank(textures: Path | None, recipe: Recipe, device: str) -> TextureBank:
    """Return textures for all jobs of a recipe; each is decoded once.

    Raises:
        DataError: If the folder does not exist or holds no image.
        BackendError: If the device is not there.
    """
    return TextureBank(open_textures(textures, (recipe.size, recipe.size)), pick_device(device))


def train_job(
    job: Job,
    recipe: Recipe,
    bank: TextureBank,
    *,
    tensorboard: Path | None = None,
    **options: Any,
) -> ModelSpec:
    """Do one job; one that was finished before is not repeated.

    Args:
        job: See ``list_jobs``.
        recipe: The schedule; the seed is the job's.
        bank: The textures.
        tensorboard: Folder in which the job gets a log of its name.
        **options: Further arguments of ``run.train``.
    """
    log = None if tensorboard is None else tensorboard / job.name
    seeded = replace(recipe, seed=job.seed)
    return train(job.category, job.output, seeded, textures=bank, tensorboard=log, **options)
