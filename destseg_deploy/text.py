"""Text for terminals, tables and pictures: any file name can be shown, and none can do harm.

File names on Linux are bytes. Python keeps those that are no UTF-8 as lone surrogates, which no
encoding accepts. Control characters may move a terminal's cursor or begin a new line of a log.
"""

from __future__ import annotations

import errno
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""How a cell begins that a spreadsheet runs as a formula."""

PARTS = re.compile('[",;\t\r\n]')
"""What a cell is quoted for: where a comma is in numbers, Excel parts a table at semicolons, and
what follows one in a file name would begin a cell."""

SURROGATES = {"Cs"}
"""The Unicode category that no encoding accepts."""

UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories that are escaped: control and format characters (some turn the order of the
text around), surrogates, and separators of lines and paragraphs."""


def printable(text: str) -> str:
    r"""Return text on one line, with what a terminal would act on as ``\n``, ``\x1b``, ``\xff``."""
    return _escape(text, UNSEEN)


def _escape(text: str, categories: set[str]) -> str:
    return "".join(_escaped(c) if unicodedata.category(c) in categories else c for c in text)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # one byte of a file name that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return ascii(character)[1:-1]


def storable(text: str) -> str:
    r"""Return text that UTF-8 holds: the bytes of a file name that are no UTF-8 become ``\xff``."""
    return text if text.isascii() else _escape(text, SURROGATES)


def is_encodable(path: Path) -> bool:
    """Return whether a path is UTF-8; libraries written in C++ take no other one from Python."""
    return not any(unicodedata.category(c) in SURROGATES for c in str(path))


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table that spreadsheets open as it is.

    It begins with a byte order mark, by which Excel knows UTF-8. Text that a spreadsheet would run
    as a formula gets a ``'`` before it, which spreadsheets do not show.
    """
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        for row in chain([columns], rows):
            file.write(",".join(map(_cell, row)) + "\r\n")


def _cell(value: object) -> str:
    """Return a cell as the csv module writes it, and quoted for what ``PARTS`` names."""
    if not isinstance(value, str):
        return "" if value is None else str(value)
    text = storable(value)  # a table can hold all else; quotes keep line breaks
    text = f"'{text}" if text.startswith(FORMULA) else text
    return '"' + text.replace('"', '""') + '"' if PARTS.search(text) else text


def decode_text(content: bytes) -> str:
    """Return the text of a file: UTF-8, UTF-16 or UTF-32, with a byte order mark or without.

    Editors of Windows write such marks, and ``>`` in PowerShell writes UTF-16.

    Raises:
        UnicodeDecodeError: If it is none of them.
    """
    return content.decode(json.detect_encoding(content))


def load_json(path: Path) -> Any:
    """Return what a JSON file holds, in any encoding of ``decode_text``.

    Raises:
        OSError: If it cannot be read, or is a pipe, which would be waited for.
        ValueError: If it is not JSON.
        RecursionError: If it is nested too deeply.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "not a file", str(path))
    return json.loads(decode_text(path.read_bytes()))


def tolerate(stream: TextIO) -> None:
    r"""Let a stream write what its encoding lacks as ``\u20ac`` instead of failing."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")
