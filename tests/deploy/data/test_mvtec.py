"""The MVTec AD layout: what is found, and what is said of everything that is missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from destseg_deploy.data.mvtec import (
    GOOD,
    find_categories,
    find_category,
    find_mask,
    list_test,
    list_train,
    read_masks,
)
from destseg_deploy.errors import DataError

FILES = (
    "train/good/001.png",
    "train/good/000.png",
    "test/good/000.png",
    "test/bent/000.png",
    "test/bent/001.png",
    "test/a_cut/000.png",
    "ground_truth/bent/000_mask.png",
    "ground_truth/bent/001_mask.png",
    "ground_truth/a_cut/000_mask.png",
)


@pytest.fixture
def cable(tmp_path: Path) -> Path:
    """A category of empty files: only names matter here."""
    for name in FILES:
        path = tmp_path / "cable" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "cable"


def relative(paths: list[Path], root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


# ---------------------------------------------------------------------------- what is there


def test_training_images_are_sorted(cable: Path) -> None:
    assert relative(list_train(cable), cable) == ["train/good/000.png", "train/good/001.png"]


def test_test_images_come_good_first_then_by_defect(cable: Path) -> None:
    samples = list_test(cable)
    assert [(s.defect, s.image.name, s.anomalous) for s in samples] == [
        ("good", "000.png", False),
        ("a_cut", "000.png", True),
        ("bent", "000.png", True),
        ("bent", "001.png", True),
    ]
    assert samples[0].mask is None
    masks = [sample.mask for sample in samples[1:]]
    assert relative([mask for mask in masks if mask], cable) == [
        "ground_truth/a_cut/000_mask.png",
        "ground_truth/bent/000_mask.png",
        "ground_truth/bent/001_mask.png",
    ]


@pytest.mark.parametrize("suffix", [".PNG", ".bmp", ".TIF", ".jpg", ".JPEG", ".Png"])
def test_a_mask_may_have_another_suffix_than_its_image(suffix: str, cable: Path) -> None:
    (cable / "ground_truth/bent/001_mask.png").rename(cable / f"ground_truth/bent/001_mask{suffix}")
    assert list_test(cable)[3].mask == cable / f"ground_truth/bent/001_mask{suffix}"


def test_upper_case_images_are_found(cable: Path) -> None:
    (cable / "test/bent/001.png").rename(cable / "test/bent/001.PNG")
    assert list_test(cable)[3].image.name == "001.PNG"


def test_hidden_files_and_folders_are_ignored(cable: Path) -> None:
    for name in (
        "train/good/.000.png",
        "train/good/._001.png",
        "test/bent/.DS_Store",
        "test/bent/._000.png",
        "test/.DS_Store",
        "test/.ipynb_checkpoints/000.png",
        "test/readme.txt",
    ):
        (cable / name).parent.mkdir(exist_ok=True)
        (cable / name).touch()
    assert len(list_train(cable)) == 2
    assert [sample.defect for sample in list_test(cable)] == ["good", "a_cut", "bent", "bent"]


def test_a_category_without_ground_truth_has_no_masks(cable: Path) -> None:
    shutil.rmtree(cable / "ground_truth")
    samples = list_test(cable)
    assert [sample.mask for sample in samples] == [None] * 4
    assert [sample.anomalous for sample in samples] == [False, True, True, True]


def test_good_needs_no_mask(cable: Path) -> None:
    assert find_mask(cable / "ground_truth", GOOD, cable / "test/good/000.png") is None


def test_find_category(cable: Path) -> None:
    assert find_category(cable.parent, "cable") == cable


@pytest.fixture
def data(cable: Path) -> Path:
    """Three categories, and folders that are none."""
    for name in ("screw/train/good", "bottle/train/good", "notes/train", "license/good"):
        (cable.parent / name).mkdir(parents=True)
    (cable.parent / "readme.txt").touch()
    return cable.parent


def test_several_categories_come_in_the_order_given(data: Path) -> None:
    found = find_categories(data, ["screw", "cable"])
    assert found == [data / "screw", data / "cable"]
    assert find_categories(data, ["bottle"]) == [data / "bottle"]


def test_a_category_given_twice_comes_once(data: Path) -> None:
    names = ["screw", "cable", "screw", "cable"]
    assert find_categories(data, names) == [data / "screw", data / "cable"]


@pytest.mark.parametrize("names", [["all"], ["all", "all"], ["screw", "all"]])
def test_all_is_every_folder_with_normal_images_sorted(names: list[str], data: Path) -> None:
    assert find_categories(data, names) == [data / "bottle", data / "cable", data / "screw"]


def test_pictures_of_our_commands_are_no_kind_of_defect(cable: Path) -> None:
    """As ``destseg-predict data/cable/test --output data/cable/test`` leaves them."""
    (cable / "test/overlays/bent").mkdir(parents=True)
    (cable / "test/overlays/bent/000.png").touch()
    (cable / "test/predictions.csv").write_text("image,score\n")
    assert {sample.defect for sample in list_test(cable)} == {"good", "a_cut", "bent"}


def test_masks_are_read_with_the_headers_of_their_images(cable: Path) -> None:
    for sample in list_test(cable):
        Image.new("L", (8, 6), 50).save(sample.image)
        if sample.mask is not None:
            small = Image.new("L", (8, 6), 0)
            small.paste(2, (6, 4, 8, 6))
            small.save(sample.mask)
    image = Image.new("L", (8, 6), 0)
    image.paste(2, (0, 0, 4, 4))
    image.save(cable / "ground_truth/bent/001_mask.png")
    # Its pixels are missing, which a header does not tell.
    whole = (cable / "test/a_cut/000.png").read_bytes()
    (cable / "test/a_cut/000.png").write_bytes(whole[:50])
    masks = read_masks(list_test(cable), (3, 4))
    assert masks is not None
    assert masks.shape == (4, 3, 4)
    assert masks.sum(axis=(1, 2)).tolist() == [0, 1, 1, 4]
    (cable / "test/bent/000.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"bent/000\.png: an empty file"):
        read_masks(list_test(cable), (3, 4))
    shutil.rmtree(cable / "ground_truth")
    assert read_masks(list_test(cable), (3, 4)) is None


# ---------------------------------------------------------------------------- what is missing


def test_a_missing_one_of_several_categories_is_named(data: Path) -> None:
    with pytest.raises(DataError, match=r"no category 'calbe'. Found: bottle, cable, license"):
        find_categories(data, ["screw", "calbe"])


def test_all_of_a_folder_without_categories_is_an_error(data: Path) -> None:
    """Such as the folder of one category, one level too deep."""
    for folder in (data / "cable", data / "license", data / "gone"):
        with pytest.raises(DataError) as error:
            find_categories(folder, ["all"])
        assert str(error.value) == (
            f"{folder}: no categories in it. Expected folders that each hold train/good; give the "
            "folder above them."
        )


def test_a_single_missing_mask_is_an_error_with_the_name_it_should_have(cable: Path) -> None:
    missing = cable / "ground_truth/bent/001_mask.png"
    missing.unlink()
    with pytest.raises(DataError) as error:
        list_test(cable)
    assert str(cable / "test/bent/001.png") in str(error.value)
    assert f"Expected {missing}" in str(error.value)
    assert "move ground_truth away" in str(error.value)


def test_a_missing_folder_of_masks_is_an_error(cable: Path) -> None:
    shutil.rmtree(cable / "ground_truth/a_cut")
    with pytest.raises(DataError, match="no mask"):
        list_test(cable)


def test_normal_parts_under_another_name_are_told_where_they_belong(cable: Path) -> None:
    (cable / "test/good").rename(cable / "test/fine")
    with pytest.raises(DataError, match=r"test/fine: no masks.*parts are good, .* test/good"):
        list_test(cable)


@pytest.mark.parametrize("masks", [True, False])
def test_all_names_of_normal_parts_mean_good(masks: bool, cable: Path) -> None:
    """Images of test/ok were counted as defects."""
    shutil.copytree(cable / "test/good", cable / "test/OK")
    shutil.copytree(cable / "test/good", cable / "test/normal")
    (cable / "train/good").rename(cable / "train/ok")
    if not masks:
        shutil.rmtree(cable / "ground_truth")
    kinds = [(s.image.parent.name, s.defect) for s in list_test(cable) if not s.anomalous]
    assert kinds == [("OK", "good"), ("good", "good"), ("normal", "good")]
    assert len(list_train(cable)) == 2
    assert find_categories(cable.parent, ["all"]) == [cable]


def test_a_folder_0_beside_good_is_refused(cable: Path) -> None:
    (cable / "test/bent").rename(cable / "test/0")
    with pytest.raises(DataError, match="test: holds 0 and good; 0 may hold good parts or a kind"):
        list_test(cable)


def test_two_images_do_not_share_a_mask(cable: Path) -> None:
    (cable / "test/bent/000.jpg").touch()
    with pytest.raises(DataError, match=r"000_mask\.png: may be the mask of .*000\.\w+ or of"):
        list_test(cable)


def test_two_masks_of_an_image_are_refused(cable: Path) -> None:
    (cable / "ground_truth/bent/001_mask.Tif").touch()
    with pytest.raises(DataError, match=r"001\.png: two masks, .*_mask\.Tif and .*_mask\.png"):
        list_test(cable)


def test_a_hidden_mask_does_not_count(cable: Path) -> None:
    (cable / "ground_truth/bent/001_mask.png").rename(cable / "ground_truth/bent/.001_mask.png")
    with pytest.raises(DataError, match=r"001\.png: no mask"):
        list_test(cable)


def test_a_missing_train_folder_is_named_with_what_was_found(cable: Path) -> None:
    shutil.rmtree(cable / "train")
    with pytest.raises(DataError) as error:
        list_train(cable)
    assert str(error.value) == (
        f"{cable}: no train/good folder. Found: ground_truth, test. Expected an MVTec AD category "
        "(train/good, test/<defect>, ground_truth/<defect>)."
    )


def test_a_missing_test_folder_is_named(cable: Path) -> None:
    shutil.rmtree(cable / "test")
    with pytest.raises(DataError, match=r"no test folder. Found: ground_truth, train\."):
        list_test(cable)


def test_a_category_without_folders_says_so(cable: Path) -> None:
    shutil.rmtree(cable)
    cable.mkdir()
    with pytest.raises(DataError, match=r"no train/good folder. Found: no folders\."):
        list_train(cable)


def test_a_test_folder_without_folders_is_an_error(cable: Path) -> None:
    shutil.rmtree(cable / "test")
    (cable / "test").mkdir()
    with pytest.raises(DataError, match="no folders in it"):
        list_test(cable)


@pytest.mark.parametrize("name", ["train/good", "test/good", "test/bent"])
def test_an_empty_folder_is_an_error(name: str, cable: Path) -> None:
    for path in (cable / name).iterdir():
        path.unlink()
    with pytest.raises(DataError, match=f"{name}: no images in it"):
        (list_train if name.startswith("train") else list_test)(cable)


def test_a_missing_category_is_named_with_those_that_are_there(cable: Path) -> None:
    (cable.parent / "screw").mkdir()
    (cable.parent / "license.txt").touch()
    with pytest.raises(DataError, match=r"no category 'calbe'. Found: cable, screw\. Expected"):
        find_category(cable.parent, "calbe")
    with pytest.raises(DataError, match="calbe: no such folder"):
        list_train(cable.parent / "calbe")


def test_a_missing_data_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one that holds the MVTec AD category cable"):
        find_category(tmp_path / "gone", "cable")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="Found: no folders"):
        find_category(tmp_path / "empty", "cable")


# ---------------------------------------------------------------------------- real folders


@pytest.mark.parametrize(
    ("name", "train", "good", "defective", "kinds"),
    [("mvtec/screw", 320, 41, 119, 5), ("magnetic_tile", 761, 191, 388, 5)],
)
def test_real_categories_are_read(
    name: str, train: int, good: int, defective: int, kinds: int, shared: Path
) -> None:
    category = shared / "datasets" / name
    samples = list_test(category)
    assert len(list_train(category)) == train
    assert [s.anomalous for s in samples] == [False] * good + [True] * defective
    assert len({s.defect for s in samples if s.anomalous}) == kinds
    assert all((s.mask is not None) == s.anomalous for s in samples)
