"""Small defects have the length asked for, at any size of the picture, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from destseg_deploy.data.sample.category import DEFECTS, SMALL_DEFECTS, render, write_sample
from destseg_deploy.errors import DataError


def length(defect: str, seed: int, size: int, lengths: tuple[int, int]) -> float:
    """Return how long a defect is in the picture, between the pixels of half its contrast."""
    normal, _ = render(np.random.default_rng([4, seed]), size, None)
    image, _ = render(np.random.default_rng([4, seed]), size, defect, lengths)
    change = np.abs(image.astype(int) - normal).max(axis=2)
    points = np.argwhere(change > change.max() / 2).astype(float)
    return float(np.linalg.norm(points[:, None] - points[None], axis=-1).max()) + 1


@pytest.mark.parametrize("defect", SMALL_DEFECTS)
@pytest.mark.parametrize("size", [128, 256])
def test_a_small_defect_is_as_long_as_asked_whatever_the_picture(defect: str, size: int) -> None:
    for seed in range(2):
        assert length(defect, seed, size, (9, 9)) == pytest.approx(9, abs=2.5)


def test_the_control_another_length_is_told_apart() -> None:
    assert length("pit", 0, 128, (14, 14)) == pytest.approx(14, abs=2.5)


@pytest.mark.parametrize("defect", SMALL_DEFECTS)
def test_a_small_defect_is_seen_and_changes_its_mask_alone(defect: str) -> None:
    normal, _ = render(np.random.default_rng(5), 192, None)
    image, mask = render(np.random.default_rng(5), 192, defect, (8, 8))
    change = np.abs(image.astype(int) - normal).max(axis=2)
    assert not change[mask == 0].any()
    assert change.max() > 40


def test_the_folders_hold_small_defects_and_the_same_good_parts(tmp_path: Path) -> None:
    small = write_sample(
        tmp_path / "small", size=64, train=1, good=1, per_defect=1, defect_size=(4, 8)
    )
    usual = write_sample(tmp_path / "usual", size=64, train=1, good=1, per_defect=1)
    assert {path.name for path in (small / "test").iterdir()} == {"good", *SMALL_DEFECTS}
    assert {path.name for path in (usual / "test").iterdir()} == {"good", *DEFECTS}
    good = "train/good/000.png"
    assert (small / good).read_bytes() == (usual / good).read_bytes()
    with Image.open(small / "ground_truth" / SMALL_DEFECTS[0] / "000_mask.png") as mask:
        assert np.asarray(mask).any()


@pytest.mark.parametrize("lengths", [(2, 8), (8, 4), (4, 9)])
def test_lengths_that_cannot_be_drawn_are_refused(tmp_path: Path, lengths: tuple[int, int]) -> None:
    with pytest.raises(DataError, match=r"defect_size: .* Expected the smaller number first"):
        write_sample(tmp_path, size=64, defect_size=lengths)
    assert not list(tmp_path.iterdir())
