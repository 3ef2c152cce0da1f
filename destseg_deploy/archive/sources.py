"""Which images an archive has: folders, globs, lists, Parquet tables, text files and URIs.

Paths are streamed, because an archive may have millions. They are absolute, so that the same
command goes on from another folder, and workers on Ray find them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from destseg_deploy.archive.uris import FileSystems, is_uri
from destseg_deploy.data.datasets import scored_part
from destseg_deploy.data.finding import expand, is_image, stream_below
from destseg_deploy.data.lists import is_list, read_list
from destseg_deploy.errors import DataError

TABLES = (".parquet",)
TEXTS = (".txt",)
COLUMN = "path"


def stream_paths(sources: Sequence[str]) -> Iterator[str]:
    """Yield the images of each source, as they are found; the images are not looked at.

    Args:
        sources: Image files, folders (at any depth), globs, lists (CSV, JSON), Parquet files with a
            column ``path``, text files with a path on each line, or URIs of all but globs, CSV and
            JSON. Paths in a file are relative to it.

    Yields:
        Absolute paths, or URIs.

    Raises:
        DataError: If a source cannot be read, or names no image.
        UnreachableError: If the file system of a URI does not answer.
    """
    systems = FileSystems()
    for source in sources:
        nothing = True
        try:
            found = _of(source, systems)
        except FileNotFoundError as error:
            raise DataError(f"{source}: no such file. Expected a list of images.") from error
        for path in found:
            nothing = False
            yield path
        if nothing:
            raise DataError(
                f"{source}: no images there. Expected images, a folder or a glob of them, or a "
                "list: CSV, JSON, Parquet with a column path, or text with a path on each line."
            )


def _of(source: str, systems: FileSystems) -> Iterator[str]:
    suffix = os.path.splitext(source)[1].lower()
    if not source.strip():
        raise DataError(f"{source!r}: an empty name. Expected images; '.' is the current folder.")
    if is_uri(source):
        return _of_uri(source, suffix, systems)
    path = Path(source)
    if suffix in (*TABLES, *TEXTS) and path.is_file():
        with_paths = _of_table if suffix in TABLES else _of_text
        return _absolute(with_paths(path.open("rb"), source), os.path.dirname(source))
    return (os.path.abspath(one) for one in _of_path(source, path))


def _of_path(source: str, path: Path) -> Iterable[Path]:
    """Return the images of a list, a folder or a glob, by the rules of all commands."""
    if is_list(path):
        return (entry.path for entry in read_list(path))
    return stream_below(*scored_part(path)) if path.is_dir() else expand([source])


def _of_uri(source: str, suffix: str, systems: FileSystems) -> Iterator[str]:
    if suffix in (*TABLES, *TEXTS):
        with_paths = _of_table if suffix in TABLES else _of_text
        return _absolute(with_paths(systems.open(source), source), source.rpartition("/")[0])
    if is_image(Path(source)):
        return iter([source])
    return (one for one in systems.list_below(source) if is_image(Path(one)))


def _absolute(names: Iterable[str], folder: str) -> Iterator[str]:
    for name in names:
        if is_uri(name):
            yield name
        elif is_uri(folder):
            yield f"{folder}/{name}"
        else:
            yield os.path.abspath(os.path.join(folder, name))


def _of_text(file: Any, name: str) -> Iterator[str]:
    """Yield the lines of a text file; empty ones are left out."""
    with file:
        for number, line in enumerate(_lines(file), 1):
            content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if b"\0" in content:
                raise DataError(
                    f"{name}: line {number} holds a zero byte. Expected a path on each line, in "
                    "UTF-8."
                )
            if text := os.fsdecode(content).strip("\r\n"):
                yield text


def _lines(file: Any) -> Iterator[bytes]:
    rest = b""
    while block := file.read(1 << 20):
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
    yield rest


def _of_table(file: Any, name: str) -> Iterator[str]:
    """Yield the column ``path`` of a Parquet file, a group of rows at a time."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    with file:
        try:
            table = ParquetFile(file)
            if COLUMN not in table.schema_arrow.names:
                raise DataError(
                    f"{name}: the columns are {', '.join(table.schema_arrow.names) or 'missing'}, "
                    f"expected a column {COLUMN} with the name of each image."
                )
            number = 0
            for batch in table.iter_batches(columns=[COLUMN]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    if not isinstance(value, str) or not value.strip():
                        raise DataError(
                            f"{name}: row {number} has the path {value!r}. Expected the name of an "
                            "image in each row."
                        )
                    yield value
        except (ArrowException, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{name}: no Parquet file ({reason}). Write it again.") from error
