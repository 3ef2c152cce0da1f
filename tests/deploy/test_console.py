"""What all commands share: one line for an error, a bar for a person, silence for a log file."""

import io
import sys

import click
import pytest
from click.testing import CliRunner

from destseg_deploy.console import (
    OneLineErrors,
    OneLineErrorsGroup,
    one_line_errors,
    progress,
)
from destseg_deploy.errors import DataError, ParityError, ShapeError


def _command(error: BaseException):
    @click.command(cls=OneLineErrors)
    @click.option("--size", default=3, help="A size.")
    def command(size):
        """Do something."""
        click.echo("begun")
        raise error

    return command


@pytest.mark.parametrize("error", [DataError, ShapeError, ParityError])
def test_errors_on_purpose_become_one_line_and_status_one(error):
    result = CliRunner().invoke(_command(error("a.png: broken.\n  Replace\tit.")))
    assert result.exit_code == 1
    assert result.stderr == "Error: a.png: broken. Replace it.\n"
    assert result.stdout == "begun\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FileNotFoundError(2, "No such file or directory", "x.json"), "x.json: No such file"),
        (PermissionError(13, "Permission denied", "/etc/out"), "/etc/out: Permission denied"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("plain words"), "plain words"),
    ],
)
def test_what_the_system_refuses_is_one_line_too(error, line):
    result = CliRunner().invoke(_command(error))
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {line}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError("a bug"), AssertionError()])
def test_bugs_are_not_dressed_up(error):
    """A traceback is what a bug report needs."""
    assert CliRunner().invoke(_command(error)).exception is error


def test_clicks_own_errors_keep_their_status():
    result = CliRunner().invoke(_command(click.UsageError("give --size")))
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == "Error: give --size"


def test_a_closed_pipe_is_left_to_click():
    with pytest.raises(BrokenPipeError), one_line_errors():
        raise BrokenPipeError(32, "Broken pipe")


def test_help_has_a_short_name_and_shows_defaults():
    for flag in ("-h", "--help"):
        result = CliRunner().invoke(_command(AssertionError()), [flag])
        assert result.exit_code == 0
        assert "[default: 3]" in result.stdout


def test_a_group_and_its_commands_do_the_same():
    @click.group(cls=OneLineErrorsGroup, invoke_without_command=True)
    @click.pass_context
    def group(ctx):
        if ctx.invoked_subcommand is None:
            raise DataError("nothing chosen")

    @group.command(cls=OneLineErrors)
    def inner():
        raise DataError("inner trouble")

    for arguments, line in (([], "nothing chosen"), (["inner"], "inner trouble")):
        result = CliRunner().invoke(group, arguments)
        assert (result.exit_code, result.stderr) == (1, f"Error: {line}\n")


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_sees_a_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", _Terminal())
    with progress("scoring") as advance:
        for done in range(1, 5):
            advance(done, 4, f"image {done}")
    shown = sys.stderr.getvalue()
    for text in ("scoring", "1/4", "4/4", "image 1", "image 4"):
        assert text in shown


def test_steps_may_be_skipped_and_repeated(monkeypatch):
    monkeypatch.setattr(sys, "stderr", _Terminal())
    with progress("training") as advance:
        advance(3, 10)
        advance(3, 10)
        advance(7, 10)
    shown = sys.stderr.getvalue()
    assert "7/10" in shown
    assert "13/10" not in shown
    assert "6/10" not in shown


def test_an_error_begins_on_a_line_of_its_own(monkeypatch):
    monkeypatch.setattr(sys, "stderr", _Terminal())

    def fail():
        with progress("scoring") as advance:
            advance(1, 4)
            raise DataError("a.png: broken")

    with pytest.raises(DataError):
        fail()
    assert "\n" in sys.stderr.getvalue().rpartition("1/4")[2]


def test_a_log_file_sees_nothing(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress("scoring") as advance:
        for done in range(4):
            advance(done, 4, "image")
    assert sys.stderr.getvalue() == ""
    assert capsys.readouterr().out == ""
