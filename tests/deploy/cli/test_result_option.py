"""The file of a measurement is refused before the measurement, and has one writer."""

import json

import click
import pytest
from click.testing import CliRunner

from destseg_deploy.cli.console import OneLineErrors
from destseg_deploy.cli.result_option import result_option
from destseg_deploy.locks import locked


@click.command(cls=OneLineErrors)
@result_option("JSON file.")
def measure(output):
    click.echo("measured")
    if output is not None:
        output.write_text(json.dumps({"environment": {}}))


def run(*arguments):
    return CliRunner().invoke(measure, [str(part) for part in arguments])


def test_a_result_is_written_and_replaced(tmp_path):
    path = tmp_path / "new/result.json"
    for _ in range(2):
        assert run("--output", path).stdout == "measured\n"
    assert [one.name for one in path.parent.iterdir()] == ["result.json"]
    assert run().stdout == "measured\n"


@pytest.mark.parametrize("text", ["my notes", '{"a": 1}', "[" * 9999, "[]"])
def test_a_file_of_others_is_refused_before_the_work(text, tmp_path):
    path = tmp_path / "notes.json"
    path.write_text(text)
    found = run("--output", path)
    assert (found.exit_code, found.stdout, path.read_text()) == (1, "", text)
    assert "exists and was not written by this command" in found.stderr


def test_two_runs_do_not_write_one_result(tmp_path):
    with locked(tmp_path / "result.json"):
        found = run("--output", tmp_path / "result.json")
    assert (found.exit_code, found.stdout) == (1, "")
    assert "is writing it. Wait" in found.stderr
