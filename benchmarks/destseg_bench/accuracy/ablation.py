"""The paper's ablations: T (Table S1), gamma (S2) and rotation of normal images (S3).

Ours and the paper's stand side by side. The paper gives only averages over all 15 categories; with
fewer, compare the change from setting to setting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from destseg_bench.accuracy.measure import METRICS, MeasuredRun
from destseg_bench.accuracy.paper import PaperValue, paper_table
from destseg_bench.accuracy.paper_tables import MISSING
from destseg_bench.accuracy.runs import Run
from destseg_bench.accuracy.schedules import schedule_lines
from destseg_bench.accuracy.spread import Average, Value, of, over_categories
from destseg_bench.table import align, cell
from destseg_deploy.errors import DataError
from destseg_deploy.evaluation.test_set import TABLE_S1
from destseg_deploy.training.recipe import Recipe


@dataclass(frozen=True)
class Setting:
    """One setting of an ablation.

    Attributes:
        name: As in the paper's table.
        value: What the ablation's option is set to, in a recipe; in S1 the pixels that make the
            score, counted at 256 x 256.
        folder: Where its checkpoints go.
    """

    name: str
    value: Any
    folder: str = ""


@dataclass(frozen=True)
class Ablation:
    """One table of the paper.

    Attributes:
        table: ``S1`` to ``S3``.
        title: What is changed.
        settings: In the paper's order.
        adopted: Name of the setting that the paper adopts.
        metrics: What is measured, some of ``METRICS``.
        option: The option of the recipe that it changes; None if the settings need no training of
            their own.
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
        ours: Metric -> our average over categories and seeds; None if no run has it.
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
        tuple(Setting(str(t), t) for t in TABLE_S1),
        adopted="100",
        metrics=("image_auroc",),
    ),
    "s2": Ablation(
        "S2",
        "gamma of the focal loss",
        tuple(Setting(str(g), float(g), f"gamma-{g}") for g in (1, 2, 4, 8)),
        adopted="4",
        option="gamma",
    ),
    "s3": Ablation(
        "S3",
        "rotation of normal images",
        (
            Setting("w/o data augmentation", "none", "rotation-none"),
            Setting("w/ data augmentation", None, "rotation-paper"),  # the paper's, by category
        ),
        adopted="w/ data augmentation",
        option="rotation",
    ),
}


def change_recipe(base: Recipe, option: str, value: Any, category: str) -> Recipe:
    """Return a category's recipe with an option changed; ``custom`` if that changes the recipe."""
    settled = base.for_category(category)
    changed = replace(base, **{option: value}).for_category(category)
    return settled if changed == settled else replace(changed, name="custom")


def plan_ablation(
    ablation: Ablation, base: Recipe, folder: Path, plan: Callable[[Path], Sequence[Run]]
) -> list[Run]:
    """Return the runs of all settings; a run that two settings share is done once.

    Args:
        ablation: The table; one with an option.
        base: The recipe that the settings change.
        folder: Each setting gets a folder in it.
        plan: Makes the runs of the base for some categories and seeds, in a folder.
    """
    runs: dict[tuple[Path, Recipe], Run] = {}
    for setting in ablation.settings:
        for run in plan(folder / setting.folder):
            seeded = replace(base, seed=run.seed)
            recipe = change_recipe(seeded, str(ablation.option), setting.value, run.category.name)
            # In S3, a category that the paper does not rotate has one recipe at both settings.
            key = (run.category, recipe)
            first = runs.get(key, replace(run, recipe=recipe, group=setting.folder))
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
    base = replace(run.recipe, rotation=None)  # so that S3's settings choose the rotation anew
    values = {
        setting.name: getattr(change_recipe(base, option, setting.value, category), option)
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


def ablation_rows(ablation: Ablation, measured: Sequence[MeasuredRun]) -> list[Row]:
    """Average each setting over the categories and seeds that every measured setting has."""
    compared = _compared(ablation, measured)
    return [_row(ablation, setting, compared) for setting in ablation.settings]


def ablation_lines(ablation: Ablation, measured: Sequence[MeasuredRun]) -> list[str]:
    """Return the table for a screen, ours beside the paper's, with notes on what was averaged."""
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


def summarize_ablation(ablation: Ablation, measured: Sequence[MeasuredRun]) -> dict[str, Any]:
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


def _compared(ablation: Ablation, measured: Sequence[MeasuredRun]) -> list[MeasuredRun]:
    """Return the runs of a category and seed that no measured setting lacks."""
    # Averages over different categories or seeds would differ even if the setting did nothing.
    cells = [
        {(one.category, one.seed) for one in measured if setting.name in one.run.settings}
        for setting in ablation.settings
    ]
    shared = set.intersection(*filter(None, cells)) if any(cells) else set()
    return [one for one in measured if (one.category, one.seed) in shared]


def _row(ablation: Ablation, setting: Setting, compared: Sequence[MeasuredRun]) -> Row:
    there = [one for one in compared if setting.name in one.run.settings]
    categories = list(dict.fromkeys(one.category for one in there))
    ours = {
        m: over_categories(there, categories, _value(ablation, setting, m))
        for m in ablation.metrics
    }
    counted = [len(found.categories) * len(found.seeds) for found in ours.values() if found]
    paper = {m: ablation.paper(setting, m) for m in ablation.metrics}
    return Row(setting, max(counted, default=0), ours, paper)


def _value(ablation: Ablation, setting: Setting, metric: str) -> Value:
    if ablation.option is not None:
        return of(metric)
    return lambda one: next((row.image_auroc for row in one.sweep if row.t == setting.value), None)


def _pair(row: Row, metric: str) -> tuple[str, str]:
    found = row.ours[metric]
    return MISSING if found is None else str(found.value), cell(row.paper[metric])


def _label(ablation: Ablation) -> Callable[[MeasuredRun], tuple[str, ...]]:
    """Name runs by the folders of their settings; in S1 each run has them all, so by category."""
    if ablation.option is None:
        return lambda one: (one.category,)
    folders = {setting.name: setting.folder for setting in ablation.settings}
    return lambda one: tuple(folders[name] for name in one.run.settings)


def _notes(ablation: Ablation, measured: Sequence[MeasuredRun], rows: Sequence[Row]) -> list[str]:
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
