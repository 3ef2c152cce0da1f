"""How the commands are told their data sets: a folder or list, or good and NG folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from destseg_deploy.cli.console import is_typed
from destseg_deploy.cli.named_path import NamedPath
from destseg_deploy.cli.options import DATA, FOLDER

if TYPE_CHECKING:
    from destseg_deploy.data.datasets import DataSet

DATASET = NamedPath(path_type=Path)
"""A folder of images, or a list."""

NG = click.option(
    "--ng", type=DATASET, multiple=True, help="NG parts beside those of --good; repeatable."
)


@dataclass(frozen=True)
class Labelled:
    """What a command line says about the labelled images to measure on.

    Attributes:
        source: A data set: a folder or list.
        good: Good parts.
        ng: NG parts.
        masks: Masks of the NG parts.
        category: Name of a folder below ``data``.
        data: Folder of categories.
    """

    source: Path | None
    good: Path | None
    ng: tuple[Path, ...]
    masks: Path | None
    category: str | None
    data: Path

    def open(self, category: str) -> DataSet:
        """Return the data set.

        Args:
            category: Name of the category where the command line names no data.

        Raises:
            DataError: If there is no such folder or list.
        """
        from destseg_deploy.data.datasets import (
            has_good_parts,
            of_folders,
            open_dataset,
            with_masks,
        )
        from destseg_deploy.data.mvtec import find_category

        if self.good is not None:
            found = of_folders(self.good, self.ng)
        elif self.source is not None:
            found = open_dataset(self.source)
        else:
            name = category if self.category is None else self.category
            below = self.category is not None or (self.data / name).is_dir()
            if below or not has_good_parts(self.data):
                found = open_dataset(find_category(self.data, name))
            else:  # --data names the category itself
                found = open_dataset(self.data)
        return found if self.masks is None else with_masks(found, self.masks)

    def check(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            click.UsageError: With what to drop.
        """
        given = [self.source is not None, self.good is not None, self.category is not None]
        if sum(given) > 1:
            raise click.UsageError(
                "Give one of a folder or list, --good with --ng, and --category."
            )
        if (self.good is None) != (not self.ng):
            raise click.UsageError("--good and --ng go together: a folder of each.")
        if is_typed("data") and (self.source is not None or self.good is not None):
            raise click.UsageError(
                "--data goes with --category, and the images are named by FOLDER or --good. Drop "
                "--data."
            )


def labelled_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what names labelled images; the command gets them as its argument ``labelled``."""

    @wraps(command)
    def run(**values: Any) -> Any:
        chosen = Labelled(**{one.name: values.pop(one.name) for one in fields(Labelled)})
        chosen.check()
        return command(labelled=chosen, **values)

    added: Callable[..., Any] = DATA(run)
    for option in (
        click.option("--category", help="Folder below --data.  [default: the artifact's category]"),
        click.option("--masks", type=FOLDER, help="Masks of NG parts: the same names, any depth."),
        NG,
        click.option("--good", type=DATASET, help="Good parts that were not trained on."),
        click.argument("source", metavar="[FOLDER|LIST]", required=False, type=DATASET),
    ):
        added = option(added)
    return added
