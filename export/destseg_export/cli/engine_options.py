"""Options that say how an engine is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from destseg_export.cli.options import FILE, GPU, Command, targets

if TYPE_CHECKING:
    from destseg_export.whole_way import EngineChoice

BUILDERS = ("auto", "tensorrt", "tensorrt-rtx")

OPTIONS = (
    click.option(
        "--builder",
        type=click.Choice(BUILDERS),
        default="auto",
        help="TensorRT builds for the GPU it runs on, TensorRT-RTX also for others.",
    ),
    click.option(
        "--target",
        "targets",
        metavar="SM[,SM...]",
        callback=targets,
        help="Compute capabilities to build for ahead of time, such as sm86,sm89, without a GPU; "
        "TensorRT-RTX only.  [default: the GPU of this machine]",
    ),
    GPU,
    click.option(
        "--workspace",
        "workspace_mib",
        type=click.IntRange(1),
        metavar="MiB",
        help="GPU memory that the builder may plan for.  [default: all there is]",
    ),
    click.option(
        "--timing-cache",
        type=FILE,
        help="File that keeps the builder's measurements for the next build; TensorRT only.  "
        "[default: tensorrt.timing beside the engine]",
    ),
    click.option(
        "--refittable",
        "refit",
        is_flag=True,
        help="Build an engine that takes another category's weights: destseg-export refit.",
    ),
    click.option(
        "--tf32", is_flag=True, help="Let fp32 operators round their inputs to 10 bits, for speed."
    ),
    click.option("--rebuild", is_flag=True, help="Build although the same engine is there."),
)


def engine_options(command: Command) -> Command:
    """Add them."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def engine_choice(options: Mapping[str, Any]) -> EngineChoice:
    """Return what they say."""
    from destseg_export.whole_way import EngineChoice

    return EngineChoice(**options)


def refuse_engine_options(ctx: click.Context) -> None:
    """Refuse them where no engine is asked for."""
    names = [option.name for option in ctx.command.params if option.name in _names()]
    for name in names:
        if ctx.get_parameter_source(str(name)) == click.core.ParameterSource.COMMANDLINE:
            flag = next(p.opts[0] for p in ctx.command.params if p.name == name)
            raise click.UsageError(f"{flag} is about an engine, and --format onnx makes none.")


def _names() -> tuple[str, ...]:
    return (
        "builder",
        "targets",
        "device",
        "workspace_mib",
        "timing_cache",
        "refit",
        "tf32",
        "rebuild",
    )
