"""Files behind URIs, such as ``s3://bucket/line-4/0001.png``, read by pyarrow's file systems."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from destseg_deploy.errors import DataError, DestsegError

URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
"""How one begins. Two letters at least: ``c://`` is a drive of Windows."""


class UnreachableError(DestsegError):
    """A file system that does not answer. It stops a run, which goes on later."""


def is_uri(name: str) -> bool:
    """Tell whether a name is a URI and not a path."""
    return URI.match(name) is not None


class FileSystems:
    """The file systems that were asked for, each opened once: for S3 that takes a request."""

    def __init__(self) -> None:
        """Open none yet."""
        self._roots: dict[str, tuple[Any, str]] = {}

    def read(self, uri: str) -> bytes:
        """Return all bytes of a file.

        Raises:
            FileNotFoundError: If there is no such file.
            UnreachableError: If it cannot be reached, which is no fault of the file.
        """
        try:
            with self.open(uri) as file:
                content: bytes = file.read()
                return content
        except FileNotFoundError:
            raise
        except OSError as error:  # the connection broke
            raise _unreachable(uri, error) from error

    def open(self, uri: str) -> Any:
        """Return a file that can be read at any place, of pyarrow.

        Raises:
            FileNotFoundError, UnreachableError: As ``read``.
        """
        try:
            system, path = self._find(uri)
            return system.open_input_file(path)
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:
            raise _unreachable(uri, error) from error

    def list_below(self, uri: str) -> Iterator[str]:
        """Yield the URIs of all files below a folder, sorted, but hidden ones; of a file, itself.

        Raises:
            DataError: If there is no such folder.
            UnreachableError: If it cannot be reached.
        """
        from pyarrow import fs

        try:
            system, path = self._find(uri)
            info = system.get_file_info(path)
            if info.type == fs.FileType.File:
                yield uri
                return
            found = system.get_file_info(fs.FileSelector(path, recursive=True))
        except FileNotFoundError as error:
            raise DataError(f"{uri}: no such file or folder.") from error
        except (OSError, ValueError) as error:
            raise _unreachable(uri, error) from error
        head, start = self._head(uri), len(path.rstrip("/")) + 1
        query = urlsplit(uri).query
        below = unquote(urlsplit(uri).path).strip("/")
        for name in sorted(one.path[start:] for one in found if one.is_file):
            if "/." in f"/{name}":  # hidden, or in a hidden folder
                continue
            whole = quote(f"{below}/{name}" if below else name)
            yield f"{head}/{whole}" + (f"?{query}" if query else "")

    def _find(self, uri: str) -> tuple[Any, str]:
        """Return a URI's file system, and the file's path in it."""
        from pyarrow import fs

        parts = urlsplit(uri)
        key = f"{self._head(uri)}/" + (f"?{parts.query}" if parts.query else "")
        if key not in self._roots:
            self._roots[key] = fs.FileSystem.from_uri(key)
        system, root = self._roots[key]
        return system, f"{root.rstrip('/')}/{unquote(parts.path).strip('/')}".rstrip("/")

    @staticmethod
    def _head(uri: str) -> str:
        parts = urlsplit(uri)
        return f"{parts.scheme}://{parts.netloc}"


def _unreachable(uri: str, error: Exception) -> UnreachableError:
    reason = " ".join(str(error).split())[:200]
    return UnreachableError(
        f"{uri}: cannot be reached ({reason}). Expected a URI that pyarrow reads, such as "
        "s3://bucket/folder. What was answered is kept; the same command goes on."
    )
