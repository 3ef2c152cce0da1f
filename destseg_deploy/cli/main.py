"""destseg: one entry to the commands of all three packages.

The commands are found by entry points of the group ``destseg.commands``, so that this package
knows neither the exporter nor the benchmark. Only the module of the chosen command is imported.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points

import click

from destseg_deploy.cli.config import GROUP
from destseg_deploy.cli.console import OneLineErrorsGroup
from destseg_deploy.cli.extras import missing_package
from destseg_deploy.cli.options import VERSION

ORDER = ("sample", "train", "export", "evaluate", "threshold", "predict", "report", "page")
"""The commands in the order of the work; the others follow by name."""


@cache
def _found() -> dict[str, EntryPoint]:
    return {one.name: one for one in entry_points(group=GROUP)}


def _place(name: str) -> tuple[int, str]:
    return ORDER.index(name) if name in ORDER else len(ORDER), name


class Installed(OneLineErrorsGroup):
    """A group whose commands are the installed ones."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return their names; nothing is imported."""
        return sorted(_found(), key=_place)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command, or return None where there is none of that name.

        Raises:
            ModuleNotFoundError: If a package that its module needs is not installed.
        """
        entry = _found().get(cmd_name)
        command: click.Command | None = None if entry is None else entry.load()
        return command

    def summary(self, ctx: click.Context, name: str) -> str:
        """Return what a command does, or which package it lacks."""
        try:
            return super().summary(ctx, name)
        except ModuleNotFoundError as error:
            return missing_package(error) or str(error)


@click.group("destseg", cls=Installed, invoke_without_command=True)
@VERSION
@click.pass_context
def main(ctx: click.Context) -> None:
    """Train, export, measure and run DeSTSeg defect detection.

    A first result from a folder of good parts: destseg train FOLDER --preset quick
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
