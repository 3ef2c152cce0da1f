"""Options that several subcommands share, how they are read, and how an engine is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

import click

from destseg_deploy.cli.data_options import DATASET
from destseg_deploy.cli.options import (
    FOLDER,
    bit_depth_option,
    given,
    given_flag,
    options_of,
    read_device,
)
from destseg_deploy.cli.result_option import result_option
from destseg_deploy.errors import DestsegError
from destseg_deploy.spec import BatchRange, RegionSpec, is_number
from destseg_export.engine.options import BuildOptions
from destseg_export.engine.site import read_targets
from destseg_export.int8.networks import NETWORKS

if TYPE_CHECKING:
    from destseg_export.parity import Verification

Values = ParamSpec("Values")
Made = TypeVar("Made")
Command = TypeVar("Command", bound=Callable[..., Any])


def size(text: str) -> tuple[int, int]:
    """Read ``1024x1280`` as (1024, 1280), height first."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(is_number(part) and int(part) > 0 for part in parts):
        raise click.BadParameter(f"{text!r}: expected HEIGHTxWIDTH such as 1024x1280.")
    return int(parts[0]), int(parts[1])


def batch(text: str) -> BatchRange:
    """Read ``1:4:16``, or ``4`` for always 4."""
    return checked(BatchRange.parse)(text)


def region(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> RegionSpec | Path | None:
    """Read ``100,50,640,480`` as a rectangle, and anything else as the path of a mask."""
    try:
        return None if value is None else RegionSpec.named(value)
    except DestsegError as error:
        raise click.BadParameter(str(error)) from error


def targets(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Read ``sm86,sm89`` as compute capabilities."""
    try:
        return read_targets(value.split(",")) if value is not None else ()
    except DestsegError as error:
        raise click.BadParameter(str(error)) from error


def cuda(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Return the name of an NVIDIA GPU, or refuse it as a usage error."""
    device = read_device(ctx, param, value)
    if device is None or device.kind != "cuda":
        raise click.BadParameter(f"{value!r}: expected cuda or cuda:<index>.")
    return value


VERIFY_IMAGES = click.option(
    "--verify-images",
    type=FOLDER,
    help="Images to compare on.  [default: the training data's test images, or rendered ones]",
)
OUTPUT = result_option("JSON file for the result.")
GPU = click.option(
    "--device", default="cuda", metavar="cuda[:N]", callback=cuda, help="GPU that runs the engine."
)
MAP_LIMIT = click.option(
    "--max-map-difference",
    type=float,
    help="Largest difference of a map's pixel from PyTorch's.  [default: 1e-4 for fp32, 0.01 for "
    "fp16, 0.1 for bf16]",
)
SCORE_LIMIT = click.option(
    "--max-score-difference",
    type=float,
    help="Largest difference of a score from PyTorch's.  [default: 1e-4 for fp32, 0.005 for fp16, "
    "0.05 for bf16]",
)


GOOD = click.option(
    "--good",
    "--normal",
    "normal",
    type=DATASET,
    required=True,
    help="Images of good parts to calibrate on: a folder or list.",
)
INT8_SCHEMES = {"cpu": "u8", "tensorrt": "s8"}
SCHEME = click.option(
    "--for",
    "scheme",
    type=click.Choice(list(INT8_SCHEMES)),
    default="cpu",
    show_default=True,
    help="Where the file runs: on a CPU or in TensorRT. Their INT8 formats differ.",
)
PARTS = click.option(
    "--part",
    "parts",
    multiple=True,
    type=click.Choice(NETWORKS),
    default=NETWORKS,
    help="What may be quantised; repeatable.",
)
CALIBRATION_IMAGES = click.option(
    "--images", type=click.IntRange(min=8), default=32, show_default=True, help="To calibrate on."
)
TEXTURES = click.option("--textures", type=FOLDER, help="Textures of the synthetic anomalies.")


CUT = (
    click.option(
        "--scale",
        type=float,
        metavar="F",
        help="Pixels of the network per pixel of the frame: the frame is scaled by F and cut into "
        "tiles of the network's size.  [default: that of the training, or no tiles]",
    ),
    click.option(
        "--overlap",
        type=int,
        metavar="N",
        help="Pixels of the network that neighbouring tiles share at least.  [default: that of "
        "the training, or a quarter of a tile]",
    ),
    click.option(
        "--tile-batch",
        type=int,
        metavar="N",
        help="Tiles that the network takes at a time, which bounds the memory.  [default: all]",
    ),
    click.option(
        "--roi",
        callback=region,
        metavar="X,Y,W,H|MASK.png",
        help="What is inspected: a rectangle in pixels of the frame, or a mask of its size, 0 "
        "outside.  [default: that of the training, or all of the frame]",
    ),
)


def images_in(folder: Path | None) -> list[Path] | None:
    """Return the images of a folder, or None where no folder was given.

    Raises:
        DataError: If the folder has no images.
    """
    from destseg_deploy.data.finding import expand

    return None if folder is None else expand([str(folder)])


def verified(command: Command) -> Command:
    """Add the options of a comparison with PyTorch, and the depth of its images."""
    command = cast(Command, bit_depth_option(command))
    for option in (SCORE_LIMIT, MAP_LIMIT, VERIFY_IMAGES):
        command = option(command)
    return command


def cut_options(command: Command) -> Command:
    """Add the options that say how frames are cut; see ``cutting.Cut``."""
    for option in reversed(CUT):
        command = option(command)
    return command


def engine_options(command: Command) -> Command:
    """Add the options that say how an engine is built; see ``BuildOptions``."""
    return options_of(BuildOptions, heading="Options of engines")(command)


def build_options(form: str, values: dict[str, Any]) -> BuildOptions:
    """Return how an engine is built, as the command line says.

    Args:
        form: ``--format``.
        values: The parameters of ``engine_options``, by their names.

    Raises:
        click.UsageError: If a value is refused, or no engine is asked for.
    """
    flag = given_flag(BuildOptions, values)
    if form == "onnx" and flag is not None:
        raise click.UsageError(f"{flag} is about an engine, and --format onnx makes none.")
    return checked(BuildOptions)(**given(BuildOptions, values))


def verification(values: Mapping[str, Any]) -> Verification:
    """Return what an artifact is compared on and how closely; see ``verified``.

    Raises:
        click.UsageError: If a limit is refused.
        DataError: If the folder has no images.
    """
    from destseg_export.parity import Verification

    limits = values["max_map_difference"], values["max_score_difference"]
    checked(Verification)(None, *limits)  # before a folder is searched
    return Verification(images_in(values["verify_images"]), *limits)


def checked(make: Callable[Values, Made]) -> Callable[Values, Made]:
    """Return a function that reports what ``make`` refuses as a usage error."""

    def run(*args: Values.args, **kwargs: Values.kwargs) -> Made:
        try:
            return make(*args, **kwargs)
        except DestsegError as error:
            raise click.UsageError(str(error)) from error

    return run
