"""``--config destseg.toml``: values for the options of every command.

::

    [train]                 # destseg train, destseg-train
    preset = "quick"
    holdout = 0.2

    [bench.table-s4]        # destseg bench table-s4, destseg-bench table-s4
    batch = [1, 8]

A table is named by the command, a key by the option without its dashes. The command line counts
more than the file. A table or a key that no command knows is refused.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click

from destseg_deploy.text import decode_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NUMBERS = (click.types.IntParamType, click.types.FloatParamType)

PROGRAM = "destseg-"
"""How the names of the programs begin; ``destseg-train`` is the command ``train``."""

GROUP = "destseg.commands"
"""The group of entry points that ``destseg`` finds its commands by."""


def read_config(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        click.UsageError: If it cannot be read or is no TOML.
    """
    try:
        return tomllib.loads(decode_text(path.read_bytes()))  # editors write the same marks here
    except OSError as error:
        raise click.UsageError(f"--config {path}: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:  # no UTF-8, or no TOML
        raise click.UsageError(f"--config {path}: no TOML ({error}).") from error


def check_number(param: click.Parameter, text: str, ctx: click.Context | None = None) -> None:
    """Refuse what click takes for a number and is none, or has no end.

    ``int`` and ``float`` read the digits of all scripts, 1_000, nan and inf. No range holds NaN
    off, because it is neither below nor above anything.

    Raises:
        click.BadParameter: With the text.
    """
    if not isinstance(param.type, NUMBERS):
        return
    endless = False
    with suppress(ValueError):  # click refuses those
        endless = not math.isfinite(float(text))
    if endless or not text.isascii() or "_" in text:
        raise click.BadParameter(f"{text!r} is not a number.", ctx, param)


def section(values: Mapping[str, Any], ctx: click.Context) -> Mapping[str, Any]:
    """Return the part of a file that is for a command and what is below it.

    Raises:
        click.UsageError: If the file has a table of no command, or a value in place of a table.
    """
    names = _names(ctx)
    known = (*command_names(), *names[:1])
    for key in values if names else ():
        if key not in known:
            _refuse(key, known, "")
    found: Any = values
    for i, name in enumerate(names):
        found = _table(found.get(name, {}), ".".join(names[: i + 1]))
    return _table(found, "")


def _table(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise click.UsageError(f"--config: {name} is no table of options.")
    return value


def defaults(command: click.Command, ctx: click.Context, values: Mapping[str, Any]) -> Any:
    """Return a command's values as click's ``default_map``: option names become parameters.

    Args:
        command: Whose options they are.
        ctx: Its context.
        values: Its table in the file; for a group, tables of its commands may be among them.

    Raises:
        click.UsageError: If a key is neither an option nor a command of it.
    """
    options = {key: param for param in command.get_params(ctx) for key in _keys(param)}
    below = command.list_commands(ctx) if isinstance(command, click.Group) else []
    known: dict[str, Any] = {}
    for key, value in values.items():
        if key in below:
            known[key] = _table(value, key)
        elif (param := options.get(key.replace("_", "-"))) is not None:
            known[str(param.name)] = _fitted(param, value)
        else:
            _refuse(key, (*options, *below), ".".join(_names(ctx)))
    return known


def _names(ctx: click.Context) -> list[str]:
    """Return the commands from the top to this one, ``destseg`` itself left out."""
    names: list[str] = []
    current: click.Context | None = ctx
    while current is not None:
        names.insert(0, current.command.name or "")
        current = current.parent
    return [name for name in names if name != PROGRAM[:-1]]


def _keys(param: click.Parameter) -> list[str]:
    """Return how a file may name a parameter."""
    if param.is_eager:  # --help, --version, --config
        return []
    if isinstance(param, click.Argument):
        return [str(param.name).replace("_", "-")]
    return [name.lstrip("-") for name in param.opts if name.startswith("--")]


def _fitted(param: click.Parameter, value: Any) -> Any:
    """Return a value as the command line would give it, which refuses what it cannot be.

    Numbers become text: click would cut 3.9 to 3 where a whole number is expected.
    """
    several = param.multiple or param.nargs != 1
    if isinstance(value, list):
        values = [_fitted_one(param, one) for one in value]
        if not several and not _reads_commas(param):
            raise click.UsageError(
                f"--config: {param.opts[0]}: {value!r} is a list, expected one value."
            )
        return values if several else ",".join(map(str, values))
    found = _fitted_one(param, value)
    return [found] if several else found


def _reads_commas(param: click.Parameter) -> bool:
    """Tell whether a text is several values, such as --batch 1,8; a file may write it as a list."""
    return param.callback is not None or "," in (param.metavar or "")


def _fitted_one(param: click.Parameter, value: Any) -> Any:
    if isinstance(value, bool) and getattr(param, "is_flag", False):
        return value
    if not isinstance(value, str | bool | int | float):
        raise click.UsageError(f"--config: {param.opts[0]}: {value!r} is no text and no number.")
    text = str(value)
    if "\0" in text:  # a command line cannot hold one, and the system takes none in a path
        raise click.UsageError(f"--config: {param.opts[0]}: {value!r} has a zero byte. Remove it.")
    check_number(param, text)
    return text


def command_names() -> tuple[str, ...]:
    """Return the names of the installed commands; none of them is imported."""
    return tuple(sorted({one.name for one in entry_points(group=GROUP)}))


def _refuse(key: str, known: Iterable[str], where: str) -> None:
    near = difflib.get_close_matches(key.replace("_", "-"), list(known), n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    place = f"[{where}] {key}" if where else f"[{key}]"
    raise click.UsageError(f"--config: {place}: no such {'option' if where else 'command'}.{hint}")
