"""destseg-export cpp."""

from __future__ import annotations

from pathlib import Path

import click

from destseg_deploy.cli.console import OneLineErrors, say
from destseg_deploy.cli.options import FILE, FOLDER, VERSION
from destseg_export.cli.printing import report


@click.command("cpp", cls=OneLineErrors)
@click.argument("artifact", type=FILE)
@click.argument("folder", type=FOLDER)
@VERSION
def cpp_command(artifact: Path, folder: Path) -> None:
    """Write a project in C, C++ and C# around an artifact, for machines without Python.

    FOLDER gets the library's sources, the examples, and the artifact with its .json. Files there
    that are not of such a project stay.
    """
    from destseg_export.cpp_project import write_cpp_project

    written = write_cpp_project(artifact, folder, report=report)
    say(f"c++      {folder}: {len(written)} files; its README.md says how to build")
