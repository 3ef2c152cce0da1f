"""Files that are either whole or not there: written under a temporary name, then renamed."""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; rename it to ``path`` when the block succeeds.

    The parent folder is made. When the block raises, the temporary file is deleted and whatever
    stood at ``path`` before stays as it was. The suffix is kept, for writers that look at it.

    Raises:
        OSError: If the folder cannot be made or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(8)}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """Give a temporary folder inside ``folder``; move its files there when the block succeeds.

    Files of the same names are replaced. Specs (``.json``) come last: should the move be
    interrupted, a spec does not fit its file and nothing loads. When the block raises, ``folder``
    is as it was, and is not there if it was not.

    Raises:
        OSError: If the folder cannot be made or written.
    """
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".", dir=folder) as name:
            staged = Path(name)
            yield staged
            files = sorted(path for path in staged.rglob("*") if path.is_file())
            for path in sorted(files, key=lambda path: path.suffix == ".json"):
                target = folder / path.relative_to(staged)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)
    except BaseException:
        with suppress(OSError):
            for parent in made:
                parent.rmdir()
        raise


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
