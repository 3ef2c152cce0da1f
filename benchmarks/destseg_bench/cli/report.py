"""destseg-bench report."""

from __future__ import annotations

from pathlib import Path

import click

from destseg_bench.report.page import find_results, write_report
from destseg_bench.report.readme import fill_tables
from destseg_deploy.atomic import replacing
from destseg_deploy.cli.options import FILE, FOLDER
from destseg_deploy.console import OneLineErrors
from destseg_deploy.errors import DataError

RESULTS = Path("benchmarks/results")


@click.command(cls=OneLineErrors)
@click.argument("results", nargs=-1, type=click.Path(path_type=Path))
@click.option("--output", type=FOLDER, help="Folder for report.md and its figure.")
@click.option("--readme", type=FILE, help="Markdown whose marked tables are made anew.")
def report(results: tuple[Path, ...], output: Path | None, readme: Path | None) -> None:
    """Make a page of results, or the tables of a README.

    RESULTS are files that destseg-bench and destseg-export's studies wrote, or folders of them;
    benchmarks/results unless given. --readme takes one folder.
    """
    if (output is None) == (readme is None):
        raise click.UsageError("Give either --output FOLDER or --readme FILE.")
    sources = results or (RESULTS,)
    if output is not None:
        for path in write_report(find_results(sources), output):
            click.echo(path)
    elif readme is not None:
        if len(sources) != 1 or not sources[0].is_dir():
            raise click.UsageError("--readme takes one folder of results.")
        _fill(readme, sources[0])


def _fill(readme: Path, results: Path) -> None:
    if not readme.is_file():
        raise DataError(f"{readme}: no such file. Expected Markdown with marked tables.")
    before = readme.read_text(encoding="utf-8")
    after = fill_tables(before, results)
    if after != before:
        with replacing(readme) as temporary:
            temporary.write_text(after, encoding="utf-8")
    click.echo(f"{readme}: {'changed' if after != before else 'as before'}")
