"""The options of the commands that measure many runs, and what the commands do with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from destseg_deploy.cli.console import note, progress_on
from destseg_deploy.cli.options import DATA, FOLDER, bit_depth_option
from destseg_deploy.cli.result_option import result_option
from destseg_deploy.cli.train import (
    SEEDS,
    paper_options,
    place_of,
    place_option,
    split_training_options,
)

if TYPE_CHECKING:
    from destseg_bench.accuracy.measure import MeasuredRun
    from destseg_bench.accuracy.runs import Run
    from destseg_deploy.cluster.place import Place
    from destseg_deploy.training.recipe import Recipe, TrainingOptions

SOURCES = (
    click.option(
        "--category",
        "categories",
        multiple=True,
        help="Folder below --data; repeat it for several, or 'all'.  [default: the paper's that "
        "are there, or those of the checkpoints]",
    ),
    DATA,
    click.option("--checkpoints", type=FOLDER, help="Measure the checkpoints in this folder."),
    click.option(
        "--train-into",
        type=FOLDER,
        help="Train first, into this folder. After an interruption, the same command goes on.",
    ),
    SEEDS,
    result_option("JSON file for the results, written anew after every run."),
)

OWN = ("categories", "data", "checkpoints", "train_into", "seeds", "output")
"""Names of the values of ``SOURCES``; the other options are those of training."""


@dataclass(frozen=True)
class Request:
    """What the user asked to measure: either checkpoints, or runs to train first.

    Attributes:
        categories: Names of categories; empty for the default.
        data: Folder that holds them.
        checkpoints: Folder of checkpoints; None to train.
        train_into: Folder of the checkpoints to be trained; None to find them.
        seeds: To train with, or which checkpoints to take; all when empty.
        output: JSON file for the results.
        recipe: The recipe that the options of training name.
        training: The other options of training; their device also measures.
        textures: Folder of textures to train with; None for procedural ones.
        place: Where runs are trained and measured.
    """

    categories: tuple[str, ...]
    data: Path
    checkpoints: Path | None
    train_into: Path | None
    seeds: tuple[int, ...]
    output: Path | None
    recipe: Recipe
    training: TrainingOptions
    textures: Path | None
    place: Place

    def plan(self, folder: Path) -> list[Run]:
        """Return the runs to train into a folder; errors are ``paper_folders``'s."""
        from destseg_bench.accuracy.runs import paper_folders, plan_runs

        folders = paper_folders(self.data, self.categories)
        return plan_runs(folders, self.seeds, folder, self.recipe)

    def take(self, folder: Path, *, nested: bool = False) -> list[Run]:
        """Return the runs of the checkpoints in a folder; errors are ``take_runs``'s."""
        from destseg_bench.accuracy.runs import take_runs

        return take_runs(
            folder,
            self.data,
            categories=self.categories,
            seeds=self.seeds,
            nested=nested,
            notify=note,
        )

    def measure(
        self, runs: Sequence[Run], summarize: Callable[[Sequence[MeasuredRun]], dict[str, Any]]
    ) -> list[MeasuredRun]:
        """Measure runs, after training them if that is asked; errors are ``measure_runs``'s."""
        from destseg_bench.accuracy.measure import make_trainer, measure_runs
        from destseg_deploy.training.run import held_for, seat_of

        trainer, outputs = None, []
        if self.train_into is not None:
            outputs = [run.checkpoint for run in runs]
            trainer = make_trainer(self.recipe, self.training, self.textures, self.place)
        with held_for(self.place, outputs, self.training):
            return measure_runs(
                runs,
                summarize,
                seat=seat_of(self.training, self.place),
                trainer=trainer,
                output=self.output,
                progress=progress_on(self.place),
                notify=note,
            )


def run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of its runs; it gets them as its argument ``request``."""

    @wraps(command)
    def run(ctx: click.Context, /, **options: Any) -> None:
        options.pop("table", None)  # the ablation's own, which reads it from the context
        own = {name: options.pop(name) for name in OWN}
        place = place_of(options)
        _check_source(ctx, options)
        if own["checkpoints"] is not None and not _was_given(ctx, "seeds"):
            own["seeds"] = ()  # the option's default is for training
        recipe, training, textures = split_training_options(options)
        request = Request(**own, recipe=recipe, training=training, textures=textures, place=place)
        command(ctx, request)

    decorated: Callable[..., None] = place_option(click.pass_context(run))
    decorated = bit_depth_option(paper_options(decorated))
    for option in reversed(SOURCES):
        decorated = option(decorated)
    return decorated


def refuse_option(ctx: click.Context, name: str, reason: str) -> None:
    """Refuse an option that was given.

    Raises:
        click.UsageError: If it was.
    """
    if _was_given(ctx, name):
        raise click.UsageError(f"{_flag(ctx, name)}: {reason}")


def _check_source(ctx: click.Context, training: dict[str, Any]) -> None:
    """Make sure that runs are either found or trained, and not half of each.

    Args:
        ctx: The command as it was called.
        training: The options of training; the device also measures.

    Raises:
        click.UsageError: If neither or both are asked for, or found runs are to be trained.
    """
    if (ctx.params["checkpoints"] is None) == (ctx.params["train_into"] is None):
        raise click.UsageError("Give either --checkpoints FOLDER or --train-into FOLDER.")
    if ctx.params["checkpoints"] is not None:
        for name in sorted(set(training) - {"device"}):
            refuse_option(ctx, name, "it is for training, and --checkpoints trains nothing.")


def _was_given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT


def _flag(ctx: click.Context, name: str) -> str:
    return next(param.opts[0] for param in ctx.command.params if param.name == name)
