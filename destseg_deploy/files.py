"""Files that are never half written, folders for caches, and the hash of a file.

A file is written under a temporary name in the same folder and then renamed. A rename within one
file system replaces the old file in one step, so a reader sees the old content or the new one.

Several files that belong together (an artifact and its spec) cannot be renamed in one step. Before
the first rename, the old files get a second name and a journal is written. Whoever finds the
journal of a process that has ended restores the old files: all are old, or all are new.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from destseg_deploy.errors import BackendError, OutputError
from destseg_deploy.locks import owner_of, temporary_name

JOURNAL = ".journal"
OLD = ".old"
FORGOTTEN_S = 7 * 24 * 3600
"""Age at which temporary files of another host are deleted. Whether its process still runs cannot
be asked from here."""


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Give a temporary path beside ``path``; rename it to ``path`` when the block succeeds.

    The parent folder is made. When the block raises, the temporary file is deleted and whatever
    stood at ``path`` before stays as it was. The suffix is kept, for writers that look at it. A
    symbolic link stays: the file that it leads to is replaced. An older file's mode is kept.

    Args:
        path: The file to write.
        durable: Wait until the disk has it. False for what is easily made again.

    Raises:
        OSError: If the folder cannot be made or written.
    """
    with _naming(path):
        yield from _replacing(path, durable)


def _replacing(path: Path, durable: bool) -> Iterator[Path]:
    target = _real(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if durable:  # the others are many: pictures in a folder that was made for them
        sweep(target.parent)
    temporary = target.with_name(temporary_name(path.suffix))
    try:
        yield temporary
        _prepare(temporary, target, durable)
        os.replace(temporary, target)
        if durable:
            _sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let an error of the system name what the user asked for.

    A full disk is met in writes that name no file, or in a temporary one.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None and (named := _final_name(error.filename, path)) is not None:
            error.filename, error.filename2 = str(named), None
        raise


def _final_name(name: str | bytes | None, path: Path) -> Path | None:
    """Return what an error should name in place of a temporary file; None to keep the name.

    Args:
        name: What it names.
        path: The file that is replaced, or the folder that a staged file is moved to.
    """
    if name is None:
        return path
    parts = Path(os.fsdecode(name)).parts
    temporary = [i for i, part in enumerate(parts) if owner_of(part) is not None]
    if not temporary:
        return None
    below, staged = Path(*parts[: temporary[-1]]), parts[temporary[-1] + 1 :]
    hidden = any(part.startswith(".") for part in staged)  # a journal, or what is kept of before
    return path.joinpath(*staged) if below == path and not hidden else path


@contextmanager
def making(folder: Path) -> Iterator[None]:
    """Make a folder and its parents; when the block raises, remove those that it made, if empty.

    Raises:
        OSError: If it cannot be made.
    """
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for parent in made:
                parent.rmdir()
        raise


@contextmanager
def staging(folder: Path, *, durable: bool = True) -> Iterator[Path]:
    """Give a temporary folder inside ``folder``; move its files there when the block succeeds.

    Files of the same names are replaced, as ``replacing`` does it: all of them or none, also when
    the process is killed. When the block raises, or a file cannot be moved, ``folder`` is as it
    was, and is not there if it was not.

    Args:
        folder: Made when missing.
        durable: As in ``replacing``.

    Raises:
        OSError: If the folder cannot be made or written.
    """
    with _naming(folder), making(folder), workshop(folder) as staged:
        yield staged
        _commit(staged, folder, durable)


@contextmanager
def workshop(folder: Path) -> Iterator[Path]:
    """Give a temporary folder inside ``folder``, which is deleted in the end.

    Those of processes that have ended are deleted, too.

    Raises:
        OSError: If the folder cannot be written.
    """
    sweep(folder)
    made = folder / temporary_name()
    made.mkdir()
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


@contextmanager
def scratch() -> Iterator[Path]:
    """Give a temporary folder of the system's for what needs no place of its own.

    It is deleted in the end, and those of this user's processes that were killed are, too. Others
    write in that place as well: their folders are left alone, and no journal in it is followed.

    Raises:
        OSError: If it cannot be made.
    """
    place = Path(tempfile.gettempdir())
    with suppress(OSError):
        for path in [Path(entry.path) for entry in os.scandir(place)]:
            if _is_abandoned(path) and _is_own(path):
                shutil.rmtree(path, ignore_errors=True)
    made = place / temporary_name()
    made.mkdir(0o700)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _is_own(path: Path) -> bool:
    return not hasattr(os, "geteuid") or path.lstat().st_uid == os.geteuid()


def sweep(folder: Path) -> None:
    """Delete what processes that have ended left in a folder; restore what they half replaced.

    Nothing happens where the folder cannot be read or written.
    """
    with suppress(OSError):
        for path in [Path(entry.path) for entry in os.scandir(folder)]:
            if _is_abandoned(path):
                with suppress(OSError):  # another process may sweep, too
                    _undo(path, folder)
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_abandoned(path: Path) -> bool:
    owner = owner_of(path.name)
    if owner is None:
        return False
    return owner.gone or (time.time() - path.lstat().st_mtime > FORGOTTEN_S)


def _commit(staged: Path, folder: Path, durable: bool) -> None:
    """Move all staged files to their places, or none."""
    files = [path for path in sorted(staged.rglob("*")) if path.is_file()]
    # Specs last: hosts that know no journal, such as the C++ library, refuse a half moved pair.
    files.sort(key=lambda path: path.suffix == ".json")
    names = [path.relative_to(staged) for path in files]
    moves: list[tuple[Path, Path]] = []
    try:
        for name in names:
            target = _real(folder / name)
            target.parent.mkdir(parents=True, exist_ok=True)
            source = _beside(staged / name, target)
            moves.append((source, target))
            _prepare(source, target, durable)
            if target.exists():
                _keep(target, staged / OLD / name)
        marks = [_mark(source) for source, _ in moves]
        _write_journal(staged, list(zip(map(str, names), marks, strict=True)))
        for source, target in moves:
            os.replace(source, target)
        for parent in {target.parent for _, target in moves} if durable else ():
            _sync(parent)
    except BaseException:
        _undo(staged, folder)
        for source, _ in moves:
            source.unlink(missing_ok=True)
        _remove_empty(folder, names)
        raise
    # From here on the new files are the valid ones.
    (staged / JOURNAL).unlink()


def _undo(staged: Path, folder: Path) -> None:
    """Restore what the journal in a temporary folder says was replaced; a second call is harmless.

    A file that somebody has changed since is left alone.
    """
    try:
        text = (staged / JOURNAL).read_text(encoding="utf-8")
        entries = [(str(name), list(mark)) for name, mark in json.loads(text)]
    except (OSError, ValueError, TypeError, RecursionError):  # no journal: nothing was replaced
        return
    for name, mark in entries:
        if Path(name).is_absolute() or ".." in Path(name).parts:  # not ours: it leads elsewhere
            continue
        target, old = _real(folder / name), staged / OLD / name
        if target.exists() and _mark(target) == mark:  # the new one
            if old.exists():
                os.replace(_beside(old, target), target)
            else:
                target.unlink()
    _sync(folder)
    (staged / JOURNAL).unlink()


def _mark(path: Path) -> list[int]:
    """Return what a file keeps when it is renamed; a number of an inode alone is used again."""
    status = path.stat()
    return [status.st_ino, status.st_mtime_ns]


def _write_journal(staged: Path, entries: list[tuple[str, list[int]]]) -> None:
    """Write which files are replaced, and the mark by which each new one is known."""
    written = staged / f"{JOURNAL}.new"
    written.write_text(json.dumps(entries), encoding="utf-8")
    _sync(written)
    os.replace(written, staged / JOURNAL)
    _sync(staged)


def _keep(target: Path, old: Path) -> None:
    """Give an existing file a second name. Its first one stays, so that readers always find it."""
    old.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(target, old)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(target, old)
        _sync(old)


def _beside(source: Path, target: Path) -> Path:
    """Return the source, or a copy of it on the target's file system, from where it can be renamed.

    They differ where the target is behind a symbolic link.
    """
    if source.stat().st_dev == target.parent.stat().st_dev:
        return source
    copy = target.with_name(temporary_name(target.suffix))
    shutil.copyfile(source, copy)
    return copy


def _prepare(source: Path, target: Path, durable: bool) -> None:
    """Give a new file the mode of the one it replaces, and bring it to the disk."""
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder, expected a file", str(target))
    if target.exists():
        shutil.copymode(target, source)
    if durable:
        _sync(source)


def _remove_empty(folder: Path, names: list[Path]) -> None:
    for parent in {folder / name.parent for name in names} - {folder}:
        with suppress(OSError):  # it has files of before
            parent.rmdir()


def _real(path: Path) -> Path:
    """Return the file that a symbolic link leads to; the path itself where it is none."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    # Windows cannot open folders, and opens a file for it only to write.
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not every file system can
            raise
    finally:
        os.close(descriptor)


def refuse_others(paths: Iterable[Path], is_ours: Callable[[Path], bool]) -> None:
    """Refuse to replace files that another program or the user has written.

    Args:
        paths: What will be written.
        is_ours: Tells whether an existing one was written by the same command.

    Raises:
        OutputError: If one exists and is not ours.
    """
    for path in paths:
        # Reading a pipe, to see what it is, would wait for ever.
        if path.exists() and not ((path.is_file() or path.is_dir()) and is_ours(path)):
            raise OutputError(
                f"{path}: exists and was not written by this command, so it is not replaced. "
                "Choose another --output, or move it away."
            )


def reserve(folder: Path, size: int, what: str) -> None:
    """Make sure that a folder can be written and takes a number of bytes more.

    Args:
        folder: Where it will be written; it must be there.
        size: The bytes.
        what: What needs them, for the error.

    Raises:
        OutputError: If they cannot be written.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):  # sees quotas, too
                os.posix_fallocate(file.fileno(), 0, size)
            elif shutil.disk_usage(folder).free < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise OutputError(
            f"{folder}: {what} cannot be written there, {size / 2**20:.0f} MiB are needed "
            f"({error.strerror}). Make room, or choose another folder."
        ) from error


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def make_cache_folder(folder: Path, what: str) -> None:
    """Make the folder in which a back end keeps what it made of one artifact.

    A file is written there, because back ends go on without a cache and say nothing where they
    cannot write.

    Args:
        folder: Made with its parents when missing.
        what: What is kept there, for the error.

    Raises:
        BackendError: If it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BackendError(
            f"{folder}: {what} cannot be kept there ({error.strerror}). Pass a folder that can be "
            "written, cache=Path(...)."
        ) from error
