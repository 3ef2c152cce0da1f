"""Calls of destseg-bench in this process, with what every test expects of them."""

from click.testing import CliRunner, Result

from destseg_bench.cli import bench


def succeed(*words: object) -> Result:
    """Call the command and make sure that it ends with status 0."""
    done = CliRunner().invoke(bench, list(map(str, words)))
    assert done.exit_code == 0, done.output
    return done


def refuse(message: str, *words: object, status: int = 1) -> None:
    """Call the command and make sure that it refuses; with status 1, in one line."""
    done = CliRunner().invoke(bench, list(map(str, words)))
    assert done.exit_code == status, done.output
    assert message in done.output
    assert status == 2 or len(done.output.splitlines()) == 1, done.output
