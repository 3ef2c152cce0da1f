"""A page of results: Markdown with every table, its machine and command, and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from destseg_bench.report.figure import draw_speed_and_accuracy, find_points
from destseg_bench.report.tables import tables_of
from destseg_bench.result_file import read_result
from destseg_deploy.atomic import replacing
from destseg_deploy.errors import DataError

PAGE = "report.md"
FIGURE = "speed-and-accuracy.png"


def find_results(sources: Sequence[Path]) -> list[Path]:
    """Return result files: those named, and the ``.json`` of folders, sorted.

    Raises:
        DataError: If a source is not there, or there is no file at all.
    """
    found: list[Path] = []
    for source in sources:
        if not source.exists():
            raise DataError(f"{source}: not there. Expected a result file or a folder of them.")
        found += sorted(source.glob("*.json")) if source.is_dir() else [source]
    if not found:
        raise DataError("no result files. Expected .json that destseg-bench wrote.")
    return found


def write_report(files: Sequence[Path], output: Path) -> list[Path]:
    """Write ``report.md``, and the figure where times and accuracies are known.

    Args:
        files: Result files.
        output: Folder; made when missing.

    Returns:
        The files written.

    Raises:
        DataError: If a file is no result.
        OSError: If the folder cannot be written.
    """
    results = {path.name: read_result(path) for path in files}
    parts = [_section(name, result) for name, result in results.items()]
    points = find_points(list(results.values()))
    written = [output / PAGE]
    output.mkdir(parents=True, exist_ok=True)
    figure = ""
    if points:
        with replacing(output / FIGURE) as temporary:
            draw_speed_and_accuracy(points, temporary)
        figure = f"![Time per image against accuracy]({FIGURE})\n\n"
        written.append(output / FIGURE)
    with replacing(output / PAGE) as temporary:
        temporary.write_text(f"# Results\n\n{figure}" + "\n".join(parts), encoding="utf-8")
    return written


def _section(name: str, result: dict[str, Any]) -> str:
    environment = result["environment"]
    machine = environment.get("gpu") or environment.get("cpu")
    head = [f"## {name}", "", f"`{environment['command']}`", ""]
    head += [f"{environment['time']}, commit {environment['commit']}, {machine}"]
    if not result.get("complete", True):
        head += ["", "**Not complete: the run was interrupted.**"]
    tables = (table.markdown() for table in tables_of(result, name))
    return "\n".join([*head, "", *tables])
