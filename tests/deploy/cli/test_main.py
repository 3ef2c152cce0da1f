"""destseg: commands found by entry points, a file of defaults, and help in two lengths."""

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from destseg_deploy.cli import config, main
from destseg_deploy.cli.console import OneLineErrors, OneLineErrorsGroup
from destseg_deploy.cli.extras import EXTRAS, missing_package
from destseg_deploy.cli.named_path import NamedPath
from destseg_deploy.cli.train import ESSENTIAL, train

ROOT = Path(__file__).resolve().parents[3]
PARTS = ("destseg_deploy.cli", "destseg_export", "destseg_bench")


def invoke(*arguments: object, command: click.Command = main.main) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def done(*arguments: object, command: click.Command = main.main) -> str:
    result = invoke(*arguments, command=command)
    assert result.exit_code == 0, result.output
    return result.stdout


def misused(*arguments: object, command: click.Command = main.main) -> str:
    result = invoke(*arguments, command=command)
    assert result.exit_code == 2, result.output
    return result.stderr.splitlines()[-1]


# --- the commands


def test_every_entry_point_is_a_command_of_its_own_name():
    context = click.Context(main.main)
    names = main.main.list_commands(context)
    assert names[:6] == ["sample", "train", "export", "evaluate", "threshold", "predict"]
    assert {"bench", "bundle", "inspect", "quantize"} <= set(names)
    for name in names:
        command = main.main.get_command(context, name)
        assert command is not None
        assert command.name == name


def test_alone_it_lists_its_commands():
    shown = done()
    assert shown == done("-h")
    assert "train " in shown
    assert "bench " in shown


def test_an_unknown_command_is_misuse():
    assert "No such command 'tarin'" in misused("tarin")


@pytest.mark.parametrize("name", ["sample", "predict", "inspect"])
def test_only_the_chosen_commands_module_is_imported(name):
    code = f"""
import sys
sys.argv = ["destseg", "{name}", "-h"]
from destseg_deploy.cli.main import main
try:
    main()
except SystemExit:
    print([m for m in sys.modules if m.startswith({PARTS!r})])
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    imported = run.stdout.splitlines()[-1]
    assert f".{name}'" in imported, run.stderr
    assert "destseg_bench" not in imported
    assert "cli.train'" not in imported
    assert ("destseg_export" in imported) == (name == "inspect")


def test_a_command_that_lacks_a_package_says_which_extra(monkeypatch, tmp_path):
    (tmp_path / "lacking.py").write_text("import onnx_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(EXTRAS, "onnx_that_is_not_there", "export")
    entry = EntryPoint("lack", "lacking:command", config.GROUP)
    monkeypatch.setattr(main, "_found", lambda: {"lack": entry})
    result = invoke("lack")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "pip install 'destseg-deploy[export]'" in result.stderr
    assert "destseg-deploy[export]" in " ".join(done("-h").split())


def test_a_missing_module_of_ours_is_a_fault_and_no_advice():
    assert missing_package(ModuleNotFoundError("", name="destseg_export.nothing")) is None
    advice = missing_package(ModuleNotFoundError("", name="scipy.stats"))
    assert advice is not None
    assert "scipy" in advice


def test_extras_that_are_named_exist():
    # those of the page come with it
    named = set(EXTRAS.values()) - {"page"}
    text = (ROOT / "setup.cfg").read_text()
    assert [extra for extra in named if f"\n{extra} =\n" not in text] == []


def test_bench_alone_prints_its_help():
    from destseg_bench.cli import bench

    assert "table-s4" in done(command=bench)


# --- help


def test_train_explains_what_people_need_and_names_the_rest():
    short, full = done("-h", command=train), done("--help-all", command=train)
    assert len(ESSENTIAL) == 9
    for name in ESSENTIAL:
        assert f"  --{name.replace('_', '-')} " in short
    assert "  --gamma " not in short
    assert "--gamma" in short, "named"
    assert "  --gamma " in full
    assert "  --version " in short


# --- the file


@pytest.fixture
def seen() -> list[object]:
    return []


@pytest.fixture
def program(seen, monkeypatch) -> click.Command:
    """A group with a command, as destseg is."""

    @click.group("destseg", cls=OneLineErrorsGroup)
    def group():
        """Do things."""

    @group.command("play", cls=OneLineErrors)
    def play():
        """Play."""

    @group.command("work", cls=OneLineErrors)
    @click.argument("source", required=False)
    @click.option("--batch-size", type=int, default=1, help="Size.")
    @click.option("--ng", multiple=True, help="Some.")
    @click.option("--seeds", default="0", metavar="SEED[,SEED...]", help="Numbers.")
    @click.option("--name", help="Text.")
    @click.option("--rate", type=click.FloatRange(0, 1), default=0.5, help="Share.")
    @click.option("--overlays/--no-overlays", default=True, help="Flag.")
    def work(**values):
        seen.append(values)

    monkeypatch.setattr(config, "command_names", lambda: ("work", "play"))
    return group


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "destseg.toml"
    path.write_text(
        '[work]\nbatch-size = 8\nng = "a"\nseeds = [1, 2]\noverlays = false\nsource = "x"\n'
        "[play]\nloud = true\n"
    )
    return path


EXPECTED = {
    "batch_size": 8,
    "ng": ("a",),
    "seeds": "1,2",
    "name": None,
    "rate": 0.5,
    "overlays": False,
    "source": "x",
}


def test_a_file_gives_defaults_wherever_it_is_named(program, file, seen):
    done("--config", file, "work", command=program)
    done("work", "--config", file, command=program)
    done("--config", file, command=program.commands["work"])
    assert seen == [EXPECTED] * 3


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_a_file_of_an_editor_of_windows_is_read(program, file, seen, encoding):
    file.write_text(file.read_text(), encoding, newline="\r\n")
    done("--config", file, "work", command=program)
    assert seen == [EXPECTED]


@pytest.mark.parametrize("rate", ["nan", "inf", "-inf", "1e400", "NaN", " nan"])
def test_what_is_no_number_or_has_no_end_is_in_no_range(program, seen, rate):
    """NaN is neither below nor above a limit, so click takes it for a share."""
    assert f"{rate!r} is not a number" in misused("work", "--rate", rate, command=program)
    done("work", "--rate", "0.25", command=program)  # the control
    assert [values["rate"] for values in seen] == [0.25]


def test_the_command_line_counts_more_than_the_file(program, file, seen):
    done("--config", file, "work", "--batch-size", 2, "--ng", "b", "y", command=program)
    assert seen == [{**EXPECTED, "batch_size": 2, "ng": ("b",), "source": "y"}]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[work]\nbatch-sise = 8", "[work] batch-sise: no such option. Did you mean batch-size?"),
        ("[work]\nconfig = 'x'", "[work] config: no such option"),
        ("[work]\nno-overlays = true", "[work] no-overlays: no such option"),
        ("[wrok]\nbatch-size = 8", "[wrok]: no such command. Did you mean work?"),
        ("work = 8", "work is no table of options"),
        ("[work]\nbatch-size = 'many'", "'many' is not a valid integer"),
        ("[work]\nbatch-size = 3.9", "'3.9' is not a valid integer"),
        ("[work]\nbatch-size = true", "'True' is not a valid integer"),
        ("[work]\nbatch-size = '\u0663'", "'\u0663' is not a number"),
        ("[work]\nbatch-size = {a = 1}", "--batch-size: {'a': 1} is no text and no number"),
        ("[work]\nrate = nan", "'nan' is not a number"),
        ("[work]\nname = ['a', 'b']", "--name: ['a', 'b'] is a list, expected one"),
        ("[work]\nsource = ['a']", "source: ['a'] is a list, expected one"),
        ('[work]\nname = "a\\u0000b"', r"--name: 'a\x00b' has a zero byte"),
        ('[work]\nng = ["a\\u0000b"]', r"--ng: 'a\x00b' has a zero byte"),
        ("[work", "no TOML"),
        ("work = " + "[" * 5000, "no TOML"),
    ],
)
@pytest.mark.parametrize("place", ["above", "below", "alone"])
def test_what_a_file_says_wrongly_is_refused(program, tmp_path, seen, text, words, place):
    file = tmp_path / "destseg.toml"
    file.write_text(text, "utf-8")
    given = ("--config", file)
    arguments = {"above": (*given, "work"), "below": ("work", *given), "alone": given}[place]
    command = program.commands["work"] if place == "alone" else program
    assert words in misused(*arguments, command=command)
    assert seen == []


def test_a_file_that_is_not_there_is_named(program, tmp_path):
    assert "nowhere.toml: No such file" in misused(
        "--config", tmp_path / "nowhere.toml", "work", command=program
    )


def test_a_file_reaches_training_by_both_names(tmp_path, file):
    file.write_text("[train]\nsteps = [0, 5]\n")
    for command, arguments in ((main.main, ["train"]), (train, [])):
        result = invoke(*arguments, tmp_path, "--config", file, command=command)
        assert result.exit_code == 1
        assert "steps is 0, expected at least 1" in result.stderr


# --- paths


def commands(command: click.Command, ctx: click.Context):
    yield command
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            yield from commands(command.get_command(ctx, name), ctx)


def test_no_command_reads_an_empty_path_as_the_current_folder():
    for command in commands(main.main, click.Context(main.main)):
        for param in command.params:
            if isinstance(param.type, click.Path):
                assert isinstance(param.type, NamedPath), f"{command.name}: {param.name}"


@pytest.mark.parametrize("arguments", [("--config", "", "predict"), ("predict", "--config", "")])
def test_an_empty_file_of_defaults_is_misuse(arguments):
    assert "'--config': an empty name" in misused(*arguments)
