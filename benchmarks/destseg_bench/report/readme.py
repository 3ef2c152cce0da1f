"""The README's tables, made from result files between markers.

``<!-- results: FILE -->`` begins a table and ``<!-- end of results -->`` ends it; what stands
between belongs to this module. ``FILE#2`` takes the file's second table alone.
"""

from __future__ import annotations

import re
from pathlib import Path

from destseg_bench.report.tables import tables_of
from destseg_bench.result_file import read_result
from destseg_deploy.errors import DataError

END = "<!-- end of results -->"
MARKED = re.compile(
    r"(<!-- results: (?P<file>[\w.-]+)(?:#(?P<number>\d+))? -->\n).*?(" + END + ")", re.DOTALL
)


def fill_tables(text: str, results: Path) -> str:
    """Return a text whose marked tables are those of the results.

    Args:
        text: Markdown with markers.
        results: Folder of result files.

    Raises:
        DataError: If a marked file is not there, is no result or has too few tables, or a marker
            has no end.
    """
    begun, ended = text.count("<!-- results: "), text.count(END)
    if begun != ended or len(MARKED.findall(text)) != begun:
        raise DataError(
            f"{begun} tables begin with '<!-- results: FILE -->' and {ended} end with '{END}'. "
            "Expected an end for each."
        )
    return MARKED.sub(lambda found: f"{found[1]}{_tables(found, results)}{END}", text)


def _tables(found: re.Match[str], results: Path) -> str:
    name, number = found["file"], found["number"]
    tables = tables_of(read_result(results / name), name)
    if number is None:
        return "\n" + "\n".join(table.markdown() for table in tables) + "\n"
    if not 1 <= int(number) <= len(tables):
        raise DataError(f"{name}#{number}: it has {len(tables)} tables, counted from 1.")
    return "\n" + tables[int(number) - 1].markdown() + "\n"
