"""Options that several commands share; those of a dataclass are made from its fields."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import click

from destseg_deploy import environment
from destseg_deploy.cli.console import say
from destseg_deploy.cli.named_path import NamedPath
from destseg_deploy.device import Device
from destseg_deploy.errors import BackendError, DestsegError
from destseg_deploy.loading import FITS, choose_backend
from destseg_deploy.options import BACKENDS, MOST_THREADS, choices_of
from destseg_deploy.spec import Threshold, is_number
from destseg_deploy.tuning import tuned

Command = TypeVar("Command", bound=Callable[..., Any])


FOLDER = NamedPath(path_type=Path, file_okay=False)
FILE = NamedPath(path_type=Path, dir_okay=False)
ARTIFACT = click.argument("artifact", type=FILE)
VERSION = click.version_option(environment.VERSION)
DATA = click.option("--data", type=FOLDER, default="data", help="Folder that holds the categories.")
THREADS = click.option(
    "--threads",
    type=click.IntRange(0, MOST_THREADS),
    default=0,
    help="CPU threads; 0: the back end's choice.",
)
RATE = click.option(
    "--false-reject-rate",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.01,
    help="Share of good parts that the threshold may reject.",
)


def bit_depth_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--bit-depth``; it counts for all 16-bit images that the command reads."""

    @functools.wraps(command)
    def run(*args: Any, bit_depth: str | None, **values: Any) -> Any:
        from destseg_deploy.data.images import assume_bit_depth

        with assume_bit_depth(None if bit_depth is None else int(bit_depth)):
            return command(*args, **values)

    return click.option(
        "--bit-depth",
        type=click.Choice(("8", "10", "12", "14", "16")),
        help="Bits of the camera whose pixels are in 16-bit files.  [default: 16 where a value is "
        "16384 or more; other files are refused, unless their values tell 16 bits]",
    )(run)


PREFIXES = {
    "onnxruntime": "ort",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "pytorch": "torch",
    "server": "server",
}
"""Back end -> how the names of its options begin."""


def read_device(ctx: click.Context, param: click.Parameter, value: str | None) -> Device | None:
    """Return the device that a text names, or refuse it as a usage error."""
    try:
        return None if value is None else Device.parse(value)
    except BackendError as error:
        raise click.BadParameter(str(error)) from error


def known_device(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Return the name of a device of PyTorch, or refuse it as a usage error."""
    device = None if value == "auto" else read_device(ctx, param, value)
    if device is not None and device.kind == "gpu":
        raise click.BadParameter(f"{value!r}: expected auto, cpu, cuda or cuda:<index>.")
    return value


PLACE = click.option(
    "--device",
    default="auto",
    metavar="auto|cpu|cuda[:N]",
    callback=known_device,
    help="Where PyTorch runs.",
)


class HeadedOption(click.Option):
    """An option that ``-h`` lists under a heading of its own, after the command's."""

    def __init__(self, *args: Any, heading: str, **kwargs: Any) -> None:
        """Keep the heading."""
        super().__init__(*args, **kwargs)
        self.heading = heading


def options_of(
    kind: type, *, heading: str, prefix: str = "", skip: Sequence[str] = ()
) -> Callable[[Command], Command]:
    """Return a decorator that adds an option for each field of a dataclass.

    A command gets None for what was not given; see ``given``.

    Args:
        kind: A dataclass whose fields were made with ``destseg_deploy.options.option``.
        heading: Under which ``-h`` lists them.
        prefix: What their names begin with, such as ``ort`` for ``--ort-arena``.
        skip: Fields that get no option.
    """
    hints = get_type_hints(kind)

    def add(command: Command) -> Command:
        for one in reversed(fields(kind)):
            if one.name not in skip:
                command = _option(one, hints[one.name], prefix, heading)(command)
        return command

    return add


def given(kind: type, values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the fields of a dataclass that were given on the command line."""
    named = {one.name: values.get(_destination(one, prefix)) for one in fields(kind)}
    return {name: value for name, value in named.items() if value is not None}


def given_flag(kind: type, values: Mapping[str, Any], prefix: str = "") -> str | None:
    """Return the first option of a dataclass that was given, such as ``--ort-arena``, or None."""
    named = given(kind, values, prefix)
    return next((_flag(one, prefix) for one in fields(kind) if one.name in named), None)


def runtime_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what says how an artifact is run: back end, device, and the options of each back end.

    The command takes an argument ``artifact``, and gets the keywords ``backend``, ``device`` and
    ``options`` of ``destseg_deploy.load``.
    """

    @functools.wraps(command)
    def run(artifact: Path, **values: Any) -> Any:
        how = read_runtime_options(artifact, values)
        names = {"threads", "tuned"} | {
            _destination(one, prefix)
            for backend, prefix in PREFIXES.items()
            for one in fields(FITS[backend].options)
        }
        rest = {name: value for name, value in values.items() if name not in names}
        return command(artifact=artifact, **{**rest, **how})

    added: Callable[..., Any] = run
    for backend, prefix in reversed(PREFIXES.items()):
        kind = FITS[backend].options
        suffixes = ", ".join(FITS[backend].suffixes)
        heading = f"Options of back end {backend} ({suffixes})"
        added = options_of(kind, heading=heading, prefix=prefix, skip=("threads",))(added)
    added = THREADS(added)
    added = click.option(
        "--tuned",
        is_flag=True,
        help="Run it as destseg tune found fastest on this PC, in place of the options above and "
        "below.",
    )(added)
    added = click.option(
        "--device",
        metavar="cpu|cuda[:N]|gpu[:N]",
        callback=read_device,
        help="Where to run: CPU, NVIDIA GPU, or Intel GPU with OpenVINO.  [default: cpu; for an "
        "engine, cuda]",
    )(added)
    return click.option(
        "--backend",
        type=click.Choice(BACKENDS),
        help="What runs it.  [default: by the file's suffix and the other options]",
    )(added)


def read_runtime_options(artifact: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords of ``load`` that a command line stands for.

    Args:
        artifact: The file to run.
        values: Parameters of a command with ``runtime_options``, by their names.

    Raises:
        click.UsageError: If an option is for another back end than the one that runs, or has a
            value that its back end refuses.
        BackendError: If file, back end and device do not fit together, or the file is not tuned.
    """
    chosen = {name: given(FITS[name].options, values, PREFIXES[name]) for name in BACKENDS}
    if values["tuned"]:
        _refuse_beside_tuned(values, chosen)
        backend, options = tuned(artifact)
        return {"backend": backend, "device": None, "options": options}
    asked = [name for name in BACKENDS if chosen[name]]
    device, backend = values["device"], values["backend"]
    # Options of one back end choose it, as its dataclass does in Python; of two, one is wrong.
    wanted = backend or (asked[0] if asked and _runs(asked[0], artifact) else None)
    backend = choose_backend(artifact, wanted, device, None)
    for name in asked:
        if name != backend:
            flag = given_flag(FITS[name].options, values, PREFIXES[name])
            raise click.UsageError(
                f"{flag} is for back end {name}, and {artifact.name} runs with {backend}. Drop it, "
                f"or pass --backend {name} and a file that it runs."
            )
    kind, named = FITS[backend].options, chosen[backend]
    if values["threads"]:
        if all(one.name != "threads" for one in fields(kind)):
            raise click.UsageError(
                f"--threads is for this machine's CPU, and {backend} does not run on it. Drop it."
            )
        named["threads"] = values["threads"]
    try:
        return {"backend": backend, "device": device, "options": kind(**named)}
    except DestsegError as error:
        raise click.UsageError(str(error)) from error


def _refuse_beside_tuned(values: Mapping[str, Any], chosen: Mapping[str, Any]) -> None:
    given = [f"--{name}" for name in ("backend", "device", "threads") if values[name]]
    for name, options in chosen.items():
        if options:
            given.append(str(given_flag(FITS[name].options, values, PREFIXES[name])))
    if given:
        raise click.UsageError(f"{given[0]} and --tuned: one of them decides. Drop the other.")


def echo_threshold(result: Threshold | None, artifact: Path) -> None:
    """Print a threshold and its rule, or the command that sets one."""
    if result is None:
        say(f"threshold   none yet: destseg-threshold {artifact} --good FOLDER")
        return
    say(f"threshold   score > {result.score:.6f}, outline above {result.pixel:.6f}")
    say(f"rule        {result.rule}")


def _runs(backend: str, artifact: Path) -> bool:
    return artifact.suffix.lower() in FITS[backend].suffixes


def _destination(one: Field[Any], prefix: str) -> str:
    return f"{prefix}_{one.name}" if prefix else one.name


def _flag(one: Field[Any], prefix: str) -> str:
    return _flags(one, prefix)[0]


def _flags(one: Field[Any], prefix: str) -> list[str]:
    names = one.metadata["name"] or (one.name.replace("_", "-"),)
    return [f"--{prefix}-{name}" if prefix else f"--{name}" for name in names]


def _option(one: Field[Any], hint: Any, prefix: str, heading: str) -> Callable[[Command], Command]:
    """Return the option of a field; its value is None where it was not given."""
    said, flags = one.metadata, _flags(one, prefix)
    usual = said["unset"]
    if usual is None and not isinstance(one.default, bool):
        usual = one.default
    if one.default is True:
        usual = "on"
    details: dict[str, Any] = {"metavar": said["metavar"]}
    if bool in (hint, *getattr(hint, "__args__", ())):
        details = {"is_flag": True}
        if one.default is not False:
            flags[0] += f"/--no-{flags[0][2:]}"
    elif choices := choices_of(one, hint):
        details["type"] = click.Choice(choices)
    elif hint is Device:
        details["callback"] = read_device
    elif Path in getattr(hint, "__args__", ()):
        details["type"] = FILE if said["metavar"] == "FILE" else FOLDER
    elif getattr(hint, "__origin__", None) is tuple:
        details["callback"] = _read_numbers if int in hint.__args__ else _read_texts
    else:
        details["type"] = _value_type(hint, said["between"])
    return click.option(
        *flags,
        _destination(one, prefix),
        cls=HeadedOption,
        heading=heading,
        default=None,
        help=said["text"] + (f"  [default: {usual}]" if usual is not None else ""),
        **details,
    )


def _value_type(hint: Any, between: tuple[int, int] | None) -> Any:
    """Return what click reads a field as: text, a number, or a whole number."""
    kinds = (hint, *getattr(hint, "__args__", ()))
    if str in kinds:
        return str
    if float in kinds:
        return float if between is None else click.FloatRange(*between)
    return int if between is None else click.IntRange(*between)


def _read_texts(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[str, ...] | None:
    """Read texts with commas between them."""
    return None if value is None else tuple(value.split(","))


def _read_numbers(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    """Read numbers with commas between them."""
    return None if value is None else whole_numbers(value, "whole numbers, such as 2,3")


def numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...]:
    """Return the numbers of ``0,1,2``, or refuse them as a usage error."""
    found = () if value is None else whole_numbers(value, "whole numbers such as 0,1,2")
    if len(set(found)) < len(found):
        raise click.BadParameter(f"{value!r}: a number is there twice.")
    return found


def counts(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...]:
    """Return the numbers of ``1,8``, each at least 1, or refuse them as a usage error."""
    found = numbers(ctx, param, value)
    if not found or min(found) < 1:
        raise click.BadParameter(f"{value!r}: expected numbers of at least 1, such as 1,8.")
    return found


def whole_numbers(value: str, expected: str) -> tuple[int, ...]:
    """Return numbers with commas between them, or refuse them as a usage error."""
    parts = value.split(",")
    if not all(is_number(part.strip()) for part in parts):
        raise click.BadParameter(f"{value!r}: expected {expected}.")
    return tuple(map(int, parts))
