"""The folder in which a back end keeps what it made of one artifact."""

from __future__ import annotations

import tempfile
from pathlib import Path

from destseg_deploy.errors import BackendError


def make_cache_folder(folder: Path, what: str) -> None:
    """Make a folder, and make sure that it can be written: back ends say nothing if it cannot.

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
