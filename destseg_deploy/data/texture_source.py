"""Where the textures of synthetic anomalies come from: a folder such as DTD, or a generator."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.data.images import is_image, read_image
from destseg_deploy.data.resize import resize_image
from destseg_deploy.data.textures import procedural_texture
from destseg_deploy.errors import DataError


class Textures(Protocol):
    """Numbered textures of one size."""

    name: str
    """What a spec calls them."""
    size: tuple[int, int]

    def __len__(self) -> int:
        """Return how many there are."""

    def read(self, number: int) -> NDArray[np.uint8]:
        """Return a texture, uint8 (H, W, 3) RGB; any thread may call."""

    def digest(self) -> str:
        """Return what tells this collection from another."""


class FolderTextures:
    """The images of a folder, at any depth, resized as the training images are."""

    def __init__(self, folder: Path, size: tuple[int, int]) -> None:
        """List the files; none is read yet.

        Raises:
            DataError: If the folder does not exist or holds no image.
        """
        self.name = str(folder)
        self.size = size
        self.folder = folder
        self.files: Sequence[Path] = list_textures(folder)

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.files)

    def read(self, number: int) -> NDArray[np.uint8]:
        """Decode and resize a file."""
        return resize_image(read_image(self.files[number]), self.size)

    def digest(self) -> str:
        """Return a hash of the files' names and sizes; thousands of contents would take long.

        Raises:
            DataError: If a file is no longer there.
        """
        names = [(p.relative_to(self.folder).as_posix(), _bytes(p)) for p in self.files]
        return hashlib.sha256(repr((names, self.size)).encode()).hexdigest()


class ProceduralTextures:
    """Textures drawn by data/textures.py, for those who have no collection at hand."""

    def __init__(self, size: tuple[int, int], count: int = 1024) -> None:
        """Number them; each is drawn when it is read, always the same."""
        self.name = "procedural"
        self.size = size
        self.count = count

    def __len__(self) -> int:
        """Return how many different ones are used."""
        return self.count

    def read(self, number: int) -> NDArray[np.uint8]:
        """Draw a texture."""
        texture = procedural_texture(np.random.default_rng([2, number]), max(self.size))
        return resize_image(texture, self.size)

    def digest(self) -> str:
        """Return their number and size: all else is fixed."""
        return f"procedural {self.count} {self.size}"


def open_textures(folder: Path | None, size: tuple[int, int]) -> Textures:
    """Return the textures of a folder, or the built-in ones for None.

    Raises:
        DataError: If the folder does not exist or holds no image.
    """
    return ProceduralTextures(size) if folder is None else FolderTextures(folder, size)


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}). Replace or remove it."
        ) from error


def list_textures(folder: Path) -> list[Path]:
    """Return the images of a texture collection, at any depth, sorted (``dtd/images/*/*.jpg``).

    Raises:
        DataError: If the folder does not exist or holds no image.
    """
    textures = sorted(path for path in folder.rglob("*") if is_image(path))
    if not textures:
        raise DataError(
            f"{folder}: no texture images. Expected a folder such as dtd/images; leave the option "
            "out to use the built-in procedural textures."
        )
    return textures
