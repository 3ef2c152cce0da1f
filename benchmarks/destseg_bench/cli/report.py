"""destseg-bench report."""

from __future__ import annotations

from pathlib import Path

import click

from destseg_deploy.cli.console import OneLineErrors, say
from destseg_deploy.cli.named_path import NamedPath
from destseg_deploy.cli.options import FILE, FOLDER
from destseg_deploy.errors import DataError
from destseg_deploy.files import replacing

RESULTS = Path("benchmarks/results")


@click.command(cls=OneLineErrors)
@click.argument("results", nargs=-1, type=NamedPath(path_type=Path))
@click.option("--output", type=FOLDER, help="Folder for report.md and its figure.")
@click.option("--readme", type=FILE, help="Markdown whose marked tables are made anew.")
def report(results: tuple[Path, ...], output: Path | None, readme: Path | None) -> None:
    """Make a page of results, or the tables of a README.

    RESULTS are files that destseg-bench and destseg-export's studies wrote, or folders of them;
    benchmarks/results unless given. --readme takes one folder.
    """
    from destseg_bench.report.pages import fill_tables, find_results, write_page

    if (output is None) == (readme is None):
        raise click.UsageError("Give either --output FOLDER or --readme FILE.")
    sources = results or (RESULTS,)
    if output is not None:
        for path in write_page(find_results(sources), output):
            say(str(path))
    elif readme is not None:
        if len(sources) != 1 or not sources[0].is_dir():
            raise click.UsageError("--readme takes one folder of results.")
        if not readme.is_file():
            raise DataError(f"{readme}: no such file. Expected Markdown with marked tables.")
        before = readme.read_text(encoding="utf-8")
        after = fill_tables(before, sources[0])
        if after != before:
            with replacing(readme) as temporary:
                temporary.write_text(after, encoding="utf-8")
        say(f"{readme}: {'changed' if after != before else 'as before'}")
