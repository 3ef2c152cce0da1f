"""destseg-page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from destseg_deploy.cli.console import OneLineErrors, say
from destseg_deploy.cli.options import ARTIFACT, VERSION, bit_depth_option, runtime_options
from destseg_deploy.loading import load


@click.command(cls=OneLineErrors)
@ARTIFACT
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, help="TCP port; 0 takes a free one."
)
@click.option(
    "--max-mib", type=click.IntRange(1, 1024), default=64, help="Largest request, in MiB."
)
@bit_depth_option
@runtime_options
@VERSION
def page(artifact: Path, port: int, max_mib: int, **how: Any) -> None:
    """Serve a page on this machine: drop images, see verdicts, move and save the threshold.

    Only programs on this machine can reach it. The same server answers KServe v2: POST
    /v2/models/NAME/infer, where NAME is the artifact's file name without its suffix, GET
    /v2/models/NAME and GET /v2/health/ready. Ctrl-C ends it.
    """
    from destseg_deploy.serving.server import serve
    from destseg_deploy.serving.service import Service

    with load(artifact, **how) as predictor:
        serve(
            Service(predictor, artifact),
            port=port,
            limit=max_mib * 2**20,
            ready=lambda url: say(f"{url}  (Ctrl-C ends it)"),
        )
