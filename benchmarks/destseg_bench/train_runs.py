"""The runs that have to be trained: where their checkpoints go, and how they are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from destseg_bench.runs import Run, Trainer
from destseg_deploy.data.texture_bank import TextureBank
from destseg_deploy.recipe import Recipe
from destseg_deploy.training.jobs import Job, list_jobs, open_bank, train_job


def plan_runs(
    categories: Sequence[Path], seeds: Sequence[int], folder: Path, recipe: Recipe
) -> list[Run]:
    """Return a run for each category and seed; the files are named as destseg-train's."""
    return [
        Run(
            job.category,
            job.output,
            replace(recipe, seed=job.seed).for_category(job.category.name),
        )
        for job in list_jobs(categories, seeds, folder)
    ]


def make_trainer(
    recipe: Recipe,
    *,
    textures: Path | TextureBank | None = None,
    device: str = "auto",
    tensorboard: Path | None = None,
    **options: Any,
) -> Trainer:
    """Return what trains runs that share size and options; textures are decoded once for all.

    Args:
        recipe: Any of the runs' recipes: its size is that of the textures.
        textures: As ``train``'s.
        device: Where to train.
        tensorboard: Folder for logs, one for each run.
        **options: Further arguments of ``train``.

    Raises:
        DataError: If the textures are not there.
        BackendError: If the device is not there.
    """
    bank = textures if isinstance(textures, TextureBank) else open_bank(textures, recipe, device)

    def make(run: Run, *, report: Callable[[Any], None], notify: Callable[[str], None]) -> None:
        train_job(
            Job(run.category, run.seed, run.checkpoint),
            run.recipe,
            bank,
            device=device,
            tensorboard=None if tensorboard is None else tensorboard / run.group,
            report=report,
            notify=notify,
            **options,
        )

    return make
