"""What all commands share: errors as one line, progress on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import click

from destseg_deploy.errors import DestsegError

SETTINGS = {"help_option_names": ["-h", "--help"], "show_default": True}


class OneLineErrors(click.Command):
    """A command that ends with one line and status 1 when the library refuses something."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Add ``-h`` and the defaults to the help."""
        super().__init__(*args, **{**kwargs, "context_settings": SETTINGS})

    def invoke(self, ctx: click.Context) -> Any:
        """Run, and turn errors that were raised on purpose into one line."""
        with one_line_errors():
            return super().invoke(ctx)


class OneLineErrorsGroup(OneLineErrors, click.Group):
    """The same for a command with subcommands."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn ``DestsegError`` and failed writes into one line on stderr and exit status 1."""
    try:
        yield
    except DestsegError as error:
        raise click.ClickException(" ".join(str(error).split())) from error
    except BrokenPipeError:
        raise  # click ends quietly when a reader such as head has seen enough
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise click.ClickException(f"{where}{error.strerror or error}") from error


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int, str], None]]:
    """Show a bar with position and ETA on stderr; nothing when stderr is no terminal.

    Yields:
        A function to call with the steps done, the steps in all, and a remark to show.
    """
    remark = [""]
    shown: AbstractContextManager[Any] = click.progressbar(
        length=1,
        label=label,
        file=sys.stderr,
        show_pos=True,
        hidden=not sys.stderr.isatty(),
        item_show_func=lambda item: remark[0],
    )
    with shown as bar:

        def advance(done: int, total: int, text: str = "") -> None:
            bar.length = total
            remark[0] = text
            bar.update(done - bar.pos, done)

        yield advance
