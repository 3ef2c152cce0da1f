"""What all commands share: lines of text, errors as one line, signals, and a progress bar."""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from traceback import walk_tb
from types import FrameType
from typing import Any

import click

from destseg_deploy.cli.config import check_number, defaults, read_config, section
from destseg_deploy.cli.extras import missing_package
from destseg_deploy.cli.named_path import NamedPath
from destseg_deploy.cluster.place import Place
from destseg_deploy.errors import DataWarning, DestsegError
from destseg_deploy.memory import lacks_memory, shortage
from destseg_deploy.text import printable, tolerate

SETTINGS = {"help_option_names": ["-h", "--help"], "show_default": True}
Report = Callable[[int, int, str], None]
LINE_EVERY_S = 30.0
"""Seconds between two lines of progress where there is no terminal."""
ENDING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
"""Signals that end a command, where the system has them: Ctrl-C, a request to end, a terminal that
was closed, and Ctrl-Break of Windows."""
ALWAYS = (signal.SIGINT, signal.SIGTERM)
"""Those that end it even if the caller ignores them, as a shell does for its background jobs."""
PATIENCE_S = 5.0
"""Seconds in which a second signal does nothing: it would break off the removal of files."""


def say(line: str, *, err: bool = False) -> None:
    """Print one line on stdout, or on stderr; what a terminal would act on is escaped."""
    click.echo(printable(line), err=err)


def note(text: str) -> None:
    """Print a remark on stderr."""
    say(f"note: {text}", err=True)


def is_typed(name: str) -> bool:
    """Tell whether a parameter of the running command stands on its command line.

    A value of ``--config`` does not count: it is for those calls that use the parameter.
    """
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.COMMANDLINE


def _read_config(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    """Take the defaults of all options from a file."""
    if path is not None:
        ctx.default_map = defaults(ctx.command, ctx, section(read_config(path), ctx))


def _help_all(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    """Print the help with every option, and end."""
    if wanted and not ctx.resilient_parsing:
        ctx.meta[ALL] = True
        click.echo(ctx.get_help())
        ctx.exit()


ALL = f"{__name__}.all"
"""Set in a context whose help lists every option."""

CONFIG = click.Option(
    ["--config"],
    type=NamedPath(path_type=Path, dir_okay=False),
    is_eager=True,
    expose_value=False,
    callback=_read_config,
    help='TOML file with values for options: [train] preset = "quick".',
)
HELP_ALL = click.Option(
    ["--help-all"],
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_help_all,
    help="Explain every option.",
)


class OneLineErrors(click.Command):
    """A command that reports an error of the library as one line on stderr, with status 1."""

    def __init__(self, *args: Any, essential: Sequence[str] = (), **kwargs: Any) -> None:
        """Add ``-h``, ``--config`` and the defaults to the help.

        Args:
            args: As click's.
            essential: Names of the options that ``-h`` explains; the others are only named there,
                and explained by ``--help-all``. All of them unless given.
            kwargs: As click's.
        """
        super().__init__(*args, **{**kwargs, "context_settings": SETTINGS})
        self.essential = essential
        self.params += [CONFIG, HELP_ALL] if essential else [CONFIG]

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run as a program: any text can be printed, and a signal ends it quietly."""
        _open_closed_streams()
        for stream in (sys.stdout, sys.stderr):
            tolerate(stream)
        with _signals_end_it():
            return super().main(*args, **kwargs)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Read the command line; turn a refusal into one line."""
        with _one_line():
            return super().make_context(*args, **kwargs)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments; a file that was given to the group above sets defaults, too.

        See ``check_number`` for what is a number.
        """
        if ctx.parent is not None and ctx.default_map:
            ctx.default_map = defaults(self, ctx, ctx.default_map)
        texts, _, _ = self.make_parser(ctx).parse_args(list(args))
        for param in self.get_params(ctx):
            given = texts.get(param.name or "")
            for text in given if isinstance(given, list | tuple) else [given]:
                if isinstance(text, str):
                    check_number(param, text, ctx)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run; turn ``DestsegError``, failed reads and writes, and warnings into one line each."""
        with _one_line(), warnings.catch_warnings():
            warnings.simplefilter("always", DataWarning)
            warnings.showwarning = _notes()
            return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the command's options, then those with a heading of their own (HeadedOption)."""
        groups: dict[str, list[tuple[str, str]]] = {"Options": []}
        others: list[str] = []
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is None or not isinstance(param, click.Option):
                continue
            if self._explains_all(ctx):
                groups.setdefault(getattr(param, "heading", "Options"), []).append(record)
            elif param.is_eager or param.name in self.essential:
                groups["Options"].append(record)
            else:
                others.append(max(param.opts, key=len))
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)
        if others:
            with formatter.section("More options, explained by --help-all"):
                formatter.write_text(", ".join(others))
        if isinstance(self, click.Group):
            self.format_commands(ctx, formatter)

    def _explains_all(self, ctx: click.Context) -> bool:
        return not self.essential or bool(ctx.meta.get(ALL))


def _open_closed_streams() -> None:
    """Let the null device take what is written to a closed stdout or stderr.

    pythonw and services of Windows have neither, and ``2>&-`` closes stderr. Its number would go to
    the next file that is opened, and what a C library says there would be written into that file.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))


def _notes() -> Callable[..., None]:
    """Return what prints each warning once as a remark, without its place in the code."""
    # Python's own memory of warnings is lost wherever a library catches some.
    said = set[str]()

    def show(message: Warning | str, *where: Any, **more: Any) -> None:
        text = " ".join(str(message).split())
        if text not in said:
            said.add(text)
            note(text)

    return show


class OneLineErrorsGroup(OneLineErrors, click.Group):
    """The same for a command with subcommands; its help has their whole first sentences."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands; click would cut their sentences."""
        rows = [(name, self.summary(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def summary(self, ctx: click.Context, name: str) -> str:
        """Return what a command does, in a sentence."""
        command = self.get_command(ctx, name)
        return "" if command is None else command.get_short_help_str(limit=1000)


@contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except click.ClickException as error:
        # A new error would lose the class, which knows how it is shown.
        error.message = printable(error.message)  # type: ignore[misc]  # "final" to click alone
        raise
    except DestsegError as error:
        raise click.ClickException(printable(str(error))) from error
    except Exception as error:
        if (line := _explained(error)) is None:
            raise
        raise click.ClickException(printable(line)) from error


def _explained(error: Exception) -> str | None:
    """Return a line for what the machine refuses; None for a fault of ours."""
    if lacks_memory(error):
        return shortage(error)
    if isinstance(error, ModuleNotFoundError):
        return missing_package(error)
    # click itself ends quietly when a reader such as head has closed the pipe
    if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
        relative = not os.path.isabs(str(error.filename or ""))
        if isinstance(error, FileNotFoundError) and relative and _is_folder_gone():
            return "the current folder was deleted. Change to another one, such as with cd."
        where = error.filename or ("stdout" if _is_of_echo(error) else "")
        return f"{where}: {error.strerror or error}" if where else str(error.strerror or error)
    return None


def _is_folder_gone() -> bool:
    """Tell whether the folder was deleted that relative paths begin at."""
    try:
        return not os.path.isdir(os.getcwd())
    except OSError:
        return True


def _is_of_echo(error: OSError) -> bool:
    """Tell whether an error is of printed text: a stream may lead to a file on a full disk."""
    frames = (frame for frame, _ in walk_tb(error.__traceback__))
    return any(frame.f_code is click.echo.__code__ for frame in frames)


@contextmanager
def _signals_end_it() -> Iterator[None]:
    """End with status 128 + the signal's number, so that temporary files are removed.

    Python's own reactions are a traceback for Ctrl-C, and for the others an end at once that leaves
    the files. What the caller told to ignore a closed terminal, as nohup does, goes on.
    """
    ended: list[int] = []
    last = [-PATIENCE_S]

    def end(number: int, frame: FrameType | None) -> None:
        ended.append(128 + number)
        if time.monotonic() - last[0] >= PATIENCE_S:
            last[0] = time.monotonic()
            raise SystemExit(ended[0])

    before: dict[int, Any] = {}
    with suppress(ValueError):  # not in the main thread, where signals cannot be caught
        for number in (getattr(signal, name) for name in ENDING if hasattr(signal, name)):
            if number in ALWAYS or signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, end)
    try:
        yield
    except SystemExit as error:  # Ray ends a wait with a status of its own in place of ours
        raise SystemExit(ended[0] if ended else error.code) from None
    finally:
        for caught, handler in before.items():
            signal.signal(caught, handler)


@contextmanager
def progress(label: str) -> Iterator[Report]:
    """Show how far something is, on stderr.

    On a terminal a bar with position and remaining time; elsewhere, such as in a log, a line every
    30 seconds.

    Yields:
        A function to call with the steps done, the total of steps, and a remark to show.
    """
    if not sys.stderr.isatty():
        with lines(label) as report:
            yield report
        return
    remark = [""]  # a list, because click asks for the text through a function without arguments
    shown: AbstractContextManager[Any] = click.progressbar(
        length=1,
        label=label,
        file=sys.stderr,
        show_pos=True,
        item_show_func=lambda item: remark[0],
    )
    with shown as bar:

        def advance(done: int, total: int, text: str = "") -> None:
            bar.length = total
            remark[0] = printable(text)
            bar.update(done - bar.pos, done)

        yield advance


def progress_on(place: Place) -> Callable[[str], AbstractContextManager[Report]]:
    """Return what shows how far something is: lines where several things run at a time."""
    return progress if place.here else lines


@contextmanager
def lines(label: str) -> Iterator[Report]:
    """Show how far something is, on stderr: a line when 30 seconds have passed since the last one.

    Yields:
        As ``progress``.
    """
    start = last = time.monotonic()
    first: int | None = None  # an interrupted run does not begin with step 1

    def advance(done: int, total: int, text: str = "") -> None:
        nonlocal start, last, first
        now = time.monotonic()
        if first is None and done == 0:  # said before the first step: a model's start is none
            start, first = now, 0
        first = done - 1 if first is None else first
        if now - last < LINE_EVERY_S:
            return
        last = now
        left = (now - start) / max(done - first, 1) * (total - done)
        share = f"{done} of {total} ({done / max(total, 1):.0%}), about {_duration(left)} left"
        say(", ".join(part for part in (f"{label}: {share}", text) if part), err=True)

    yield advance


def _duration(seconds: float) -> str:
    """Return a time as somebody who waits for it would say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
