"""destseg-bench: what artifacts do, measured."""

from __future__ import annotations

import click

from destseg_bench.cli.ablation import ablation
from destseg_bench.cli.accuracy import accuracy
from destseg_bench.cli.agreement import agreement
from destseg_bench.cli.compare import compare
from destseg_bench.cli.cpu import cpu
from destseg_bench.cli.gpu_acceptance import gpu_acceptance
from destseg_bench.cli.latency import latency
from destseg_bench.cli.nncf import nncf
from destseg_bench.cli.report import report
from destseg_bench.cli.rewrites import rewrites
from destseg_bench.cli.systems import systems
from destseg_bench.cli.table_s4 import table_s4
from destseg_bench.cli.training import training
from destseg_deploy.console import OneLineErrorsGroup


@click.group(cls=OneLineErrorsGroup, invoke_without_command=True)
@click.version_option(package_name="destseg-deploy")
@click.pass_context
def bench(ctx: click.Context) -> None:
    """Measure models and artifacts on the machine at hand.

    Without a command: table-s4, as it is without options.
    """
    if ctx.invoked_subcommand is None:
        table_s4.main([], prog_name="destseg-bench table-s4", standalone_mode=False)


bench.add_command(ablation)
bench.add_command(accuracy)
bench.add_command(agreement)
bench.add_command(compare)
bench.add_command(cpu)
bench.add_command(gpu_acceptance)
bench.add_command(latency)
bench.add_command(nncf)
bench.add_command(report)
bench.add_command(rewrites)
bench.add_command(systems)
bench.add_command(table_s4)
bench.add_command(training)
