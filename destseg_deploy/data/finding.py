"""Finding image files: one rule for all commands.

Hidden files and folders are left out, and so are the pictures that this project's own commands
wrote. Links are followed, and each folder is visited once, so a link that leads back ends there.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Collection, Iterator, Sequence
from glob import has_magic
from pathlib import Path

from destseg_deploy.data.decoding import check_regular
from destseg_deploy.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")

_PREDICTED = ((b"image", b"score"), ("overlays", "overview.png"))
OWN = {
    "predictions.csv": _PREDICTED,
    "predictions.json": _PREDICTED,
    "metrics.json": ((b'"artifact"', b'"data"'), ("curves.png", "worst.png")),
}
"""Table of a command -> words at its beginning, and the pictures that the command wrote beside."""

BEGINNING = 65_536
"""Bytes of a table in which its first words are; JSON writes a letter of a long path as six."""


def is_image(path: Path) -> bool:
    """Tell by the suffix whether a path is an image; hidden files are none."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def common_folder(folders: Sequence[Path]) -> Path | None:
    """Return the folder that holds folders, or None: Windows has several drives."""
    try:
        # Absolute: a list may name one file by a relative path and another one by an absolute path.
        return Path(os.path.commonpath([os.path.abspath(folder) for folder in folders]))
    except ValueError:
        return None


def file_key(path: Path) -> str:
    """Return what two paths have in common that name one entry of one real folder."""
    return os.path.join(os.path.realpath(path.parent), path.name)


def find_repeated(paths: Sequence[Path]) -> tuple[int, int] | None:
    """Return the places of two paths that lead to one file, through links or not; or None.

    An image that counts twice is no second part, and one that is held out must not be trained on.
    """
    places: dict[str, int] = {}
    for place, path in enumerate(paths):
        if (first := places.setdefault(os.path.realpath(path), place)) != place:
            return first, place
    return None


def folder_below(folder: Path, common: Path | None) -> Path:
    """Return what a folder is called below ``common_folder``'s; without one, below its drive."""
    whole = Path(os.path.abspath(folder))
    if common is not None:
        return whole.relative_to(common)
    return Path(re.sub(r"\W+", "-", whole.drive).strip("-"), *whole.parts[1:])


def list_images(folder: Path) -> list[Path]:
    """Return the images directly in a folder, sorted by name.

    Raises:
        DataError: If the folder does not exist or holds no image.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. Expected a folder of images.")
    images = list(_images_in(folder))
    if not images:
        raise DataError(
            f"{folder}: no images in it. Expected files ending in {', '.join(SUFFIXES)}."
        )
    return images


def list_folders(folder: Path) -> list[Path]:
    """Return the folders directly in a folder, sorted by name."""
    return [path for path in _visible(folder) if path.is_dir()]


def list_below(folder: Path) -> list[Path]:
    """Return the images of a folder at any depth, sorted; none if it does not exist."""
    return sorted(stream_below(folder))


def images_below(folder: Path) -> list[Path]:
    """Return the images of a folder at any depth, sorted.

    Raises:
        DataError: If there is none.
    """
    images = list_below(folder)
    if not images:
        raise DataError(
            f"{folder}: no images in it. Expected files ending in {', '.join(SUFFIXES)}."
        )
    return images


def stream_below(folder: Path, without: Collection[str] = ()) -> Iterator[Path]:
    """Yield the images of a folder at any depth; none if it does not exist.

    Only the names of one folder are held at a time, so that a million images may be below.

    Args:
        folder: The folder.
        without: Names of folders, in lower case, that are left out.
    """
    if folder.is_dir():
        for below in walk_folders(folder, without):
            yield from _images_in(below)


def expand(patterns: Sequence[str], without: Collection[str] = ()) -> list[Path]:
    """Return the images of files, folders (at any depth) and globs, each image once.

    A name that exists is taken as it is, brackets included. A folder that a glob matches is
    searched, as if the shell had expanded the glob.

    Args:
        patterns: What names them.
        without: Names of folders, in lower case, that are left out.

    Raises:
        DataError: If one of them is empty, names no image, or names what is no regular file.
    """
    found: dict[str, Path] = {}
    for pattern in patterns:
        images = _expand_one(pattern, without)
        if not images:
            raise DataError(
                f"{pattern}: no images there. Expected a file, a folder or a quoted glob of "
                f"{', '.join(SUFFIXES)}, not hidden and not written by destseg-predict."
            )
        # The shortest path names an image that links lead to in several ways.
        for image in sorted(images, key=lambda path: (len(path.parts), path)):
            found.setdefault(file_key(image), image)
    return list(found.values())


def _expand_one(pattern: str, without: Collection[str]) -> list[Path]:
    if not pattern.strip():
        raise DataError(f"{pattern!r}: an empty name. Expected images; '.' is the current folder.")
    path = Path(pattern)
    named = os.path.lexists(path)
    if not named and not has_magic(pattern):
        raise DataError(
            f"{pattern}: no such file or folder. Expected images, a folder or a quoted glob."
        )
    matches = [path] if named else list(_matches(Path(path.anchor), path.relative_to(path.anchor)))
    images: list[Path] = []
    for match in matches:
        if any(is_own(part) for part in (match, *match.parents)):
            continue
        if match.is_dir():
            images += stream_below(match, without)
        elif named:
            check_regular(match)
            images.append(match)
        elif is_image(match):
            images.append(match)
    return sorted(images)


def is_own(path: Path) -> bool:
    """Tell whether a picture or a folder was written by a command of this project."""
    return any(
        path.name in names and _begins_with(path.with_name(table), words)
        for table, (words, names) in OWN.items()
    )


def _begins_with(table: Path, words: Sequence[bytes]) -> bool:
    """Tell whether a table is there, and ours: users have tables of the same name."""
    if not table.is_file():
        return False
    with table.open("rb") as file:
        head = file.read(BEGINNING)
    return all(word in head for word in words)


def _visible(folder: Path) -> Iterator[Path]:
    # Names, because paths take several times their memory.
    for name in sorted(os.listdir(folder), key=os.path.normcase):
        if not name.startswith(".") and not is_own(folder / name):
            yield folder / name


def _images_in(folder: Path) -> Iterator[Path]:
    # A dangling link or a pipe stays: its reader refuses it, where leaving it out would be silent.
    return (path for path in _visible(folder) if is_image(path) and not path.is_dir())


def walk_folders(folder: Path, without: Collection[str] = ()) -> Iterator[Path]:
    """Yield a folder and those below it, the nearest first, each real folder once.

    Args:
        folder: The folder.
        without: Names of folders, in lower case, that are left out with all below them.
    """
    queue, seen = [folder], set[str]()
    for current in queue:
        real = os.path.realpath(current)
        if real not in seen:
            seen.add(real)
            queue += (one for one in list_folders(current) if one.name.lower() not in without)
            yield current


def _matches(folder: Path, pattern: Path) -> Iterator[Path]:
    """Yield what a glob names below a folder; ``**`` stands for folders at any depth.

    The standard library's glob follows a link that leads back forty times.
    """
    first, *others = pattern.parts
    rest = Path(*others)
    if first == "**":
        for below in walk_folders(folder):
            yield from _matches(below, rest) if others else [below]
        return
    for path in _entries(folder, first):
        if not others:
            yield path
        elif path.is_dir():
            yield from _matches(path, rest)


def _entries(folder: Path, name: str) -> list[Path]:
    """Return the entries of a folder that a part of a glob names, sorted."""
    if os.path.lexists(folder / name) or not has_magic(name):
        return [folder / name] if os.path.lexists(folder / name) else []
    hidden = name.startswith(".")
    entries = [p for p in sorted(folder.iterdir()) if hidden or not p.name.startswith(".")]
    literal = name.replace("[", "[[]")
    for tried in (name, literal):  # part[1]*.png may mean a name with brackets
        if found := [path for path in entries if fnmatch.fnmatch(path.name, tried)]:
            return found
    return []
