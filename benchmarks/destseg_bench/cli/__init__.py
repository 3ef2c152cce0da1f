"""destseg-bench: speed and accuracy of models and artifacts, measured."""

from __future__ import annotations

import click

from destseg_bench.cli.ablation import ablation
from destseg_bench.cli.accuracy import accuracy
from destseg_bench.cli.agreement import agreement
from destseg_bench.cli.compare import compare
from destseg_bench.cli.cpu import cpu, layers, nncf
from destseg_bench.cli.gpu import gpu, pack_command, random_model, rates, unpack_command
from destseg_bench.cli.latency import latency
from destseg_bench.cli.report import report
from destseg_bench.cli.rewrites import rewrites
from destseg_bench.cli.systems import systems
from destseg_bench.cli.table_s4 import table_s4
from destseg_bench.cli.training import training
from destseg_deploy.cli.console import OneLineErrorsGroup
from destseg_deploy.cli.options import VERSION


@click.group(cls=OneLineErrorsGroup, invoke_without_command=True)
@VERSION
@click.pass_context
def bench(ctx: click.Context) -> None:
    """Measure models and artifacts on the machine at hand."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


COMMANDS = (
    ablation,
    accuracy,
    agreement,
    compare,
    cpu,
    gpu,
    latency,
    layers,
    nncf,
    pack_command,
    random_model,
    rates,
    report,
    rewrites,
    systems,
    table_s4,
    training,
    unpack_command,
)
for command in COMMANDS:
    bench.add_command(command)
