"""The sample category: same bytes from the same seed, exact masks, all or nothing on disk."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from destseg_deploy.data.sample import category as sample
from destseg_deploy.data.sample.category import DEFECTS, render, write_sample
from destseg_deploy.errors import DataError

SIZE = 64


def make(root: Path, **given: int) -> Path:
    return write_sample(root, **{"size": SIZE, "train": 2, "good": 1, "per_defect": 1, **given})


def read_all(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("sample"))


# ------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("defect", [None, *DEFECTS])
def test_render_returns_rgb_and_a_binary_mask(defect: str | None) -> None:
    image, mask = render(np.random.default_rng(1), SIZE, defect)
    assert image.shape == (SIZE, SIZE, 3)
    assert mask.shape == (SIZE, SIZE)
    assert image.dtype == mask.dtype == np.uint8
    assert set(np.unique(mask)) == ({0} if defect is None else {0, 255})


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("seed", [11, 12, 13])
def test_a_defect_changes_its_mask_and_nothing_else(defect: str, seed: int) -> None:
    normal, _ = render(np.random.default_rng(seed), 128, None)
    image, mask = render(np.random.default_rng(seed), 128, defect)
    change = np.abs(image.astype(int) - normal).max(axis=2)
    inside = mask > 0
    assert not change[~inside].any()
    assert change[inside].mean() > 2
    # A mask far larger than the defect would pass the two lines above.
    core = cv2.erode(mask, np.ones((3, 3), np.uint8)) > 0
    assert (change[core] > 0).mean() > 0.4


@pytest.mark.parametrize("defect", DEFECTS)
def test_masks_survive_downscaling_and_leave_most_of_the_image_normal(defect: str) -> None:
    for seed in range(4):
        _, mask = render(np.random.default_rng([3, seed]), 128, defect)
        half = cv2.resize(mask, (64, 64), interpolation=cv2.INTER_AREA) >= 128
        assert half.sum() >= 4
        assert half.mean() < 0.35


def test_defects_of_one_type_vary() -> None:
    for defect in DEFECTS:
        masks = {render(np.random.default_rng(i), SIZE, defect)[1].tobytes() for i in range(3)}
        assert len(masks) == 3, defect


def test_difficulty_varies_between_defect_types() -> None:
    def contrast(defect: str) -> float:
        changes = []
        for seed in range(2):
            normal, _ = render(np.random.default_rng(seed), SIZE, None)
            image, mask = render(np.random.default_rng(seed), SIZE, defect)
            changes.append(np.abs(image.astype(int) - normal).max(axis=2)[mask > 0].mean())
        return float(np.mean(changes))

    contrasts = [contrast(defect) for defect in DEFECTS]
    assert max(contrasts) > 3 * min(contrasts)


def test_swapped_wires_are_marked_whole_with_their_copper() -> None:
    _, mask = render(np.random.default_rng(5), 128, "cable_swap")
    islands, _ = cv2.connectedComponents(255 - mask)
    assert islands == 2  # the label of the mask itself, and one connected surrounding


def test_sensor_noise_grows_with_light() -> None:
    def noise(level: float, seed: int) -> float:
        clean = np.full((128, 128, 3), level, np.float32)
        return float(sample._expose(np.random.default_rng(seed), clean).std())

    for seed in range(3):
        assert 0.5 < noise(0.05, seed) < noise(0.6, seed) < 6


@pytest.mark.parametrize(("size", "defect"), [(63, None), (64, "dent")])
def test_render_refuses_what_it_cannot_draw(size: int, defect: str | None) -> None:
    with pytest.raises(DataError, match="Expected"):
        render(np.random.default_rng(0), size, defect)


# ------------------------------------------------------------------------------ the folder


def test_the_layout_is_that_of_mvtec(written: Path) -> None:
    expected = {"train/good/000.png", "train/good/001.png", "test/good/000.png"}
    for defect in DEFECTS:
        expected |= {f"test/{defect}/000.png", f"ground_truth/{defect}/000_mask.png"}
    assert set(read_all(written)) == expected
    assert len(DEFECTS) >= 6
    assert written.name == "cable"


def test_files_hold_what_render_returns(written: Path) -> None:
    split = 2 + DEFECTS.index("poke")
    image, mask = render(np.random.default_rng([0, split, 0]), SIZE, "poke")
    assert np.array_equal(np.asarray(Image.open(written / "test/poke/000.png")), image)
    with Image.open(written / "ground_truth/poke/000_mask.png") as stored:
        assert stored.mode == "L"
        assert np.array_equal(np.asarray(stored), mask)


def test_one_seed_gives_the_same_bytes_whatever_the_counts(written: Path, tmp_path: Path) -> None:
    first = read_all(written)
    more = read_all(make(tmp_path, train=3, good=2))
    assert {name: more[name] for name in first} == first
    assert len(more) == len(first) + 2


def test_another_seed_gives_other_pictures(written: Path, tmp_path: Path) -> None:
    first, other = read_all(written), read_all(make(tmp_path, seed=1))
    assert not set(first.values()) & set(other.values())


def test_no_picture_is_written_twice(written: Path) -> None:
    contents = list(read_all(written).values())
    assert len(set(contents)) == len(contents)


def test_a_folder_with_something_in_it_is_refused_untouched(tmp_path: Path) -> None:
    mine = tmp_path / "cable" / "notes.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(DataError, match="exists and is not empty") as caught:
        make(tmp_path)
    assert "\n" not in str(caught.value)
    assert read_all(tmp_path) == {"cable/notes.txt": b"mine"}


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cable").write_text("mine")
    with pytest.raises(DataError, match="cable"):
        make(tmp_path)


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "cable").mkdir()
    assert (make(tmp_path) / "train/good/001.png").is_file()


def test_missing_parents_are_made(tmp_path: Path) -> None:
    assert make(tmp_path / "data" / "sets") == tmp_path / "data" / "sets" / "cable"
    assert sorted(path.name for path in (tmp_path / "data" / "sets").iterdir()) == ["cable"]


@pytest.mark.parametrize("failure", [RuntimeError("no"), KeyboardInterrupt(), OSError("disk full")])
def test_a_failure_midway_leaves_nothing(
    failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str | None] = []

    def fail_at_last(
        rng: np.random.Generator, size: int, defect: str | None, lengths: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        calls.append(defect)
        if len(calls) == 4:
            assert any(tmp_path.rglob("*.png"))  # the failure does come midway
            raise failure
        return render(rng, size, defect, lengths)

    monkeypatch.setattr(sample, "render", fail_at_last)
    expected = DataError if isinstance(failure, OSError) else type(failure)
    with pytest.raises(expected):
        make(tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("category", ["", ".", "..", "a/b"])
def test_a_category_is_one_folder(category: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="name of one folder"):
        write_sample(tmp_path, category=category)


@pytest.mark.parametrize("option", [{"train": 0}, {"per_defect": -1}, {"seed": -1}, {"size": 8}])
def test_arguments_out_of_range_are_refused_before_writing(
    option: dict[str, int], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="Expected"):
        make(tmp_path / "new", **option)
    assert os.listdir(tmp_path) == []
