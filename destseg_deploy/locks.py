"""Which process a lock or a temporary file belongs to, and whether that process is still there.

A process number alone is not enough: systems use it again. With the time at which the process
started, and the host, it names one process only.
"""

from __future__ import annotations

import os
import platform
import re
import secrets
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from destseg_deploy.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows; there, two processes may take over a stale lock at the same moment
    fcntl = None  # type: ignore[assignment]  # a module is no Optional

TEMPORARY = re.compile(r"\.destseg-(\d+)-(\d+)-([0-9a-f]{8})-")
"""How the names of our temporary files and folders begin: process, its start, its host."""


@dataclass(frozen=True)
class Owner:
    """A process.

    Attributes:
        pid: Its number.
        start: When it started, in the system's own unit; 0 where that cannot be read.
        host: Eight characters that stand for the host.
    """

    pid: int
    start: int
    host: str

    @classmethod
    def current(cls) -> Owner:
        """Return this process."""
        return cls(os.getpid(), _start_of(os.getpid()) or 0, _host())

    @property
    def gone(self) -> bool:
        """Whether the process has ended. One of another host counts as running."""
        if self.host != _host():
            return False
        if self.start:
            return _start_of(self.pid) != self.start
        return os.name == "posix" and not _exists(self.pid)

    def __str__(self) -> str:
        """Return the form that ``TEMPORARY`` and lock files have."""
        return f"{self.pid}-{self.start}-{self.host}"


def temporary_name(suffix: str = "") -> str:
    """Return a new hidden name that says which process it belongs to."""
    return f".destseg-{Owner.current()}-{secrets.token_hex(4)}{suffix}"


def owner_of(name: str) -> Owner | None:
    """Return the process that a name from ``temporary_name`` belongs to; None for other names."""
    found = TEMPORARY.match(name)
    return None if found is None else Owner(int(found[1]), int(found[2]), found[3])


@contextmanager
def locked(target: Path, said: Path | None = None) -> Iterator[None]:
    """Hold ``.<name>.lock`` beside a target, so that no other run writes the same one meanwhile.

    The lock of a process that has ended is taken over.

    Args:
        target: What is written. Its folder must be there.
        said: What an error calls it; the target unless given.

    Raises:
        OutputError: If another run holds it, or the folder cannot be written.
    """
    real = Path(os.path.realpath(target))  # two names of one file have one lock
    path = real.with_name(f".{real.name}.lock")
    while not _take(path, said or target):
        pass
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()


def _take(path: Path, said: Path) -> bool:
    """Write this process into the lock file; False if the file was removed at that moment."""
    with _opened(path) as file:
        # Held while the file is read and written only: a forked worker may outlive this process,
        # and it would keep the system's lock.
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return False
        except FileNotFoundError:
            return False
        _refuse_running(file.read(), path, said)
        file.seek(0)
        file.truncate()
        file.write(f".destseg-{Owner.current()}-\n{platform.node()}\n")
    return True


def _opened(path: Path) -> TextIO:
    try:
        return os.fdopen(
            os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+", encoding="utf-8", errors="replace"
        )
    except OSError as error:
        raise OutputError(
            f"{path.parent}: cannot be written ({error.strerror or error}). Choose another output."
        ) from error


def _refuse_running(text: str, path: Path, said: Path) -> None:
    owner = owner_of(text)
    if owner is None or owner.gone:  # empty: the process ended before it wrote its name
        return
    host = text.partition("\n")[2].strip()
    elsewhere = "" if owner.host == _host() else f" on {host} (not this computer)"
    raise OutputError(
        f"{said}: process {owner.pid}{elsewhere} is writing it. Wait for that process or choose "
        f"another output. If it has ended for certain, delete {path}."
    )


def _host() -> str:
    """Return eight characters for the host and, on Linux, the container's space of processes."""
    space = ""
    with suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return f"{zlib.crc32(f'{platform.node()} {space}'.encode()):08x}"


def _start_of(pid: int) -> int | None:
    """Return when a process started, in clock ticks; None if it has ended or cannot be told."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name in brackets may hold spaces and brackets; what is read here follows it.
    entries = text.rpartition(")")[2].split()
    return None if entries[0] in "ZX" else int(entries[19])  # Z, X: ended, not yet collected


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True
