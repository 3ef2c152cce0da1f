"""Options that several commands share, and what they print alike."""

from __future__ import annotations

import re
from pathlib import Path

import click

from destseg_deploy.runtime.cpu_options import OpenVinoOptions
from destseg_deploy.spec import Threshold

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
ARTIFACT = click.argument("artifact", type=FILE)
VERSION = click.version_option(package_name="destseg-deploy")
DATA = click.option("--data", type=FOLDER, default="data", help="Folder that holds the categories.")
DEVICE = click.option(
    "--device",
    metavar="cpu|openvino|cuda[:N]|tensorrt[:N]",
    help="Where to run; openvino is a CPU, too, tensorrt is ONNX Runtime's.  [default: cpu; for an "
    "engine, cuda]",
)
THREADS = click.option(
    "--threads",
    type=click.IntRange(0),
    default=0,
    help="CPU threads of ONNX Runtime or OpenVINO; 0: its choice.",
)
OPENVINO_PRECISION = click.option(
    "--openvino-precision",
    type=click.Choice(["fp32", "bf16"]),
    help="What OpenVINO computes in; bf16 is faster where the CPU has it, and moves the scores.  "
    "[default: fp32]",
)
RATE = click.option(
    "--false-reject-rate",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.01,
    help="Share of good parts that the threshold may reject.",
)


def known_device(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Return the name of a device, or refuse it as a usage error."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise click.BadParameter(f"{value!r}: expected auto, cpu, cuda or cuda:<index>.")
    return value


PLACE = click.option(
    "--device",
    default="auto",
    metavar="auto|cpu|cuda[:N]",
    callback=known_device,
    help="Where PyTorch runs.",
)


def openvino_options(precision: str | None) -> OpenVinoOptions | None:
    """Return the options that ``--openvino-precision`` stands for; None leaves the defaults."""
    return None if precision is None else OpenVinoOptions(precision=precision)


def echo_threshold(result: Threshold | None, artifact: Path) -> None:
    """Print a threshold and its rule, or the command that sets one."""
    if result is None:
        click.echo(f"threshold   none yet: destseg-threshold {artifact} --normal FOLDER")
        return
    click.echo(f"threshold   score > {result.score:.6f}, contour at {result.pixel:.6f}")
    click.echo(f"rule        {result.rule}")
