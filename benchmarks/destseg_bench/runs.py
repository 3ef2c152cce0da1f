"""Checkpoints over categories and seeds: planned or found, trained where asked, measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from destseg_bench.agreement import describe_training
from destseg_bench.paper import paper_categories
from destseg_deploy.data.mvtec import GOOD, find_categories, find_category, list_test
from destseg_deploy.errors import DataError, SpecError, TrainingError
from destseg_deploy.evaluation import (
    Evaluation,
    TopKRow,
    compute_metrics,
    score_test_set,
    sweep_top_k,
)
from destseg_deploy.predictor import load
from destseg_deploy.recipe import Recipe
from destseg_deploy.spec import ModelSpec, spec_path

METRICS = {
    "image_auroc": "image AUROC",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pro": "PRO",
    "iap": "IAP",
    "iap_at_90": "IAP@90",
}
"""What is measured of a run -> what it is called in a table."""

Advance = Callable[[int, int, str], None]
Progress = Callable[[str], AbstractContextManager[Advance]]
"""``console.progress``: given a label, a bar to advance by steps done, their total and a remark."""

Trainer = Callable[..., object]
"""Makes the checkpoint of a run; takes the run, and ``report`` and ``notify`` as ``train`` does."""


@dataclass(frozen=True)
class Run:
    """One checkpoint to measure.

    Attributes:
        category: Folder in the MVTec AD layout.
        checkpoint: The checkpoint, to be made or found.
        recipe: The schedule, with the seed, and the rotation settled for the category.
        group: Folder that sets it apart from other runs of that name; empty in most cases.
        settings: What it counts for in an ablation.
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


@dataclass(frozen=True)
class Measured:
    """A run and what was measured of it.

    Attributes:
        run: The run.
        trained: How it was trained, as its spec says.
        evaluation: The metrics of its test set.
        sweep: Its image AUROC for each T of the paper's Table S1.
    """

    run: Run
    trained: dict[str, Any]
    evaluation: Evaluation
    sweep: tuple[TopKRow, ...] = ()

    @property
    def category(self) -> str:
        """Name of the category."""
        return self.run.category.name

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self.run.seed

    def value(self, metric: str) -> float | None:
        """Return one of ``METRICS``, in [0, 1]; None where the category has no masks."""
        pixel = self.evaluation.pixel
        if metric == "image_auroc":
            return self.evaluation.image_auroc
        if pixel is None:
            return None
        return {
            "pixel_auroc": pixel.auroc,
            "pixel_ap": pixel.ap,
            "pro": pixel.pro,
            "iap": pixel.iap,
            "iap_at_90": pixel.iap_at_recall,
        }[metric]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values without paths of this machine, for JSON."""
        found = self.evaluation.to_dict()
        found["vanished"] = ["/".join(Path(path).parts[-2:]) for path in found["vanished"]]
        return {
            "category": self.category,
            "seed": self.seed,
            "settings": list(self.run.settings),
            **self.trained,
            "metrics": {metric: self.value(metric) for metric in METRICS},
            "sweep_t": [asdict(row) for row in self.sweep],
            "evaluation": found,
        }


@contextmanager
def no_progress(label: str) -> Iterator[Advance]:
    """Show nothing."""
    yield lambda done, total, remark: None


# --- which runs


def paper_folders(data: Path, names: Sequence[str] = ()) -> list[Path]:
    """Return the folders of the named categories, or of all the paper's that are there.

    Args:
        data: Folder that holds the categories.
        names: Some of them; ``all`` for all that can be trained on, the paper's or not.

    Raises:
        DataError: If one is not there, or none was named and none of the paper's is there.
    """
    if names:
        return find_categories(data, names)
    known = paper_categories()
    found = [data / name for name in known if (data / name / "train" / GOOD).is_dir()]
    if not found:
        raise DataError(
            f"{data}: none of the paper's categories in it. Expected folders such as "
            f"{known[0]}/train/good; give the folder above them, or name a category of your own."
        )
    return found


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
        folder: Where checkpoints and their specs lie.
        data: Folder that holds the categories.
        categories: Only these; all when empty or ``all``.
        seeds: Only these; all when empty.
        nested: Look into the folders in it, too.
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


def refuse_twins(runs: Sequence[Run]) -> None:
    """Make sure that no two runs stand for the same category and seed, and setting if any.

    Raises:
        DataError: If two do; their average would count one training twice.
    """
    seen: dict[tuple[str, str, int], Run] = {}
    for run in runs:
        for setting in run.settings or ("",):
            key = (setting, run.category.name, run.seed)
            if twin := seen.get(key):
                raise DataError(
                    f"{run.checkpoint}: category {key[1]} and seed {key[2]}, as "
                    f"{twin.checkpoint}. Expected one checkpoint of each; move one away."
                )
            seen[key] = run


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
    record = spec.training.get("recipe")
    try:
        if isinstance(record, dict) and isinstance(record["seed"], int):
            return Recipe(**record)
    except (KeyError, TypeError, TrainingError):
        pass
    raise SpecError(
        f"{spec_path(path)}: its training has no recipe with a seed that this version knows. "
        "Train it again with destseg-train, or move it away."
    )


def _check_wanted(folder: Path, what: str, wanted: Sequence[Any], found: Any) -> None:
    there = sorted(set(found))
    for one in wanted:
        if one not in there:
            raise DataError(
                f"{folder}: no checkpoint of {what} {one}. Found: {', '.join(map(str, there))}. "
                "Train it, or leave it out."
            )


# --- doing them


def measure_runs(
    runs: Sequence[Run],
    *,
    device: str = "cpu",
    trainer: Trainer | None = None,
    progress: Progress = no_progress,
    notify: Callable[[str], None] = lambda message: None,
    finished: Callable[[list[Measured]], None] = lambda measured: None,
) -> list[Measured]:
    """Train the runs, if asked, and measure each as soon as it can be.

    Args:
        runs: What to measure.
        device: Where to measure.
        trainer: Makes each checkpoint first; None where they are there.
        progress: Shows how far it is.
        notify: Called with what the user should know.
        finished: Called after each run with all that were measured.

    Raises:
        DataError: If two runs are the same, or a category cannot be tested on.
        TrainingError: If a run cannot be trained.
        SpecError: If a checkpoint is not what its spec describes.
        MetricError: If maps hold NaN.
    """
    refuse_twins(runs)
    for folder in dict.fromkeys(run.category for run in runs):
        list_test(folder)  # or the first error would come after hours of training
    done: list[Measured] = []
    for run in runs:
        if trainer is not None:
            _train(run, trainer, progress, notify)
        done.append(measure_run(run, device, progress))
        finished(done)
    return done


def measure_run(run: Run, device: str = "cpu", progress: Progress = no_progress) -> Measured:
    """Measure a checkpoint on its category, with the code of destseg-evaluate.

    Raises:
        SpecError: If it is not what its spec describes.
        DataError: If the category cannot be tested on.
        MetricError: If maps hold NaN.
    """
    with load(run.checkpoint, device=device) as predictor, progress(f"scoring {run.name}") as bar:
        test = score_test_set(predictor, run.category, report=bar)
    return Measured(run, describe_run(run.checkpoint), compute_metrics(test), sweep_top_k(test))


def describe_run(checkpoint: Path) -> dict[str, Any]:
    """Return how a checkpoint was trained: textures and loop besides ``describe_training``."""
    training = ModelSpec.read(checkpoint).training
    textures = training.get("textures")
    return {
        **describe_training(checkpoint),
        "textures": textures and "/".join(Path(textures).parts[-2:]),
        "loop": training.get("loop"),
    }


def _train(run: Run, trainer: Trainer, progress: Progress, notify: Callable[[str], None]) -> None:
    with progress(f"training {run.name}") as bar:
        trainer(
            run,
            report=lambda p: bar(p.done, p.total, f"{p.phase} loss {p.loss:.4f}"),
            notify=notify,
        )
