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
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

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
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise click.UsageError(f"--config {path}: {error.strerror or error}.") from error
    except ValueError as error:  # no UTF-8, or no TOML
        raise click.UsageError(f"--config {path}: no TOML ({error}).") from error


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
    """Return a value as the command line would give it."""
    if param.multiple or param.nargs != 1:
        return value if isinstance(value, list) else [value]
    if isinstance(value, list):  # options such as --batch 1,8
        return ",".join(map(str, value))
    return value


def command_names() -> tuple[str, ...]:
    """Return the names of the installed commands; none of them is imported."""
    return tuple(sorted({one.name for one in entry_points(group=GROUP)}))


def _refuse(key: str, known: Iterable[str], where: str) -> None:
    near = difflib.get_close_matches(key.replace("_", "-"), list(known), n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    place = f"[{where}] {key}" if where else f"[{key}]"
    raise click.UsageError(f"--config: {place}: no such {'option' if where else 'command'}.{hint}")
