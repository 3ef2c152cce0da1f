"""The MVTec AD folder layout.

::

    <category>/train/good/*.png
    <category>/test/good/*.png
    <category>/test/<defect>/*.png
    <category>/ground_truth/<defect>/<name>_mask.png

An image's label is its folder: ``good`` (or ``ok``, ``normal``) is normal, anything else anomalous.

Masks of other layouts lie in a folder of their own, with the stem of their image, or that and
``_mask``. Many tools number the images of each kind of defect from 0, so that stems repeat. So the
folders between a mask and the folder of all masks must be those of its image, or the name of its
defect: ``masks/scratch/000.png`` is no mask of ``dent/000.png``, whether ``dent`` has masks or not.
A mask that lies in no such folder is that of any one image.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.data.finding import (
    SUFFIXES,
    images_below,
    is_image,
    list_folders,
    list_images,
    walk_folders,
)
from destseg_deploy.data.images import image_shape
from destseg_deploy.data.masks import read_mask
from destseg_deploy.errors import DataError

MASK_FOLDERS = ("ground_truth", "masks", "mask")
GOOD = "good"
GOOD_NAMES = (GOOD, "ok", "normal", "0")
"""Labels, and names of folders, of normal parts; in any case."""

EXPECTED = "Expected an MVTec AD category (train/good, test/<defect>, ground_truth/<defect>)."


@dataclass(frozen=True)
class Sample:
    """One test image.

    Attributes:
        image: The image file.
        defect: Name of its folder; ``good`` for a normal part, whatever its folder is called.
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
    found = [folder for folder in folders if good_folders(folder / "train")]
    if not found:
        raise DataError(
            f"{data}: no categories in it. Expected folders that each hold train/{GOOD}; give the "
            "folder above them."
        )
    return found


def good_folders(folder: Path) -> list[Path]:
    """Return the folders in a folder whose names say that they hold normal parts.

    Raises:
        DataError: If ``0`` is one of several, and may be a kind of defect.
    """
    below = list_folders(folder) if folder.is_dir() else []
    found = [path for path in below if path.name.lower() in GOOD_NAMES]
    if len(found) > 1 and any(path.name == "0" for path in found):
        others = ", ".join(path.name for path in found if path.name != "0")
        raise DataError(
            f"{folder}: holds 0 and {others}; 0 may hold good parts or a kind of defect. Rename it."
        )
    return found


def list_train(category: Path) -> list[Path]:
    """Return the normal training images of a category, sorted.

    Raises:
        DataError: If ``train/good`` is missing or empty.
    """
    folders = good_folders(category / "train") or [_subfolder(category, "train", GOOD)]
    return [image for folder in folders for image in list_images(folder)]


def list_test(category: Path) -> list[Sample]:
    """Return the test images of a category: normal ones first, then by defect and name.

    A category without ``ground_truth`` is read without masks: the metrics of whole images need
    none. A single missing mask is an error.

    Raises:
        DataError: If a folder is missing or empty, or an anomalous image has no mask of its own.
    """
    test = _subfolder(category, "test")
    good = good_folders(test)
    kinds = [(GOOD, folder) for folder in good]
    kinds += [(folder.name, folder) for folder in list_folders(test) if folder not in good]
    if not kinds:
        raise DataError(f"{test}: no folders in it. {EXPECTED}")
    truth = category / "ground_truth"
    samples = [
        Sample(image, kind, find_mask(truth, kind, image) if truth.is_dir() else None)
        for kind, folder in kinds
        for image in list_images(folder)
    ]
    refuse_shared_masks(samples)
    return samples


def refuse_shared_masks(samples: Sequence[Sample]) -> None:
    """Refuse samples of which two have one mask: it can be that of one image only.

    Raises:
        DataError: With the mask and both images.
    """
    owners: dict[Path, Path] = {}
    for sample in samples:
        if sample.mask is None:
            continue
        first = owners.setdefault(sample.mask, sample.image)
        if first != sample.image:
            raise DataError(
                f"{sample.mask}: may be the mask of {first} or of {sample.image}. Expected a mask "
                "for each image; put each into a folder with the name of its image's folder."
            )


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


def mask_folders(folder: Path) -> list[Path]:
    """Return the folders below a folder whose names say that they hold masks."""
    if not folder.is_dir():
        return []
    above = walk_folders(folder, MASK_FOLDERS)  # none of masks, so that none lies in another
    return [
        mask for one in above for mask in list_folders(one) if mask.name.lower() in MASK_FOLDERS
    ]


def assign_masks(
    samples: Sequence[Sample], source: Path, folders: Sequence[Path], *, below: Path | None = None
) -> list[Sample]:
    """Return samples, each anomalous one with its mask.

    Args:
        samples: The samples.
        source: The folder or the list that they are of.
        folders: Folders of masks, at least one.
        below: The folders of a mask count below this one; below its folder of ``folders`` unless
            given.

    Raises:
        DataError: If a mask is missing, there are two, or one may be that of two images.
    """
    by_stem: dict[str, list[tuple[Path, set[str]]]] = {}
    for folder in folders:
        for mask in images_below(folder):
            names = _lower(mask.relative_to(below or folder).parts[:-1]) - set(MASK_FOLDERS)
            by_stem.setdefault(mask.stem.removesuffix("_mask"), []).append((mask, names))
    root = source.resolve()
    above = {root, *root.parents}
    found = [
        replace(one, mask=_mask_of(one, by_stem, above, folders)) if one.anomalous else one
        for one in samples
    ]
    refuse_shared_masks(found)
    return found


def _mask_of(
    sample: Sample,
    by_stem: Mapping[str, Sequence[tuple[Path, set[str]]]],
    above: set[Path],
    roots: Sequence[Path],
) -> Path:
    """Return the mask of a sample among those of its stem, by the names of its folders."""
    image = sample.image
    named, parent = by_stem.get(image.stem, ()), image.parent.resolve()
    inner = [folder.name for folder in (parent, *parent.parents) if folder not in above]
    own = _lower([*inner, sample.defect])
    fitting = [(mask, names) for mask, names in named if names <= own]
    # The one in its defect's folder, before one in no folder.
    nearest = max((len(names) for _, names in fitting), default=0)
    found = [mask for mask, names in fitting if len(names) == nearest]
    if len(found) == 1:
        return found[0]
    seen = "no mask"
    if found:
        seen = f"{len(found)} masks, {found[0]} and {found[1]}"
    elif named:
        seen = f"no mask; {named[0][0]} has its name, and lies in another folder"
    raise DataError(
        f"{image}: {seen}. Expected one {image.stem}.png or {image.stem}_mask.png below "
        f"{' or '.join(map(str, roots))}, there in no folder or in {sample.defect}; without masks, "
        "leave the folder out."
    )


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


def _lower(names: Sequence[str]) -> set[str]:
    return {name.lower() for name in names}


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
