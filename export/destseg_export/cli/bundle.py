"""destseg bundle."""

from __future__ import annotations

from pathlib import Path

import click

from destseg_deploy.cli.console import OneLineErrors, say
from destseg_deploy.cli.options import ARTIFACT, FILE, FOLDER, VERSION
from destseg_deploy.errors import ExportError
from destseg_export.cli.printing import report


def _known_python(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Return the version of a Python, or refuse it as a usage error."""
    from destseg_export.bundle import check_python

    try:
        if value is not None:
            check_python(value)
    except ExportError as error:
        raise click.BadParameter(str(error)) from None
    return value


@click.command(cls=OneLineErrors)
@ARTIFACT
@click.option("--output", type=FOLDER, required=True, help="Folder to write.")
@click.option(
    "--platform",
    type=click.Choice(("linux", "win_amd64")),
    default="linux",
    help="Of the line PC; both are 64-bit x86.",
)
@click.option(
    "--python-version",
    metavar="3.N",
    callback=_known_python,
    help="Of the Python on the line PC.  [default: the one that runs this]",
)
@click.option(
    "--backend",
    type=click.Choice(("onnxruntime", "openvino")),
    default="onnxruntime",
    help="What runs the artifact there.",
)
@click.option("--wheel", type=FILE, help="Wheel of this project.  [default: made from its sources]")
@VERSION
def bundle(
    artifact: Path,
    output: Path,
    platform: str,
    python_version: str | None,
    backend: str,
    wheel: Path | None,
) -> None:
    """Write a folder that installs and runs an artifact without a network.

    It holds the wheels, the artifact and its spec, the SHA-256 of each file, and an install script;
    for Linux also a Dockerfile. pip fetches the wheels, so this machine needs a network.
    """
    from destseg_export.bundle import bundle_artifact

    wheels = bundle_artifact(
        artifact,
        output,
        platform=platform,
        python=python_version,
        backend=backend,
        wheel=wheel,
        report=report,
    )
    size = sum(path.stat().st_size for path in wheels) / 2**20
    script = "install.sh" if platform == "linux" else "install.ps1"
    say(f"bundle   {output}")
    say(f"wheels   {len(wheels)}, {size:.0f} MiB")
    say(f"install  {output / script}, on the line PC")
