"""``--output`` of the commands that measure: a JSON file that is held while the command runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from destseg_deploy.cli.options import FILE
from destseg_deploy.files import making, refuse_others
from destseg_deploy.locks import locked
from destseg_deploy.text import load_json


def result_option(text: str, *, required: bool = False) -> Callable[..., Any]:
    """Return a decorator that adds ``--output`` with a help text.

    What cannot be written is refused before anything is measured.
    """

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def run(*args: Any, output: Path | None, **values: Any) -> Any:
            with hold_result(output):
                return command(*args, output=output, **values)

        return click.option("--output", type=FILE, required=required, help=text)(run)

    return add


@contextmanager
def hold_result(output: Path | None) -> Iterator[None]:
    """Hold a result's file, so that no other run writes it meanwhile; None holds nothing.

    Raises:
        OutputError: If another run holds it, it is no result, or its folder cannot be written.
        OSError: If the folder cannot be made.
    """
    if output is None:
        yield
        return
    refuse_others([output], is_result)
    with making(output.parent), locked(output):
        yield


def is_result(path: Path) -> bool:
    """Tell whether a file is a result of a measurement: it names its environment."""
    try:
        return "environment" in load_json(path)
    except (OSError, ValueError, TypeError, RecursionError):
        return False
