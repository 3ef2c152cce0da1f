"""Data sets: which images are trained on, and which are measured on with which label and mask.

Every command takes the same ones (``open_dataset``):

- the MVTec AD layout (``mvtec.py``);
- a folder of good parts, flat or nested;
- a folder with a folder ``good`` (or ``ok``, ``normal``), beside which each folder holds a kind of
  defect; masks may lie in ``ground_truth`` or ``masks`` there;
- a list (``lists.py``);
- folders of good and of NG parts that are named one by one (``of_folders``).

A mask has the stem of its image, or that and ``_mask``. Suffixes count in any case.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from destseg_deploy.data import mvtec
from destseg_deploy.data.finding import (
    SUFFIXES,
    common_folder,
    expand,
    list_below,
    list_folders,
    list_images,
    walk_folders,
)
from destseg_deploy.data.lists import Entry, is_list, read_list
from destseg_deploy.data.mvtec import GOOD, Sample
from destseg_deploy.errors import DataError

GOOD_NAMES = (GOOD, "ok", "normal", "0")
NG_NAMES = ("ng", "nok", "bad", "defect", "defects", "defective", "anomaly", "anomalous", "reject")
MASK_FOLDERS = ("ground_truth", "masks", "mask")
UNTOLD = (*GOOD_NAMES, "train", "images")
"""Names of folders that do not tell what is in them; the name of the folder above does."""

TELL = (
    "Name the folders (--good FOLDER --ng FOLDER), put them beside each other as good and ng, or "
    "give a list with the columns path,label,mask"
)


@dataclass(frozen=True)
class DataSet:
    """Images with their labels. Files are looked for when they are asked for.

    Attributes:
        name: What it is called; names a checkpoint that is trained on it.
        source: The folder or the list.
        train: Returns the images of good parts to train on; raises DataError where there are none.
        good: Returns those of good parts to set a threshold with: kept apart from the ones to
            train on where the data set does so.
        test: Returns the labelled images; raises DataError where there are no labels.
    """

    name: str
    source: Path
    train: Callable[[], list[Path]]
    good: Callable[[], list[Path]]
    test: Callable[[], list[Sample]]


def open_dataset(source: Path | str | DataSet) -> DataSet:
    """Return the data set that a folder or a list holds; a data set is returned as it is.

    Raises:
        DataError: If there is no such folder or list, the list cannot be read, or the folder holds
            NG parts and none that are called good.
    """
    if isinstance(source, DataSet):
        return source
    source = Path(source)
    if is_list(source):
        return _of_list(source)
    if not source.is_dir():
        raise DataError(
            f"{source}: no such folder. Expected images of good parts, an MVTec AD category, or a "
            ".csv or .json list of images."
        )
    if is_mvtec(source):
        return _of_category(source)
    return _of_folder(source)


def is_mvtec(folder: Path) -> bool:
    """Tell whether a folder has the MVTec AD layout."""
    return (folder / "train").is_dir() or (folder / "test").is_dir()


def has_good_parts(folder: Path) -> bool:
    """Tell whether a folder is a data set itself, and not one that holds categories."""
    return is_mvtec(folder) or any((folder / name).is_dir() for name in GOOD_NAMES)


def of_folders(good: Path, ng: Sequence[Path]) -> DataSet:
    """Return the data set of a folder of good parts and folders of NG parts.

    Args:
        good: Good parts; a list, or a folder, flat or nested.
        ng: NG parts. Each folder is a kind of defect, unless it holds folders, which then are.

    ``test`` of the result raises DataError where a folder is missing or empty.
    """

    def test() -> list[Sample]:
        bad = [sample for folder in ng for sample in _kinds(folder)]
        return [Sample(path, GOOD) for path in normal()] + bad

    normal = partial(_good_of, good)
    source = common_folder([path.resolve() for path in (good, *ng)]) or good
    return DataSet(name_of(good), source, normal, normal, test)


def with_masks(data: DataSet, masks: Path) -> DataSet:
    """Return a data set whose NG parts have their masks in a folder, at any depth.

    ``test`` of the result raises DataError where a mask is missing, or there are two.
    """

    def test() -> list[Sample]:
        by_stem: dict[str, list[Path]] = {}
        for mask in _below(masks):
            by_stem.setdefault(mask.stem.removesuffix("_mask"), []).append(mask)
        return [
            replace(s, mask=_mask_of(s, by_stem, masks)) if s.anomalous else s for s in data.test()
        ]

    return replace(data, test=test)


def find_images(patterns: Sequence[str]) -> list[Path]:
    """Return the images of files, folders, globs and lists, each once; see ``finding.expand``.

    Of a category in the MVTec AD layout they are the test images.

    Raises:
        DataError: If one of them names no image.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if pattern.strip() and is_list(path):
            found |= dict.fromkeys(entry.path for entry in read_list(path))
        elif (path / "test").is_dir() and (path / "ground_truth").is_dir():
            found |= dict.fromkeys(expand([str(path / "test")]))
        else:
            found |= dict.fromkeys(expand([pattern]))
    return list(found)


def images_at_hand(source: str | None) -> list[Path]:
    """Return images of the part that a model was trained on, where they are still at hand.

    Args:
        source: The data that a spec names.

    Returns:
        The test images, those of good parts where there are no others, or nothing.
    """
    if not source:
        return []
    try:
        data = open_dataset(Path(source))
        if is_mvtec(data.source):
            return list_below(data.source / "test")
        return data.good()
    except DataError:
        return []


def name_of(source: Path) -> str:
    """Return what a data set is called: its folder, or the one above where that tells nothing."""
    path = Path(os.path.abspath(source))  # not what a link leads to
    if is_list(path):
        return path.stem
    while path.name.lower() in UNTOLD and path.parent.name:
        path = path.parent
    return path.name


def _of_category(folder: Path) -> DataSet:
    def good() -> list[Path]:
        unseen = folder / "test" / GOOD
        return list_images(unseen) if unseen.is_dir() else mvtec.list_train(folder)

    return DataSet(
        Path(os.path.abspath(folder)).name,
        folder,
        partial(mvtec.list_train, folder),
        good,
        partial(mvtec.list_test, folder),
    )


def _of_folder(folder: Path) -> DataSet:
    folders = list_folders(folder)
    good = next((path for path in folders if path.name.lower() in GOOD_NAMES), None)
    if good is None:
        if ng := next((path for path in folders if path.name.lower() in NG_NAMES), None):
            raise DataError(
                f"{folder}: holds {ng.name}, and no folder that is called good, so its good parts "
                f"are not told from the others. {TELL}."
            )
        _refuse_mixed(folder)
        normal = partial(_below, folder)
        return DataSet(name_of(folder), folder, normal, normal, partial(_no_labels, folder))
    masks = next((path for path in folders if path.name.lower() in MASK_FOLDERS), None)
    ng_folders = [path for path in folders if path not in (good, masks)]
    made = replace(of_folders(good, ng_folders), name=name_of(folder), source=folder)
    if not ng_folders:
        return replace(made, test=partial(_no_labels, folder))
    return made if masks is None else with_masks(made, masks)


def _of_list(path: Path) -> DataSet:
    entries = read_list(path)
    labelled = entries[0].label is not None

    def samples(split: str) -> list[Sample]:
        chosen = [entry for entry in entries if entry.split in (None, split)]
        return [_sample(entry) for entry in chosen]

    def normal(split: str) -> list[Path]:
        good = [sample.image for sample in samples(split) if not sample.anomalous]
        if not good:
            raise DataError(
                f"{path}: no good images for {split}. Expected rows with the label good"
                " and, where there is a column split, that split."
            )
        return good

    def test() -> list[Sample]:
        if not labelled:
            _no_labels(path)
        return _all_masked(samples("test"))

    return DataSet(name_of(path), path, partial(normal, "train"), partial(normal, "test"), test)


def _sample(entry: Entry) -> Sample:
    if entry.label is None or entry.label.lower() in GOOD_NAMES:
        return Sample(entry.path, GOOD)
    return Sample(entry.path, entry.label, entry.mask)


def _good_of(source: Path) -> list[Path]:
    """Return the good parts of a folder or a list that was named for them."""
    if source.is_dir() or is_list(source):
        return open_dataset(source).good()
    return find_images([str(source)])


def _refuse_mixed(folder: Path) -> None:
    """Refuse a folder of good parts that holds NG parts or masks, at any depth.

    They would be trained on as good parts. Mostly the folder above the right one was named.
    """
    for below in walk_folders(folder):
        inner = below if is_mvtec(below) else below.parent
        if below != folder and (inner == below or below.name.lower() in (*NG_NAMES, *MASK_FOLDERS)):
            hint = "" if inner == folder else f"Pass {inner} if that is the data set. "
            raise DataError(
                f"{folder}: holds {below}, so good parts, NG parts and masks are not told apart. "
                f"{hint}{TELL}."
            )


def _below(folder: Path) -> list[Path]:
    images = list_below(folder)
    if not images:
        raise DataError(
            f"{folder}: no images in it. Expected files ending in {', '.join(SUFFIXES)}."
        )
    return images


def _no_labels(source: Path) -> list[Sample]:
    raise DataError(
        f"{source}: images without labels, and this needs good and NG ones. {TELL}; "
        "destseg-predict scores images without labels."
    )


def _kinds(folder: Path) -> list[Sample]:
    """Return the NG parts of a folder: each folder in it is a kind of defect."""
    if not folder.is_dir():
        return [Sample(path, name_of(folder)) for path in find_images([str(folder)])]
    below = list_folders(folder)
    kinds = [Sample(path, one.name) for one in below for path in list_below(one)]
    direct = [path for path in list_below(folder) if path.parent == folder]
    found = [Sample(path, folder.resolve().name) for path in direct] + kinds
    if not found:
        _below(folder)
    return found


def _mask_of(sample: Sample, by_stem: dict[str, list[Path]], masks: Path) -> Path:
    found = by_stem.get(sample.image.stem, [])
    if len(found) > 1:  # the same stem in the folders of several defects
        found = [path for path in found if path.parent.name == sample.defect] or found
    if len(found) != 1:
        seen = f"{len(found)} masks, {found[0]} and {found[1]}" if found else "no mask"
        raise DataError(
            f"{sample.image}: {seen}. Expected one {sample.image.stem}.png or "
            f"{sample.image.stem}_mask.png below {masks}; without masks, leave the folder out."
        )
    return found[0]


def _all_masked(samples: list[Sample]) -> list[Sample]:
    """Return the samples; refuse masks for some of the NG parts only."""
    bad = [sample for sample in samples if sample.anomalous]
    without = [sample for sample in bad if sample.mask is None]
    if 0 < len(without) < len(bad):
        raise DataError(
            f"{without[0].image}: no mask, and others have one. Name a mask for each NG image, or "
            "for none."
        )
    return samples
