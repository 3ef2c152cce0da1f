"""destseg-bench: what artifacts do, measured."""

from __future__ import annotations

import click

from destseg_bench.cli.ablation import ablation
from destseg_bench.cli.accuracy import accuracy
from destseg_bench.cli.agreement import agreement
from destseg_bench.cli.cpu import cpu
from destseg_bench.cli.gpu_acceptance import gpu_acceptance
from destseg_bench.cli.latency import latency
from destseg_bench.cli.training import training
from destseg_deploy.console import OneLineErrorsGroup


@click.group(cls=OneLineErrorsGroup)
@click.version_option(package_name="destseg-deploy")
def bench() -> None:
    """Measure artifacts on the machine at hand."""


bench.add_command(ablation)
bench.add_command(accuracy)
bench.add_command(agreement)
bench.add_command(cpu)
bench.add_command(gpu_acceptance)
bench.add_command(latency)
bench.add_command(training)
