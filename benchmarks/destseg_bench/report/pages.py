"""Tables of results in Markdown: a page with a figure, and the marked tables of a README."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from destseg_bench.report.figure import draw_speed_and_accuracy, find_points
from destseg_bench.report.tables import tables_of
from destseg_bench.results import naming, read_result
from destseg_deploy.errors import DataError
from destseg_deploy.files import refuse_others, replacing
from destseg_deploy.text import printable

PAGE = "report.md"
HEADING = "# Results"
FIGURE = "speed-and-accuracy.png"

END = "<!-- end of results -->"
MARKED = re.compile(
    r"(<!-- results: (?P<file>[\w.-]+)(?:#(?P<number>\d+))? -->\n).*?(" + END + ")", re.DOTALL
)
"""``<!-- results: FILE -->`` begins the tables of a file; ``FILE#2`` its second table alone."""


def find_results(sources: Sequence[Path]) -> list[Path]:
    """Return result files: those named, and the ``.json`` of folders, sorted.

    Raises:
        DataError: If a source does not exist, or there is no file at all.
    """
    found: list[Path] = []
    for source in sources:
        if not source.exists():
            raise DataError(f"{source}: not there. Expected a result file or a folder of them.")
        found += sorted(source.glob("*.json")) if source.is_dir() else [source]
    if not found:
        raise DataError("no result files. Expected .json that destseg-bench wrote.")
    return found


def write_page(files: Sequence[Path], output: Path) -> list[Path]:
    """Write a page with every table, its machine and its command.

    A figure of speed and accuracy is added when a result has, or several results together have,
    both for the same contenders.

    Args:
        files: Result files.
        output: Folder; made when missing.

    Returns:
        The files written.

    Raises:
        DataError: If a file is no result.
        OutputError: If the folder has such files that are not of an earlier page.
        OSError: If the folder cannot be written.
    """
    refuse_others([output / PAGE, output / FIGURE], _is_ours)
    results = {path.name: read_result(path) for path in files}
    parts = [_section(name, result) for name, result in results.items()]
    written = [output / PAGE]
    if points := find_points(results):
        with replacing(output / FIGURE) as temporary:
            draw_speed_and_accuracy(points, temporary)
        parts.insert(0, f"![Time per image against accuracy]({FIGURE})\n")
        written.append(output / FIGURE)
    with replacing(output / PAGE) as temporary:
        temporary.write_text("\n".join([f"{HEADING}\n", *parts]), encoding="utf-8")
    return written


def _is_ours(path: Path) -> bool:
    """Tell whether a file is of an earlier page: one that begins as ours is there."""
    try:
        with path.with_name(PAGE).open("rb") as file:
            return file.readline(100).rstrip() == HEADING.encode()
    except OSError:
        return False


def fill_tables(text: str, results: Path) -> str:
    """Return a text in which everything between the markers is the results' tables.

    Args:
        text: Markdown with markers, see ``MARKED`` and ``END``.
        results: Folder of result files.

    Raises:
        DataError: If a marked file does not exist, is no result or has too few tables, or a marker
            has no end.
    """
    begun, ended = text.count("<!-- results: "), text.count(END)
    if begun != ended or len(MARKED.findall(text)) != begun:
        raise DataError(
            f"{begun} tables begin with '<!-- results: FILE -->' and {ended} end with '{END}'. "
            "Expected an end for each."
        )
    return MARKED.sub(lambda found: f"{found[1]}{_marked(found, results)}{END}", text)


def _section(name: str, result: dict[str, Any]) -> str:
    environment = result["environment"]
    machine = environment.get("gpu") or environment.get("cpu")
    with naming(name):
        head = [f"## {name}", "", f"`{environment['command']}`", ""]
        head += [f"{environment['time']}, commit {environment['commit']}, {machine}"]
    head = [printable(line) for line in head]
    if not result.get("complete", True):
        head += ["", "**Not complete: the run was interrupted.**"]
    tables = (table.markdown() for table in tables_of(result, name))
    return "\n".join([*head, "", *tables])


def _marked(found: re.Match[str], results: Path) -> str:
    name, number = found["file"], found["number"]
    tables = tables_of(read_result(results / name), name)
    if number is not None:
        if not 1 <= int(number) <= len(tables):
            raise DataError(f"{name}#{number}: it has {len(tables)} tables, counted from 1.")
        tables = [tables[int(number) - 1]]
    return "\n" + "\n".join(table.markdown() for table in tables) + "\n"
