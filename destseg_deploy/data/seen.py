"""Which images a model was trained on.

A threshold that is set on images that were trained on rejects too many new parts, and an accuracy
that is measured on them is too high. Files are compared with those of the training data, where
these are still at hand; a copy of another name is known by its content.
"""

from __future__ import annotations

import filecmp
import hashlib
from collections.abc import Sequence
from pathlib import Path

from destseg_deploy.data.datasets import open_dataset
from destseg_deploy.data.finding import common_folder, folder_below
from destseg_deploy.errors import DataError
from destseg_deploy.spec import TrainingRecord

HEAD = 1 << 16
"""Bytes by which files are told apart at first."""


def names_below(chosen: Sequence[Path], images: Sequence[Path]) -> tuple[str, ...]:
    """Return the names of some images, with the folders that tell all images apart."""
    common = common_folder([path.parent for path in images])
    return tuple((folder_below(path.parent, common) / path.name).as_posix() for path in chosen)


def seen_in_training(record: TrainingRecord | None, images: Sequence[Path]) -> list[Path]:
    """Return those of some images that a model was trained on, as far as that can be known.

    Args:
        record: The training's record in the model's spec.
        images: Image files.
    """
    if record is None or not record.data:
        return []
    try:
        every = open_dataset(Path(record.data)).train()
    except DataError:  # the training data is not at hand
        return []
    held_out = set(record.held_out)
    trained = [
        path
        for path, name in zip(every, names_below(every, every), strict=True)
        if name not in held_out
    ]
    known: dict[tuple[int, str], list[Path]] = {}
    for path in trained:
        known.setdefault(_mark(path), []).append(path)
    known = {mark: paths for mark, paths in known.items() if mark[0] >= 0}
    return [path for path in images if _is_among(path, known.get(_mark(path), []))]


def _mark(path: Path) -> tuple[int, str]:
    """Return the size of a file and a hash of its beginning; -1 where it cannot be read."""
    try:
        with path.open("rb") as file:
            return path.stat().st_size, hashlib.sha256(file.read(HEAD)).hexdigest()
    except OSError:
        return -1, str(path)


def _is_among(path: Path, others: Sequence[Path]) -> bool:
    return any(filecmp.cmp(path, other, shallow=False) for other in others)
