"""A check that tests of refusals share."""

from contextlib import contextmanager
from pathlib import Path


@contextmanager
def unchanged(folder: Path):
    """Make sure that nothing under a folder is written, removed or changed."""

    def listing():
        found = sorted(folder.rglob("*"))
        return [(path, path.is_file() and path.stat().st_mtime_ns) for path in found]

    before = listing()
    yield
    assert listing() == before
