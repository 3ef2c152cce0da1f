"""What is costly to make and always the same, kept from one test run to the next.

The makers of artifacts take a minute each, and ``make test`` runs three processes. What a maker
gives depends on its sources, its input and the packages; their hash is the name it is kept under.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import distributions
from pathlib import Path

import pytest

from destseg_deploy.files import sha256

try:
    import fcntl
except ImportError:  # Windows: two processes may then make it both
    fcntl = None

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("destseg_deploy", "export/destseg_export")


def kept(config: pytest.Config, name: str, source: Path, make: Callable[[Path], object]) -> Path:
    """Return a folder that holds what ``make`` writes into it.

    Args:
        config: Of the test run, whose cache keeps the folder; ``pytest --cache-clear`` empties it.
        name: What it is called, and all that ``make`` depends on beside its code and its input.
        source: The input file.
        make: Writes into the folder that it is given.
    """
    folder = config.cache.mkdir("made") / name
    folder.mkdir(exist_ok=True)
    made = folder / _key(source)
    with _alone(folder / "lock"):
        if not made.is_dir():
            for old in folder.glob("*/"):
                shutil.rmtree(old)
            half = folder / "half"
            half.mkdir()
            make(half)
            os.replace(half, made)
    return made


def _key(source: Path) -> str:
    """Hash the sources, the input and the packages."""
    total = hashlib.sha256()
    for root in SOURCES:
        for path in sorted((ROOT / root).rglob("*.py")):
            total.update(f"{path.relative_to(ROOT)} {sha256(path)}\n".encode())
    packages = sorted(f"{one.name}=={one.version}" for one in distributions())
    total.update("\n".join([sha256(source), *packages]).encode())
    return total.hexdigest()[:24]


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Let other test runs wait until this one has made it."""
    with lock.open("w") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
