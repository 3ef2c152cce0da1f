"""Data sets: which images are trained on, and which are measured on with which label and mask.

Every command takes the same ones (``open_dataset``):

- the MVTec AD layout (``mvtec.py``);
- a folder of good parts, flat or nested;
- a folder with folders ``good`` (or ``ok``, ``normal``), beside which each folder holds a kind of
  defect; masks may lie in ``ground_truth`` or ``masks`` there, or below the NG parts;
- a list (``lists.py``);
- folders of good and of NG parts that are named one by one (``of_folders``).

A mask has the stem of its image, or that and ``_mask``; ``mvtec.py`` says which mask is whose.
Suffixes count in any case.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from destseg_deploy.data import mvtec
from destseg_deploy.data.finding import (
    common_folder,
    expand,
    find_repeated,
    images_below,
    list_below,
    list_folders,
    list_images,
    walk_folders,
)
from destseg_deploy.data.lists import Entry, is_list, read_list, refuse_repeated
from destseg_deploy.data.mvtec import (
    GOOD,
    GOOD_NAMES,
    MASK_FOLDERS,
    Sample,
    assign_masks,
    good_folders,
    mask_folders,
)
from destseg_deploy.errors import DataError

NG_NAMES = ("ng", "nok", "bad", "defect", "defects", "defective", "anomaly", "anomalous", "reject")
UNTOLD = (*GOOD_NAMES, "train", "images")
"""Names of folders that do not tell what is in them; the name of the folder above does."""

ASIDE = ("train", "ground_truth")
"""What lies beside ``test`` in a category."""

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
    return is_mvtec(folder) or bool(good_folders(folder))


def of_folders(good: Path, ng: Sequence[Path]) -> DataSet:
    """Return the data set of a folder of good parts and folders of NG parts.

    Args:
        good: Good parts; a list, or a folder, flat or nested.
        ng: NG parts. Each folder is a kind of defect, unless it holds folders, which then are.
            Masks may lie in folders ``ground_truth`` or ``masks`` below. Of a list, its NG rows.

    ``test`` of the result raises DataError where a folder is missing or empty, holds good parts, or
    an image is named twice.
    """
    return _of_parts([good], ng)


def _of_parts(goods: Sequence[Path], ng: Sequence[Path]) -> DataSet:
    def normal() -> list[Path]:
        return [path for good in goods for path in _good_of(good)]

    def test() -> list[Sample]:
        bad = [sample for folder in ng for sample in _bad_of(folder)]
        samples = [Sample(path, GOOD) for path in normal()] + bad
        _refuse_repeated(samples)
        return _all_masked(samples)

    source = common_folder([path.resolve() for path in (*goods, *ng)]) or goods[0]
    return DataSet(name_of(goods[0]), source, normal, normal, test)


def with_masks(data: DataSet, masks: Path) -> DataSet:
    """Return a data set whose NG parts have their masks in a folder, at any depth.

    ``test`` of the result raises DataError where a mask is missing, or there are two.
    """

    def test() -> list[Sample]:
        return assign_masks(data.test(), data.source, [masks])

    return replace(data, test=test)


def find_images(patterns: Sequence[str]) -> list[Path]:
    """Return the images of files, folders, globs and lists, each once; see ``finding.expand``.

    Of a folder they are those of its ``scored_part``.

    Raises:
        DataError: If one of them names no image.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if pattern.strip() and is_list(path):
            found |= dict.fromkeys(entry.path for entry in read_list(path))
        elif pattern.strip() and path.is_dir():
            folder, without = scored_part(path)
            found |= dict.fromkeys(expand([str(folder)], without))
        else:
            found |= dict.fromkeys(expand([pattern]))
    return list(found)


def scored_part(folder: Path) -> tuple[Path, Collection[str]]:
    """Return what of a folder is scored where it is named for that: a folder in it, or itself.

    Of a category in the MVTec AD layout that is ``test``; of a folder with good parts, all but the
    masks.

    Returns:
        The folder, and the names of folders in it that are left out, in lower case.
    """
    if (folder / "test").is_dir() and any((folder / name).is_dir() for name in ASIDE):
        return folder / "test", ()
    with os.scandir(folder) as entries:  # tells folders without a look at each of a million files
        good = any(one.name.lower() in GOOD_NAMES and one.is_dir() for one in entries)
    return folder, MASK_FOLDERS if good else ()


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
        unseen = good_folders(folder / "test")
        found = [path for below in unseen for path in list_images(below)]
        return found or mvtec.list_train(folder)

    return DataSet(
        Path(os.path.abspath(folder)).name,
        folder,
        partial(mvtec.list_train, folder),
        good,
        partial(mvtec.list_test, folder),
    )


def _of_folder(folder: Path) -> DataSet:
    folders = list_folders(folder)
    goods = good_folders(folder)
    if not goods:
        if ng := next((path for path in folders if path.name.lower() in NG_NAMES), None):
            raise DataError(
                f"{folder}: holds {ng.name}, and no folder that is called good, so its good parts "
                f"are not told from the others. {TELL}."
            )
        _refuse_mixed(folder)
        normal = partial(images_below, folder)
        return DataSet(name_of(folder), folder, normal, normal, partial(_no_labels, folder))
    masks = [path for path in folders if path.name.lower() in MASK_FOLDERS]
    ng_folders = [path for path in folders if path not in (*goods, *masks)]
    made = replace(_of_parts(goods, ng_folders), name=name_of(folder), source=folder)
    if not ng_folders:
        return replace(made, test=partial(_no_labels, folder))
    return replace(made, test=partial(_test_of_folder, made, ng_folders, masks))


def _test_of_folder(made: DataSet, ng: Sequence[Path], masks: Sequence[Path]) -> list[Sample]:
    """Return the labelled images of a folder, with the masks that lie beside the NG parts."""
    if not masks:
        return made.test()
    inner = [below for folder in ng for below in mask_folders(folder)]
    if len(masks) + len(inner) > 1:
        first, second = (*masks, *inner)[:2]
        raise DataError(
            f"{made.source}: holds {first} and {second}, so it is not told which holds the masks. "
            "Keep one of them, or name the folders: --good FOLDER --ng FOLDER --masks FOLDER."
        )
    return assign_masks(made.test(), made.source, masks)


def _of_list(path: Path) -> DataSet:
    entries = read_list(path)
    refuse_repeated(path, entries)
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


def _no_labels(source: Path) -> list[Sample]:
    raise DataError(
        f"{source}: images without labels, and this needs good and NG ones. {TELL}; "
        "destseg-predict scores images without labels."
    )


def _bad_of(source: Path) -> list[Sample]:
    """Return the NG parts of what was named for them: each folder in a folder is a kind."""
    if is_list(source):
        return _bad_of_list(source)
    if not source.is_dir():
        return [Sample(path, name_of(path.parent)) for path in find_images([str(source)])]
    masks = mask_folders(source)
    found: list[Sample] = []
    for path in images_below(source):
        if not any(folder in path.parents for folder in masks):
            inner = path.relative_to(source).parts[:-1]
            _refuse_good(source, path, inner)
            found.append(Sample(path, inner[0] if inner else source.resolve().name))
    if not found:
        raise DataError(f"{source}: masks, and no images of NG parts. Expected these, too.")
    found.sort(key=lambda sample: sample.image.parent != source)
    return assign_masks(found, source, masks, below=source) if masks else found


def _refuse_good(source: Path, image: Path, folders: Sequence[str]) -> None:
    """Refuse an NG part that lies in a folder whose name says that its parts are good."""
    # A folder 0 below one of NG parts may be the first of several cameras.
    if told := [name for name in folders if name.lower() in GOOD_NAMES and name != "0"]:
        raise DataError(
            f"{image}: among NG parts, and its folder is called {told[0]}. Rename that folder, or "
            f"name the folders of NG parts below {source}, one by one: --ng FOLDER --ng FOLDER."
        )


def _bad_of_list(path: Path) -> list[Sample]:
    """Return the NG parts of a list; without labels, all are."""
    entries = read_list(path)
    samples = [
        Sample(entry.path, name_of(path), entry.mask) if entry.label is None else _sample(entry)
        for entry in entries
    ]
    bad = [sample for sample in samples if sample.anomalous]
    if not bad:
        raise DataError(
            f"{path}: only good images, and it was named for NG parts. Expected rows whose label "
            "names a defect, or no column label."
        )
    return bad


def _refuse_repeated(samples: Sequence[Sample]) -> None:
    """Refuse an image that was named twice: it would count twice, or as good and as NG."""
    if found := find_repeated([sample.image for sample in samples]):
        first, second = (samples[place] for place in found)
        labels = sorted({first.defect, second.defect})
        raise DataError(
            f"{second.image}: named twice, as {' and as '.join(labels)}. Expected each image "
            "once; name folders of which none holds another (--good FOLDER --ng FOLDER)."
        )


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
