"""The checkpoints that an accuracy run measures: planned for training, or found in a folder."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from destseg_bench.accuracy.paper import paper_table
from destseg_deploy.data.mvtec import GOOD, find_categories, find_category
from destseg_deploy.errors import DataError, SpecError, TrainingError
from destseg_deploy.spec import ModelSpec, spec_path
from destseg_deploy.training.recipe import Recipe
from destseg_deploy.training.run import checkpoint_path, refuse_shared


@dataclass(frozen=True)
class Run:
    """One checkpoint to measure.

    Attributes:
        category: Folder in the MVTec AD layout.
        checkpoint: The checkpoint, to be made or found.
        recipe: The schedule, with the seed, and the rotation settled for the category.
        group: Subfolder that distinguishes it from other runs of that name; empty in most cases.
        settings: The settings of an ablation that it counts for.
    """

    category: Path
    checkpoint: Path
    recipe: Recipe
    group: str = ""
    settings: tuple[str, ...] = ()

    @property
    def seed(self) -> int:
        """The seed it was, or is to be, trained with."""
        return self.recipe.seed

    @property
    def name(self) -> str:
        """What to call it on a screen."""
        return f"{self.group}/{self.checkpoint.stem}" if self.group else self.checkpoint.stem


def paper_folders(data: Path, names: Sequence[str] = ()) -> list[Path]:
    """Return the folders of the named categories, or of all the paper's that are there.

    Args:
        data: Folder that holds the categories.
        names: Some of them; ``all`` for every folder that can be trained on, the paper's or not.

    Raises:
        DataError: If one is not there, or none was named and none of the paper's is there.
    """
    if names:
        return find_categories(data, names)
    known = paper_table("S5").categories
    found = [data / name for name in known if (data / name / "train" / GOOD).is_dir()]
    if not found:
        raise DataError(
            f"{data}: none of the paper's categories in it. Expected folders such as "
            f"{known[0]}/train/good; give the folder above them, or name a category of your own."
        )
    return found


def plan_runs(
    categories: Sequence[Path], seeds: Sequence[int], folder: Path, recipe: Recipe
) -> list[Run]:
    """Return a run for each category and seed; the files are named as destseg-train's.

    Raises:
        TrainingError: If two of the categories have one name.
    """
    runs = [
        Run(
            category,
            checkpoint_path(folder, category.name, seed if len(seeds) > 1 else None),
            replace(recipe, seed=seed).for_category(category.name),
        )
        for category in categories
        for seed in seeds
    ]
    refuse_shared([run.checkpoint for run in runs])
    return runs


def take_runs(
    folder: Path,
    data: Path,
    *,
    categories: Sequence[str] = (),
    seeds: Sequence[int] = (),
    nested: bool = False,
    notify: Callable[[str], None] = lambda message: None,
) -> list[Run]:
    """Return a run for each checkpoint in a folder, by category, seed and name.

    Args:
        folder: Where the checkpoints and their specs are.
        data: Folder that holds the categories.
        categories: Only these; all when empty or ``all``.
        seeds: Only these; all when empty.
        nested: Look into its subfolders, too.
        notify: Called with what is left out, and why.

    Raises:
        DataError: If there is no checkpoint, none of an asked category or seed, or no data of one.
        SpecError: If a spec does not say how its checkpoint was trained.
    """
    specs = _read_specs(folder, nested, notify)
    names = () if "all" in categories else categories
    kinds = {path: spec.category for path, spec in specs.items()}
    recipes = {path: _recipe_of(path, spec) for path, spec in specs.items()}
    _check_wanted(folder, "category", names, kinds.values())
    _check_wanted(folder, "seed", seeds, [recipe.seed for recipe in recipes.values()])
    runs = [
        Run(find_category(data, kinds[path]), path, recipe)
        for path, recipe in recipes.items()
        if (not names or kinds[path] in names) and (not seeds or recipe.seed in seeds)
    ]
    if not runs:
        raise DataError(
            f"{folder}: no checkpoint of these categories with these seeds. Ask for fewer, or "
            "train them."
        )
    return sorted(runs, key=lambda run: (run.category.name, run.seed, str(run.checkpoint)))


def _read_specs(folder: Path, nested: bool, notify: Callable[[str], None]) -> dict[Path, ModelSpec]:
    found = [*folder.glob("*.safetensors"), *(folder.glob("*/*.safetensors") if nested else ())]
    files = [path for path in sorted(found) if not path.name.startswith(".")]
    for path in files:
        if not spec_path(path).is_file():
            notify(f"{path}: left out, no {spec_path(path).name} beside it")
    specs = {path: ModelSpec.read(path) for path in files if spec_path(path).is_file()}
    if not specs:
        there = "no such folder" if not folder.is_dir() else "no checkpoint in it"
        raise DataError(
            f"{folder}: {there}. Expected <category>.safetensors with its .json, as destseg-train "
            "writes them."
        )
    return specs


def _recipe_of(path: Path, spec: ModelSpec) -> Recipe:
    """Return the schedule that made a checkpoint.

    Raises:
        SpecError: If its spec has none, or one that this version does not know.
    """
    record: dict[str, Any] = {} if spec.training is None else spec.training.recipe
    try:
        if isinstance(record["seed"], int):
            return Recipe(**record)
    except (KeyError, TypeError, TrainingError):
        pass
    raise SpecError(
        f"{spec_path(path)}: its training has no recipe with a seed that this version knows. "
        "Train it again with destseg-train, or move it away."
    )


def _check_wanted(
    folder: Path, what: str, wanted: Sequence[object], found: Collection[object]
) -> None:
    for one in wanted:
        if one not in found:
            there = ", ".join(dict.fromkeys(map(str, found)))
            raise DataError(
                f"{folder}: no checkpoint of {what} {one}. Found: {there}. Train it, or leave it "
                "out."
            )
