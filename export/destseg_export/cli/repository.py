"""destseg-export repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from destseg_deploy.cli.console import OneLineErrors, say
from destseg_deploy.cli.options import ARTIFACT, FOLDER, VERSION, given, options_of
from destseg_export.serving import Serving


@click.command("repository", cls=OneLineErrors)
@ARTIFACT
@click.argument("folder", type=FOLDER)
@options_of(Serving, heading="The server")
@VERSION
def repository_command(artifact: Path, folder: Path, **values: Any) -> None:
    """Put an artifact into the model repository of Triton or OpenVINO Model Server.

    FOLDER is what the server is given. The artifact becomes the newest version of its model. A
    server that watches the folder never sees half a model.
    """
    from destseg_export.repository import write_repository

    version = write_repository(artifact, folder, Serving(**given(Serving, values)))
    model = version.parent.name
    named = "" if model == artifact.stem else f" --server-model {model}"
    say(f"version  {version}")
    say(f"ask it   destseg predict {artifact} IMAGES --server-url http://HOST:PORT{named}")
