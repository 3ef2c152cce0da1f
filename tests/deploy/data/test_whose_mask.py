"""Whose mask is it: a mask of one kind of defect is never that of another kind."""

import pytest

from destseg_deploy.data.datasets import of_folders, open_dataset, with_masks
from destseg_deploy.errors import DataError
from tests.deploy.data.test_datasets import told, write


def test_masks_of_the_same_stem_are_found_in_their_folder(tmp_path):
    write(tmp_path, "good/1.png", "dent/1.jpg", "scratch/1.jpg", "scratch/2.jpg")
    write(tmp_path, "masks/dent/1.PNG", "masks/Scratch/1_mask.png", "masks/2.png", "masks/1.png")
    assert told(open_dataset(tmp_path).test(), tmp_path) == [
        ("good/1.png", "good", None),
        ("dent/1.jpg", "dent", "masks/dent/1.PNG"),
        ("scratch/1.jpg", "scratch", "masks/Scratch/1_mask.png"),
        ("scratch/2.jpg", "scratch", "masks/2.png"),
    ]
    (tmp_path / "masks/2.png").unlink()
    with pytest.raises(DataError, match=r"2\.jpg: no mask. Expected one 2\.png"):
        open_dataset(tmp_path).test()


@pytest.mark.parametrize("named", ["dataset", "all", "dent"])
def test_a_mask_of_another_kind_is_not_taken(tmp_path, named):
    """Without masks of its own, dent/0.png silently got the mask of scratch/0.png."""
    write(tmp_path, "good/0.png", "scratch/0.png", "dent/0.png", "masks/scratch/0_mask.png")
    if named == "dataset":
        data = open_dataset(tmp_path)
    else:
        kinds = ("dent",) if named == "dent" else ("scratch", "dent")
        folders = of_folders(tmp_path / "good", [tmp_path / kind for kind in kinds])
        data = with_masks(folders, tmp_path / "masks")
    words = r"dent/0\.png: no mask; .*scratch/0_mask\.png has its name, and lies in another folder"
    with pytest.raises(DataError, match=words):
        data.test()


def test_a_mask_in_no_folder_is_that_of_one_image(tmp_path):
    """It was handed to both."""
    write(tmp_path, "good/0.png", "scratch/0.png", "dent/0.png", "masks/0.png")
    words = r"masks/0\.png: may be the mask of .*dent/0\.png or of .*scratch/0\.png"
    with pytest.raises(DataError, match=words):
        open_dataset(tmp_path).test()


def test_two_masks_of_an_image_are_refused(tmp_path):
    write(tmp_path, "good/1.png", "ng/1.png", "masks/1.png", "masks/1_mask.png")
    with pytest.raises(DataError, match="2 masks"):
        open_dataset(tmp_path).test()


def test_masks_may_repeat_all_folders_of_their_images(tmp_path):
    write(tmp_path, "good/0.png", "ng/dent/monday/0.png", "ng/dent/0.png")
    write(tmp_path, "truth/ng/dent/monday/0.png", "truth/dent/0.png")
    data = of_folders(tmp_path / "good", [tmp_path / "ng"])
    masks = [one[2] for one in told(with_masks(data, tmp_path / "truth").test(), tmp_path)]
    assert masks == [None, "truth/dent/0.png", "truth/ng/dent/monday/0.png"]


@pytest.mark.parametrize(
    "masks",
    [("masks/scratch/0.png", "masks/dent/0.png"), ("scratch/masks/0.png", "dent/Mask/0.png")],
)
def test_masks_below_the_ng_parts_are_no_ng_parts(tmp_path, masks):
    """They were samples of a defect that was called masks."""
    write(tmp_path, "good/0.png", "ng/dent/0.png", "ng/scratch/0.png")
    write(tmp_path / "ng", *masks)
    expected = [
        ("good/0.png", "good", None),
        ("ng/dent/0.png", "dent", f"ng/{masks[1]}"),
        ("ng/scratch/0.png", "scratch", f"ng/{masks[0]}"),
    ]
    assert told(open_dataset(tmp_path).test(), tmp_path) == expected
    assert told(of_folders(tmp_path / "good", [tmp_path / "ng"]).test(), tmp_path) == expected


def test_a_folder_of_masks_in_another_is_one_folder_of_masks(tmp_path):
    write(tmp_path / "ng", "dent/0.png", "ground_truth/mask/0.png")
    write(tmp_path / "good", "1.png")
    (_, found) = of_folders(tmp_path / "good", [tmp_path / "ng"]).test()
    assert found.mask == tmp_path / "ng/ground_truth/mask/0.png"


def test_masks_without_ng_parts_are_refused(tmp_path):
    write(tmp_path, "good/0.png", "ng/masks/0.png")
    with pytest.raises(DataError, match="ng: masks, and no images of NG parts"):
        open_dataset(tmp_path).test()


@pytest.mark.parametrize("second", ["masks", "scratch/masks"])
def test_two_folders_of_masks_are_refused(tmp_path, second):
    """The images of the second were samples of a defect."""
    write(tmp_path, "good/0.png", "scratch/0.png", "ground_truth/0.png", f"{second}/0.png")
    words = f"holds .*ground_truth and .*{second}, so it is not told which holds the masks"
    with pytest.raises(DataError, match=words):
        open_dataset(tmp_path).test()
    assert [path.name for path in open_dataset(tmp_path).train()] == ["0.png"]


def test_masks_for_some_ng_folders_only_are_refused(tmp_path):
    write(tmp_path, "good/0.png", "a/1.png", "a/masks/1.png", "b/2.png")
    data = of_folders(tmp_path / "good", [tmp_path / "a", tmp_path / "b"])
    with pytest.raises(DataError, match=r"b/2\.png: no mask, and others have one"):
        data.test()
