"""Lists of images: a CSV or JSON file that says of each image what it is.

::

    path,label,mask
    parts/001.png,good,
    parts/002.png,scratch,masks/002.png

Only ``path`` is needed, each once. Paths are relative to the list. A label is ``good`` (or ``ok``,
``normal``, ``0``), or names the defect; a list without labels holds good parts. An optional column
``split`` (``train`` or ``test``) keeps the images that are measured on apart from those that are
trained on. A JSON list holds an object for each image, with the same names. Both are UTF-8, or the
UTF-16 that Excel and PowerShell write.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from destseg_deploy.data.finding import find_repeated
from destseg_deploy.errors import DataError
from destseg_deploy.text import decode_text

SUFFIXES = (".csv", ".json")
COLUMNS = ("path", "label", "mask", "split")
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Entry:
    """One image of a list.

    Attributes:
        path: The image.
        label: What it is, as written; None where the list says nothing.
        mask: Its ground truth, or None.
        split: ``train``, ``test``, or None where the list says nothing.
        row: Its row in the list, for errors.
    """

    path: Path
    label: str | None
    mask: Path | None
    split: str | None
    row: int


def is_list(path: Path) -> bool:
    """Tell by the suffix whether a file is a list of images."""
    return path.suffix.lower() in SUFFIXES and path.is_file()


def read_list(path: Path) -> list[Entry]:
    """Read a list; the images themselves are not looked at.

    Raises:
        DataError: If it cannot be read, has no column ``path`` or no row, or a row is not as
            expected; the message names the row.
    """
    try:
        text = decode_text(path.read_bytes())  # what Excel calls Unicode text is UTF-16
        rows = _json_rows(text, path) if path.suffix.lower() == ".json" else _csv_rows(text, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError, csv.Error) as error:  # csv.Error: a cell without an end
        raise DataError(
            f"{path}: no list of images ({error}). Expected UTF-8 or UTF-16 text, a CSV table "
            "with the columns path,label,mask or a JSON list of objects."
        ) from error
    entries = [_entry(row, path, number) for number, row in rows]
    if not entries:
        raise DataError(f"{path}: no rows. Expected an image in each, below path,label,mask.")
    if 0 < sum(entry.label is None for entry in entries) < len(entries):
        number = next(i for i, entry in enumerate(entries, 1) if entry.label is None)
        raise DataError(
            f"{path}: image {number} ({entries[number - 1].path.name}) has no label, and others "
            "have one. Write good or the name of the defect for each, or drop the column."
        )
    return entries


def refuse_repeated(path: Path, entries: Sequence[Entry]) -> None:
    """Refuse a list that names an image twice: it would count twice, or be its own test.

    Raises:
        DataError: With the image and both rows.
    """
    if found := find_repeated([entry.path for entry in entries]):
        first, entry = (entries[place] for place in found)
        labels = "" if first.label == entry.label else f", as {first.label} and {entry.label}"
        raise DataError(
            f"{path}: rows {first.row} and {entry.row} name the same image, {entry.path}"
            f"{labels}. Expected each image once; delete one of the rows."
        )


def _csv_rows(text: str, path: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    head = text.partition("\n")[0]
    table = io.StringIO(text, newline="")  # a name in quotes may hold a line break
    delimiter = max(",;\t", key=head.count)
    reader: csv.DictReader[Any] = csv.DictReader(table, delimiter=delimiter)
    names = [name.strip().lower() for name in reader.fieldnames or ()]
    if "path" not in names:
        raise DataError(
            f"{path}: the columns are {', '.join(names) or 'missing'}, expected path and, where "
            "they are known, label and mask. Write path,label,mask as the first line."
        )
    _refuse_misspelt(names, path)
    reader.fieldnames = names
    rows = [(reader.line_num, row) for row in reader]
    for number, row in rows:
        if any(cell.strip() for cell in row.get(None, ())):
            raise DataError(
                f"{path}: row {number} has more cells than the {len(names)} columns. Put a name "
                f"that holds {delimiter!r} into double quotes."
            )
    return rows


def _json_rows(text: str, path: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    found = json.loads(text)
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise DataError(
            f'{path}: expected a list of objects, [{{"path": "a.png", "label": "good"}}, ...].'
        )
    rows = [{str(name).strip().lower(): value for name, value in row.items()} for row in found]
    _refuse_misspelt(dict.fromkeys(name for row in rows for name in row), path)
    return list(enumerate(rows, 1))


def _refuse_misspelt(names: Collection[str], path: Path) -> None:
    """Refuse a column whose name is nearly one that is read: without labels, all parts are good."""
    for name in names:
        missing = [one for one in COLUMNS if one not in names]
        if name not in COLUMNS and (like := get_close_matches(name, missing, 1, 0.8)):
            raise DataError(
                f"{path}: a column {name!r}, expected {', '.join(COLUMNS)}. Call it {like[0]!r}, "
                "or give it a name that is not so near to it."
            )


def _entry(row: dict[str, Any], path: Path, number: int) -> Entry:
    """Return the entry of a row; empty cells are as if they were not there."""
    where = f"row {number}"
    given = {name: _cell(row.get(name), f"{path}: {where}: {name}") for name in COLUMNS}
    image, label, mask, split = (given[name] for name in COLUMNS)
    if image is None:
        raise DataError(f"{path}: {where} has no path. Expected the name of an image.")
    if split is not None and split.lower() not in SPLITS:
        raise DataError(f"{path}: {where}: split {split!r}, expected train or test.")
    folder = path.parent
    truth = folder / mask if mask else None
    return Entry(folder / image, label, truth, split and split.lower(), number)


def _cell(value: object, where: str) -> str | None:
    """Return a cell's text; None where it is empty."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise DataError(f"{where} is {value!r}, expected text.")
    text = "" if value is None else str(value).strip()
    if "\0" in text:
        raise DataError(f"{where} is {text!r}, expected no zero byte in it.")
    return text or None
