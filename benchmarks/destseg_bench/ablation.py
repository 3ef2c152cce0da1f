"""The paper's ablations: T (Table S1), gamma (S2) and rotation of normal images (S3).

Ours and the paper's stand side by side, but the paper gives averages of all 15 categories alone;
with fewer, only the change from setting to setting compares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from destseg_bench.paper import PaperValue, paper_table
from destseg_bench.runs import METRICS, Measured, Run
from destseg_bench.schedules import schedule_lines
from destseg_bench.statistic import Average, Value, of, over_categories
from destseg_bench.tables import MISSING, align, cell
from destseg_deploy.errors import DataError
from destseg_deploy.evaluation import TABLE_S1
from destseg_deploy.recipe import Recipe


@dataclass(frozen=True)
class Setting:
    """One setting of an ablation.

    Attributes:
        name: As in the paper's table.
        folder: Where its checkpoints go.
        changes: What it changes in a recipe.
        t: Pixels that make the score, counted at 256 x 256; None for those of the model.
    """

    name: str
    folder: str = ""
    changes: tuple[tuple[str, Any], ...] = ()
    t: int | None = None


@dataclass(frozen=True)
class Ablation:
    """One table of the paper.

    Attributes:
        table: ``S1`` to ``S3``.
        title: What is changed.
        settings: In the paper's order.
        adopted: Name of the one that the paper adopts.
        metrics: What is measured, of ``METRICS``.
        option: The option of the recipe that it changes; None where nothing is trained for it.
    """

    table: str
    title: str
    settings: tuple[Setting, ...]
    adopted: str
    metrics: tuple[str, ...] = ("image_auroc", "pixel_ap", "iap")
    option: str | None = None

    def paper(self, setting: Setting, metric: str) -> PaperValue | None:
        """Return the paper's number; in S3 the settings are the rows."""
        table, name = paper_table(self.table), METRICS[metric]
        if name in table.columns:
            return table.value(name, setting.name)
        return table.value(setting.name, name)


@dataclass(frozen=True)
class Row:
    """A setting's results.

    Attributes:
        setting: The setting.
        runs: How many runs of it were averaged.
        ours: Metric -> our average over categories and seeds; None where there is none.
        paper: Metric -> the paper's.
    """

    setting: Setting
    runs: int
    ours: dict[str, Average | None]
    paper: dict[str, PaperValue | None]


ABLATIONS = {
    "s1": Ablation(
        "S1",
        "T, the pixels whose mean is the image's score",
        tuple(Setting(str(t), t=t) for t in TABLE_S1),
        adopted="100",
        metrics=("image_auroc",),
    ),
    "s2": Ablation(
        "S2",
        "gamma of the focal loss",
        tuple(Setting(str(g), f"gamma-{g}", (("gamma", float(g)),)) for g in (1, 2, 4, 8)),
        adopted="4",
        option="gamma",
    ),
    "s3": Ablation(
        "S3",
        "rotation of normal images",
        (
            Setting("w/o data augmentation", "rotation-none", (("rotation", "none"),)),
            Setting("w/ data augmentation", "rotation-paper", (("rotation", None),)),
        ),
        adopted="w/ data augmentation",
        option="rotation",
    ),
}


# --- which runs


def change_recipe(base: Recipe, setting: Setting, category: str) -> Recipe:
    """Return a category's recipe for a setting; named ``custom`` where it is not the base's."""
    settled = base.for_category(category)
    changed = replace(base, **dict(setting.changes)).for_category(category)
    return settled if changed == settled else replace(changed, name="custom")


def plan_ablation(
    ablation: Ablation,
    base: Recipe,
    folder: Path,
    plan: Callable[[Path, Recipe], Sequence[Run]],
) -> list[Run]:
    """Return the runs of all settings; one that is the same in two settings is done once.

    Args:
        ablation: The table.
        base: The recipe that the settings change.
        folder: Each setting gets a folder in it.
        plan: Makes runs from a folder and a recipe: ``train_runs.plan_runs`` for some categories
            and seeds.
    """
    runs: dict[tuple[Path, Recipe], Run] = {}
    for setting in ablation.settings:
        for run in plan(folder / setting.folder, base):
            seeded = replace(base, seed=run.seed)
            recipe = change_recipe(seeded, setting, run.category.name)
            key = (run.category, recipe)
            new = replace(run, recipe=recipe, group=setting.folder)
            first = runs.get(key, new)
            runs[key] = replace(first, settings=(*first.settings, setting.name))
    return list(runs.values())


def sort_runs(ablation: Ablation, runs: Sequence[Run]) -> list[Run]:
    """Return checkpoints that were found, each with the settings that it belongs to.

    Raises:
        DataError: If one belongs to none.
    """
    if ablation.option is None:
        return [replace(run, settings=tuple(s.name for s in ablation.settings)) for run in runs]
    return [_with_settings(ablation, ablation.option, run) for run in runs]


def _with_settings(ablation: Ablation, option: str, run: Run) -> Run:
    """Return a run with the settings whose recipe has its value of the option."""
    category, found = run.category.name, getattr(run.recipe, option)
    base = replace(run.recipe, rotation=None)
    values = {
        setting.name: getattr(change_recipe(base, setting, category), option)
        for setting in ablation.settings
    }
    names = tuple(name for name, value in values.items() if value == found)
    if not names:
        expected = ", ".join(map(_plain, values.values()))
        raise DataError(
            f"{run.checkpoint}: trained with {option} {_plain(found)}, Table {ablation.table} "
            f"has {expected} for {category}. Move it away, or leave out its category."
        )
    return replace(run, group=run.checkpoint.parent.name, settings=names)


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


# --- what came out


def ablation_rows(ablation: Ablation, measured: Sequence[Measured]) -> list[Row]:
    """Average each setting over the categories and seeds that every measured setting has."""
    compared = _compared(ablation, measured)
    return [_row(ablation, setting, compared) for setting in ablation.settings]


def ablation_lines(ablation: Ablation, measured: Sequence[Measured]) -> list[str]:
    """Return the table for a screen, ours beside the paper's, and what is to be known of it."""
    rows = ablation_rows(ablation, measured)
    pairs = [title for m in ablation.metrics for title in (METRICS[m], "(paper)")]
    lines = [["setting", "runs", *pairs]]
    for row in rows:
        adopted = " (adopted)" if row.setting.name == ablation.adopted else ""
        values = [text for m in ablation.metrics for text in _pair(row, m)]
        lines.append([f"{row.setting.name}{adopted}", str(row.runs), *values])
    title = f"Table {ablation.table} (%): {ablation.title}"
    schedules = schedule_lines(measured, _label(ablation))
    return [*schedules, "", title, *align(lines), *_notes(ablation, measured, rows)]


def summarize_ablation(ablation: Ablation, measured: Sequence[Measured]) -> dict[str, Any]:
    """Return table, settings and averages, ready for JSON; ours in [0, 1], the paper's in %."""
    return {
        "table": ablation.table,
        "schedules": schedule_lines(measured, _label(ablation)),
        "settings": [
            {
                "setting": row.setting.name,
                "runs": row.runs,
                "ours": {m: _plain_dict(found) for m, found in row.ours.items()},
                "paper": {m: _plain_dict(value) for m, value in row.paper.items()},
            }
            for row in ablation_rows(ablation, measured)
        ],
    }


def _compared(ablation: Ablation, measured: Sequence[Measured]) -> list[Measured]:
    """Return the runs of a category and seed that no measured setting lacks."""
    cells = [
        {(one.category, one.seed) for one in measured if setting.name in one.run.settings}
        for setting in ablation.settings
    ]
    shared = set.intersection(*filter(None, cells)) if any(cells) else set()
    return [one for one in measured if (one.category, one.seed) in shared]


def _row(ablation: Ablation, setting: Setting, compared: Sequence[Measured]) -> Row:
    there = [one for one in compared if setting.name in one.run.settings]
    categories = list(dict.fromkeys(one.category for one in there))
    ours = {m: over_categories(there, categories, _value(setting, m)) for m in ablation.metrics}
    counted = [len(found.categories) * len(found.seeds) for found in ours.values() if found]
    paper = {m: ablation.paper(setting, m) for m in ablation.metrics}
    return Row(setting, max(counted, default=0), ours, paper)


def _value(setting: Setting, metric: str) -> Value:
    if setting.t is None:
        return of(metric)
    return lambda one: next((row.image_auroc for row in one.sweep if row.t == setting.t), None)


def _pair(row: Row, metric: str) -> tuple[str, str]:
    found = row.ours[metric]
    return MISSING if found is None else str(found.value), cell(row.paper[metric])


def _label(ablation: Ablation) -> Callable[[Measured], tuple[str, ...]]:
    """Name runs by the folders of their settings; in S1 each run has them all, so by category."""
    if ablation.option is None:
        return lambda one: (one.category,)
    folders = {setting.name: setting.folder for setting in ablation.settings}
    return lambda one: tuple(folders[name] for name in one.run.settings)


def _notes(ablation: Ablation, measured: Sequence[Measured], rows: Sequence[Row]) -> list[str]:
    averages = [found for row in rows for found in row.ours.values() if found is not None]
    if not averages:
        return ["no category and seed was measured at every setting: nothing to compare"]
    names, seeds = averages[0].categories, averages[0].seeds
    which = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    notes = [f"ours: average over {', '.join(names)}, {which}"]
    known = paper_table("S5").categories
    if set(names) != set(known):
        notes.append(
            f"the paper's: average over all {len(known)} categories of MVTec AD; with other ones, "
            "compare the settings with each other and not ours with the paper's"
        )
    if left := len(measured) - len(_compared(ablation, measured)):
        notes.append(f"left out: {left} runs of a category or seed that another setting lacks")
    return notes


def _plain_dict(value: Average | PaperValue | None) -> dict[str, Any] | None:
    return None if value is None else asdict(value)
