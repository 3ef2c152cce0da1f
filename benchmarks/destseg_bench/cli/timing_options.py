"""The options that commands which time artifacts share."""

from __future__ import annotations

import click

from destseg_deploy.cli.training_options import counts

BATCHES = click.option(
    "--batch",
    "batches",
    default="1",
    metavar="N[,N...]",
    callback=counts,
    help="Images per call; one table for each.",
)
