"""What all commands share: one line for an error, a bar or lines of progress, any text."""

import io
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from destseg_deploy.cli import console
from destseg_deploy.cli.console import OneLineErrors, OneLineErrorsGroup, progress, say
from destseg_deploy.errors import DataError, ParityError, ShapeError

ROOT = Path(__file__).resolve().parents[3]


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
    assert result.stderr == "Error: a.png: broken.\\n  Replace\\tit.\n"
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
    result = CliRunner().invoke(_command(BrokenPipeError(32, "Broken pipe")))
    assert (result.exit_code, result.stderr) == (1, "")


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


def test_a_log_sees_a_line_every_thirty_seconds(monkeypatch, capsys):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with progress("scoring") as advance:
        for done in range(1, 13):
            clock[0] += 10
            advance(done, 400, f"image\n{done}")
    seen = capsys.readouterr()
    assert seen.out == ""
    assert seen.err.splitlines() == [
        f"scoring: {done} of 400 ({done / 400:.0%}), about {left} left, image\\n{done}"
        for done, left in ((3, "66 min"), (6, "66 min"), (9, "65 min"), (12, "65 min"))
    ]


def test_a_continued_run_does_not_count_what_was_done_before(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with progress("training") as advance:
        for done in (901, 902, 903):
            clock[0] += 15
            advance(done, 905, "")
    assert capsys.readouterr().err == "training: 902 of 905 (100%), about 45 s left\n"


def test_what_is_quick_leaves_a_log_empty(capsys):
    with progress("scoring") as advance:
        for done in range(4):
            advance(done, 4, "image")
    assert capsys.readouterr() == ("", "")


# ---------------------------------------------------------------------------- any text, any signal


@pytest.mark.parametrize(
    "error",
    [
        DataError("a\nb.png: gone"),
        FileNotFoundError(2, "No such file", "a\nb.png"),
        click.UsageError("a\nb.png: gone"),
        click.BadParameter("a\nb.png: gone"),
    ],
)
def test_a_line_break_in_a_name_stays_in_the_line(error):
    result = CliRunner().invoke(_command(error))
    assert r"a\nb.png: " in result.stderr.splitlines()[-1]
    assert "\x1b" not in result.stderr


def test_names_are_escaped_wherever_they_are_said(capsys):
    say("k\udce4se \x1b[2J\n.png")
    assert capsys.readouterr().out == "k\\xe4se \\x1b[2J\\n.png\n"


SAYS = """
import sys, click
from destseg_deploy.cli.console import OneLineErrors, OneLineErrorsGroup, progress, say
from destseg_deploy.errors import DataError

@click.command(cls=OneLineErrors)
def command():
    say("K\\u00e4se \\u20ac \\udce4")
    raise DataError("\\u89d2 \\udce4")

command.main(args=[])
"""


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"PYTHONIOENCODING": "cp1252"}, b"K\xe4se \x80 \\xe4"),
        # click writes UTF-8 where a stream claims to know ASCII only.
        ({"PYTHONIOENCODING": "ascii:strict"}, "Käse € \\xe4".encode()),
        ({"PYTHONIOENCODING": "utf-8"}, "Käse € \\xe4".encode()),
        ({"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, b" \\xe4"),
    ],
)
def test_no_encoding_of_a_terminal_ends_in_a_traceback(settings, shown):
    done = subprocess.run(
        [sys.executable, "-c", SAYS], cwd=ROOT, capture_output=True, env={**os.environ, **settings}
    )
    assert done.returncode == 1
    assert shown in done.stdout
    assert done.stderr.count(b"\n") == 1
    assert done.stderr.startswith(b"Error: ")


STARTS = """
import sys
import time
from pathlib import Path
sys.argv[0] = "{name}"
import destseg_deploy.at_start
print("begun", flush=True)
while True:  # one long wait would not see a signal that came just before it
    time.sleep(0.05)
"""


def _hears_ctrl_c():
    """Undo what a shell does to its background jobs, of which the test run may be one."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("name", "quiet"),
    [
        ("/usr/bin/destseg-train", True),
        ("/bin/destseg", True),
        ("C:/destseg-bench.exe", True),
        ("destsegs", False),
        ("destseg-line.py", False),  # a user's own program
    ],
)
def test_an_interrupt_while_a_command_imports_is_quiet(name, quiet):
    pipe = subprocess.PIPE
    code = STARTS.format(name=name)
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=pipe, stderr=pipe, preexec_fn=_hears_ctrl_c
    ) as process:
        assert process.stdout.readline() == b"begun\n"
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
        assert (process.stderr.read() == b"", process.returncode == 130) == (quiet, quiet)


@pytest.mark.parametrize("text", ["\u0663", "\uff13", "1_0", "\uff11.5"])
def test_numbers_are_written_in_the_digits_0_to_9(text):
    """Python's int and float take the digits of all scripts; 10 is taken, as a control."""
    command = _command(DataError("it ran"))
    result = CliRunner().invoke(command, ["--size", text])
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"Invalid value for '--size': '{text}' is not a number." in result.stderr
    assert "it ran" in CliRunner().invoke(command, ["--size", "10"]).stderr


def _end_with(status, number=None):
    """End as a library does that has its own status for a signal."""
    with console._signals_end_it():
        with suppress(SystemExit):
            if number is not None:
                signal.raise_signal(number)
        raise SystemExit(status)


def test_a_library_cannot_change_the_status_of_a_signal():
    """Ray ends a wait that a signal interrupts with status 1."""
    for number, given, status in ((signal.SIGINT, 1, 130), (signal.SIGTERM, 1, 143), (None, 3, 3)):
        with pytest.raises(SystemExit) as ended:
            _end_with(given, number)
        assert ended.value.code == status


def _end_and_clean(numbers, done):
    """Do what a command does that gets signals, the second one while it removes its files."""
    with console._signals_end_it():
        try:
            signal.raise_signal(numbers[0])
        finally:
            for number in numbers[1:]:
                signal.raise_signal(number)
            done.append("removed")


def _end_by(*numbers):
    done = []
    with pytest.raises(SystemExit) as ended:
        _end_and_clean(numbers, done)
    assert done == ["removed"]
    return ended.value.code


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_a_terminal_that_is_closed_ends_a_command_and_nohup_does_not():
    """The system's own reaction to SIGHUP leaves temporary folders behind."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup, too
    try:
        assert _end_by(signal.SIGHUP) == 128 + signal.SIGHUP
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with console._signals_end_it():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_signal_does_not_break_off_the_removal_of_files(monkeypatch):
    """Who is impatient presses Ctrl-C twice, and a service manager sends two signals at once."""
    assert _end_by(signal.SIGINT, signal.SIGINT) == 130
    assert _end_by(signal.SIGTERM, signal.SIGINT) == 143
    monkeypatch.setattr(console, "PATIENCE_S", 0.0)  # a control: the time makes the difference
    with pytest.raises(AssertionError):
        _end_by(signal.SIGINT, signal.SIGINT)
