"""destseg-bench gpu, and the small commands that are steps of it: rates, random-model, pack."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from destseg_bench.gpu_run import Outcome, run_steps
from destseg_bench.gpu_steps import PROFILES, Site, list_steps
from destseg_deploy.cli.console import OneLineErrors
from destseg_deploy.cli.options import FILE, FOLDER, known_device
from destseg_deploy.cli.result_option import result_option
from destseg_deploy.environment import COMMIT

DEVICE = click.option(
    "--device",
    default="cuda",
    metavar="cpu|cuda[:N]",
    callback=known_device,
    help="Where to run. cpu takes a small stand-in for each step.",
)


@click.command(cls=OneLineErrors)
@click.option("--profile", type=click.Choice(PROFILES), default="rehearse", help="What to run.")
@click.option(
    "--budget",
    type=click.FloatRange(10),
    default=300.0,
    metavar="SECONDS",
    help="For all steps together; no step takes more than what is left of it.",
)
@click.option("--output", type=FOLDER, required=True, help="Folder for everything it writes.")
@click.option("--commit", help="Commit of these files, where their repository is not here.")
@click.option("--data", type=FOLDER, help="Folder that holds the category.  [default: a drawn one]")
@click.option("--category", help="Name of the category.  [default: screw with --data]")
@click.option("--teacher-weights", type=FILE, help="ImageNet ResNet18.  [default: random weights]")
@click.option("--textures", type=FOLDER, help="Texture images; built-in ones if left out.")
@click.option("--workers", type=click.IntRange(0), default=14, help="Of the reference's loop.")
@DEVICE
@click.option("--list", "listed", is_flag=True, help="Print the commands and run none.")
def gpu(
    profile: str, budget: float, output: Path, commit: str | None, listed: bool, **places: Any
) -> None:
    """Measure everything that a bare GPU host must show, within a budget of time.

    It needs no installation: PYTHONPATH=.:export:benchmarks python3 -m destseg_bench gpu ...
    Rehearse on the CPU first (--device cpu), then on the GPU, then record. Each step is a process;
    what it has written counts even where it is stopped. The exit status is 1 when a step is NG.
    """
    _check_places(**places)
    root = Path(__file__).resolve().parents[3]
    tests = root if (root / "tests").is_dir() else None
    # The steps run where this was called, and what they write is named from there.
    site = Site(output.absolute(), tests=tests, **places)
    steps = list_steps(profile, site)
    if listed:
        click.echo("\n".join(" ".join(step.command) for step in steps))
        return
    from destseg_deploy.training.precision import pick_device

    pick_device(site.device)  # refused at once, since every step would fail on it
    if commit is not None:
        os.environ[COMMIT] = commit
    paths = filter(None, (str(root), *sys.path))
    outcomes = run_steps(
        steps,
        site.output,
        budget,
        environment={**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))},
        report=_tell,
        profile=profile,
        device=site.device,
    )
    _show(outcomes)
    if failed := [one.name for one in outcomes if one.verdict == "NG"]:
        where = site.output / "gpu.json"
        raise click.ClickException(f"NG: {', '.join(failed)}. {where} holds what they printed.")


@click.command(cls=OneLineErrors)
@DEVICE
@result_option("JSON file for the result.")
def rates(device: str, output: Path | None) -> None:
    """Measure how fast a device multiplies matrices and moves bytes: the bounds of any network."""
    from destseg_bench.report.speed_tables import rates as tables
    from destseg_bench.results import start_result, write_result
    from destseg_bench.speed.matrix_rate import measure_rates

    result = start_result("rates", device=device)
    result["rows"] = [measure_rates(device)]
    write_result(output, result)
    for table in tables(result):
        click.echo(table.text())


@click.command("random-model", cls=OneLineErrors)
@click.option("--output", type=FOLDER, required=True, help="Folder for the model and its category.")
@click.option("--size", type=click.IntRange(64), default=256, help="Image size of the network.")
def random_model(output: Path, size: int) -> None:
    """Write a checkpoint with random weights, and a drawn category for it, to measure speed on."""
    from destseg_bench.gpu_model import write_random_model

    for path in write_random_model(output, size):
        click.echo(path)


@click.command("pack", cls=OneLineErrors)
@click.argument("checkpoint", type=FILE)
@click.option("--output", type=FOLDER, required=True, help="Folder for the parts.")
def pack_command(checkpoint: Path, output: Path) -> None:
    """Write a checkpoint in parts of 15 MiB: half weights, without the teacher."""
    from destseg_bench.gpu_parts import pack

    for path in pack(checkpoint, output):
        click.echo(path)


@click.command("unpack", cls=OneLineErrors)
@click.argument("spec", type=FILE)
@click.option("--teacher-weights", type=FILE, help="The teacher's, as destseg-train's.")
@click.option("--output", type=FILE, required=True, help="The checkpoint to write.")
def unpack_command(spec: Path, teacher_weights: Path | None, output: Path) -> None:
    """Put a packed checkpoint together again; SPEC is the .json beside its parts."""
    from destseg_bench.gpu_parts import unpack

    click.echo(unpack(spec, teacher_weights, output))


def _check_places(
    data: Path | None,
    category: str | None,
    teacher_weights: Path | None,
    textures: Path | None,
    **others: Any,
) -> None:
    """Refuse what the first step that needs it would fail on, minutes later.

    Raises:
        click.UsageError: If something named is not there.
    """
    if category is not None and data is None:
        raise click.UsageError(f"--category {category}: it needs --data, the folder that holds it.")
    named = {"--data": data and data / (category or "screw"), "--textures": textures}
    named["--teacher-weights"] = teacher_weights
    for option, path in named.items():
        if path is not None and not path.exists():
            raise click.UsageError(f"{option}: {path} is not there. Name one that is.")


def _tell(one: Outcome) -> None:
    click.echo(
        f"{one.verdict:<8} {one.seconds:6.1f} s  {one.name}  {one.reason}".rstrip(), err=True
    )


def _show(outcomes: list[Outcome]) -> None:
    """Print a table of the steps, and the tables of what they measured."""
    from destseg_bench.report.tables import tables_of
    from destseg_bench.table import Table, column
    from destseg_deploy.errors import DataError

    columns = (
        column("step", "name"),
        column("verdict", "verdict"),
        column("s", "seconds", 1),
        column("reason", "reason"),
    )
    for one in outcomes:
        try:
            tables = tables_of(one.result, one.name) if one.result else []
        except DataError:  # a step that was stopped may not have all that a table needs
            continue
        click.echo("\n\n".join(table.text() for table in tables) + "\n" * bool(tables))
    click.echo(Table.of("Steps", columns, [vars(one) for one in outcomes]).text())
