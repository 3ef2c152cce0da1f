"""The MVTec AD folder layout.

::

    <category>/train/good/*.png
    <category>/test/good/*.png
    <category>/test/<defect>/*.png
    <category>/ground_truth/<defect>/<name>_mask.png

An image's label is its folder: ``good`` is normal, anything else anomalous.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from destseg_deploy.data.images import SUFFIXES, is_image, list_images
from destseg_deploy.errors import DataError

GOOD = "good"
EXPECTED = "Expected an MVTec AD category (train/good, test/<defect>, ground_truth/<defect>)."


@dataclass(frozen=True)
class Sample:
    """One test image.

    Attributes:
        image: The image file.
        defect: Name of its folder; ``good`` for a normal part.
        mask: Its ground truth; None for a normal part, or when the category has no masks at all.
    """

    image: Path
    defect: str
    mask: Path | None = None

    @property
    def anomalous(self) -> bool:
        """Whether the part is defective."""
        return self.defect != GOOD


def find_category(data: Path, category: str) -> Path:
    """Return the folder of a category below a data folder.

    Raises:
        DataError: If it is not there; the message names those that are.
    """
    folder = data / category
    if folder.is_dir():
        return folder
    if not data.is_dir():
        raise DataError(
            f"{data}: no such folder. Expected a folder that holds {category}/train/good."
        )
    found = ", ".join(sorted(path.name for path in data.iterdir() if path.is_dir())) or "no folders"
    raise DataError(f"{data}: no category {category!r}. Found: {found}. {EXPECTED}")


def find_categories(data: Path, names: Sequence[str]) -> list[Path]:
    """Return the folders of several categories, or of all that have ``train/good`` for ``all``.

    Raises:
        DataError: If one is not there, or there is none at all.
    """
    if "all" not in names:
        return [find_category(data, name) for name in dict.fromkeys(names)]
    found = sorted(folder.parent.parent for folder in data.glob(f"*/train/{GOOD}"))
    if not found:
        raise DataError(
            f"{data}: no categories in it. Expected folders that each hold train/{GOOD}; give the "
            "folder above them."
        )
    return found


def list_train(category: Path) -> list[Path]:
    """Return the normal training images of a category, sorted.

    Raises:
        DataError: If ``train/good`` is missing or empty.
    """
    return list_images(_subfolder(category, "train", GOOD))


def list_test(category: Path) -> list[Sample]:
    """Return the test images of a category: normal ones first, then by defect and name.

    A category without ``ground_truth`` is read without masks, so that images can still be judged
    as a whole; a single missing mask is an error.

    Raises:
        DataError: If a folder is missing or empty, or an anomalous image has no mask.
    """
    test = _subfolder(category, "test")
    folders = sorted(
        (path for path in test.iterdir() if path.is_dir() and not path.name.startswith(".")),
        key=_good_first,
    )
    if not folders:
        raise DataError(f"{test}: no folders in it. {EXPECTED}")
    truth = category / "ground_truth"
    return [
        Sample(image, folder.name, find_mask(truth, folder.name, image) if truth.is_dir() else None)
        for folder in folders
        for image in list_images(folder)
    ]


def find_mask(truth: Path, defect: str, image: Path) -> Path | None:
    """Return the mask of an image, ``<truth>/<defect>/<name>_mask.<any suffix>``; None for good.

    Raises:
        DataError: If an anomalous image has none.
    """
    if defect == GOOD:
        return None
    for suffix in SUFFIXES:
        for name in (f"{image.stem}_mask{suffix}", f"{image.stem}_mask{suffix.upper()}"):
            if is_image(path := truth / defect / name) and path.is_file():
                return path
    raise DataError(
        f"{image}: no mask. Expected {truth / defect / image.stem}_mask.png (or another of "
        f"{', '.join(SUFFIXES)}). Draw it, or move ground_truth away to evaluate without masks."
    )


def _subfolder(category: Path, *parts: str) -> Path:
    folder = category.joinpath(*parts)
    if folder.is_dir():
        return folder
    if not category.is_dir():
        raise DataError(f"{category}: no such folder. {EXPECTED}")
    found = (
        ", ".join(sorted(path.name for path in category.iterdir() if path.is_dir())) or "no folders"
    )
    raise DataError(f"{category}: no {'/'.join(parts)} folder. Found: {found}. {EXPECTED}")


def _good_first(folder: Path) -> tuple[bool, str]:
    return folder.name != GOOD, folder.name
