"""The MVTec AD folder layout.

::

    <category>/train/good/*.png
    <category>/test/good/*.png
    <category>/test/<defect>/*.png
    <category>/ground_truth/<defect>/<name>_mask.png

An image's label is its folder: ``good`` is normal, anything else anomalous.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.data.finding import SUFFIXES, is_image, list_folders, list_images
from destseg_deploy.data.images import image_shape
from destseg_deploy.data.masks import read_mask
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
        DataError: If it is missing; the message names the folders that are there.
    """
    folder = data / category
    if not category.strip():
        raise DataError(f"category {category!r}: an empty name. Expected a folder below {data}.")
    if folder.is_dir():
        return folder
    if not data.is_dir():
        raise DataError(
            f"{data}: no such folder. Expected one that holds the MVTec AD category {category}."
        )
    raise DataError(f"{data}: no category {category!r}. Found: {_found(data)}. {EXPECTED}")


def find_categories(data: Path, names: Sequence[str]) -> list[Path]:
    """Return the folders of several categories; ``all`` stands for all with a ``train/good``.

    Raises:
        DataError: If a category is missing, or ``all`` finds none.
    """
    if "all" not in names:
        return [find_category(data, name) for name in dict.fromkeys(names)]
    folders = list_folders(data) if data.is_dir() else []
    found = [folder for folder in folders if (folder / "train" / GOOD).is_dir()]
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

    A category without ``ground_truth`` is read without masks: the metrics of whole images need
    none. A single missing mask is an error.

    Raises:
        DataError: If a folder is missing or empty, or an anomalous image has no mask.
    """
    test = _subfolder(category, "test")
    folders = sorted(list_folders(test), key=_good_first)
    if not folders:
        raise DataError(f"{test}: no folders in it. {EXPECTED}")
    truth = category / "ground_truth"
    return [
        Sample(image, folder.name, find_mask(truth, folder.name, image) if truth.is_dir() else None)
        for folder in folders
        for image in list_images(folder)
    ]


def find_mask(truth: Path, defect: str, image: Path) -> Path | None:
    """Return the mask of an image; None for good.

    It is ``<truth>/<defect>/<name>_mask.<any suffix>``, or without ``_mask``.

    Raises:
        DataError: If the mask of an anomalous image is missing, or there are two.
    """
    if defect == GOOD:
        return None
    folder = truth / defect
    if not folder.is_dir():
        raise DataError(
            f"{image.parent}: no masks, for there is no folder {folder}. Every folder of test but "
            f"{GOOD} holds defects: if these parts are good, name their folder test/{GOOD}; else "
            "draw their masks, or move ground_truth away to evaluate without masks."
        )
    masks = [
        folder / name
        for name in sorted(os.listdir(folder))
        if Path(name).stem in (f"{image.stem}_mask", image.stem) and is_image(folder / name)
    ]
    if len(masks) > 1:
        raise DataError(f"{image}: two masks, {masks[0]} and {masks[1]}. Keep one of them.")
    if not masks:
        raise DataError(
            f"{image}: no mask. Expected {folder / image.stem}_mask.png (or without _mask, or "
            f"another of {', '.join(SUFFIXES)}). Draw it, or move ground_truth away to evaluate "
            "without masks."
        )
    return masks[0]


def read_masks(samples: Sequence[Sample], size: tuple[int, int]) -> NDArray[np.bool_] | None:
    """Read and check the masks of a test set; of its images only the headers are read.

    Args:
        samples: From ``list_test``.
        size: Height and width of the masks, as of the maps they are compared with.

    Returns:
        bool (N, height, width), empty for a normal part; None for a category without masks.

    Raises:
        DataError: If a mask cannot be read or told, or is not of its image's size.
    """
    if all(sample.mask is None for sample in samples):
        return None
    masks = np.zeros((len(samples), *size), np.bool_)
    for i, sample in enumerate(samples):
        if sample.mask is not None:
            masks[i] = read_mask(sample.mask, image_shape(sample.image), size)
    return masks


def _subfolder(category: Path, *parts: str) -> Path:
    folder = category.joinpath(*parts)
    if folder.is_dir():
        return folder
    if not category.is_dir():
        raise DataError(f"{category}: no such folder. {EXPECTED}")
    wanted = "/".join(parts)
    raise DataError(f"{category}: no {wanted} folder. Found: {_found(category)}. {EXPECTED}")


def _found(folder: Path) -> str:
    return ", ".join(path.name for path in list_folders(folder)) or "no folders"


def _good_first(folder: Path) -> tuple[bool, str]:
    return folder.name != GOOD, folder.name
