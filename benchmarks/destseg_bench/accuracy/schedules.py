"""How runs were trained, in a line each, and where that differs from the paper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace

from destseg_bench.accuracy.measure import MeasuredRun
from destseg_deploy.data.synthesis import PAPER_ROTATIONS
from destseg_deploy.training.recipe import PRESETS, Recipe

ALWAYS = ("decay", "holdout")
ELSEWHERE = ("name", "size", "batch_size", "student_steps", "segmentation_steps", "seed")
"""Values that a line says in another way, or that have columns of their own."""


def schedule_lines(
    measured: Sequence[MeasuredRun],
    label: Callable[[MeasuredRun], tuple[str, ...]] = lambda one: (one.category,),
) -> list[str]:
    """Return a line for each schedule, then one for each kind of textures, teacher and precision.

    Where several lines of a kind differ, each names its runs.

    Args:
        measured: The runs.
        label: The names of a run.
    """
    kinds = (_schedule, _conditions)
    return [line for describe in kinds for line in _grouped(describe, measured, label)]


def _grouped(
    describe: Callable[[MeasuredRun], str],
    measured: Sequence[MeasuredRun],
    label: Callable[[MeasuredRun], tuple[str, ...]],
) -> list[str]:
    groups: dict[str, list[str]] = {}
    for one in measured:
        groups.setdefault(describe(one), []).extend(label(one))
    if len(groups) < 2:
        return list(groups)
    return [f"{line} [{', '.join(dict.fromkeys(names))}]" for line, names in groups.items()]


def _conditions(one: MeasuredRun) -> str:
    """Return textures, teacher and precision of a run."""
    record = one.trained
    textures = record.get("textures") or "unknown"
    source = record.get("teacher", {}).get("source", "unknown")
    parts = [
        f"{textures} textures" + (" (the paper's: DTD)" if textures == "procedural" else ""),
        f"{source} teacher" + (" (the paper's: ImageNet)" if source == "random" else ""),
        f"{record.get('precision') or 'unknown precision'} on {record.get('device') or 'unknown'}",
    ]
    return f"trained with: {', '.join(parts)}"


def _schedule(one: MeasuredRun) -> str:
    """Return the schedule of a run, and the paper's where it is another."""
    recipe = one.run.recipe
    # The paper gives no rotation for a category that it does not have.
    rotation = PAPER_ROTATIONS.get(one.category, recipe.rotation)
    paper = replace(PRESETS["paper"], rotation=rotation)
    names = [field.name for field in fields(Recipe) if field.name not in ELSEWHERE]
    other = [name for name in names if getattr(recipe, name) != getattr(paper, name)]
    shown = [name for name in names if name in ALWAYS or name in other]
    done = f"schedule: {recipe.name}, {', '.join([_steps(recipe), *_values(recipe, shown)])}"
    if _steps(recipe) == _steps(paper) and not other:
        return done
    return f"{done}; the paper's: {', '.join([_steps(paper), *_values(paper, other)])}"


def _steps(recipe: Recipe) -> str:
    steps = f"{recipe.student_steps} + {recipe.segmentation_steps} steps"
    return f"{steps} of {recipe.batch_size} at {recipe.size} px"


def _values(recipe: Recipe, names: Sequence[str]) -> list[str]:
    values = [(name, getattr(recipe, name)) for name in names]
    return [
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values
    ]
