"""Textures of synthetic anomalies: from a folder such as DTD's, or from a generator."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.data.finding import list_below
from destseg_deploy.data.images import assumed_bit_depth, read_image
from destseg_deploy.data.procedural_textures import procedural_texture
from destseg_deploy.data.resize import resize_image
from destseg_deploy.errors import DataError


class Textures(Protocol):
    """Numbered textures of one size."""

    name: str
    """Their name in a spec."""
    size: tuple[int, int]

    def __len__(self) -> int:
        """Return the number of textures."""

    def read(self, number: int) -> NDArray[np.uint8]:
        """Return a texture, uint8 (H, W, 3) RGB. Several threads may call at the same time."""

    def digest(self) -> str:
        """Return a text that differs from that of every other collection."""


class FolderTextures:
    """The images of a folder, at any depth (``dtd/images/*/*.jpg``), resized as training images."""

    def __init__(self, folder: Path, size: tuple[int, int]) -> None:
        """List the files; none is read yet.

        Raises:
            DataError: If the folder does not exist or holds no image.
        """
        self.name = str(folder)
        self.size = size
        self.folder = folder
        self.files = list_below(folder)
        self._bit_depth = assumed_bit_depth()  # kept, for other threads and processes read them
        if not self.files:
            raise DataError(
                f"{folder}: no texture images. Expected a folder such as dtd/images; leave the "
                "option out to use the built-in procedural textures."
            )

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.files)

    def read(self, number: int) -> NDArray[np.uint8]:
        """Decode and resize a file."""
        return resize_image(read_image(self.files[number], self._bit_depth), self.size)

    def digest(self) -> str:
        """Return a hash of the files' names and sizes.

        Raises:
            DataError: If a file was removed since the folder was listed.
        """
        # Not of their contents: reading thousands of photographs would take minutes.
        names = [(p.relative_to(self.folder).as_posix(), _bytes(p)) for p in self.files]
        return hashlib.sha256(repr((names, self.size)).encode()).hexdigest()


class ProceduralTextures:
    """Textures of ``data/procedural_textures.py``, for a training without photographs."""

    def __init__(self, size: tuple[int, int], count: int = 1024) -> None:
        """Number them. A texture is drawn each time it is read, and is always the same."""
        self.name = "procedural"
        self.size = size
        self.count = count

    def __len__(self) -> int:
        """Return the number of different textures."""
        return self.count

    def read(self, number: int) -> NDArray[np.uint8]:
        """Draw a texture."""
        texture = procedural_texture(np.random.default_rng([2, number]), max(self.size))
        return resize_image(texture, self.size)

    def digest(self) -> str:
        """Return their number and size; nothing else about them varies."""
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
