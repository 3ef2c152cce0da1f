"""destseg bundle."""

from __future__ import annotations

from pathlib import Path

import click

from destseg_deploy.cli.console import OneLineErrors, say
from destseg_deploy.cli.options import ARTIFACT, VERSION
from destseg_export.cli.options import FILE, FOLDER
from destseg_export.cli.printing import report


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
