"""Data sets: every layout that a command takes, its labels and masks, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from destseg_deploy.data.datasets import (
    find_images,
    images_at_hand,
    name_of,
    of_folders,
    open_dataset,
    with_masks,
)
from destseg_deploy.data.mvtec import Sample
from destseg_deploy.data.seen import names_below, seen_in_training
from destseg_deploy.errors import DataError
from destseg_deploy.spec import TrainingRecord

PIXELS = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)


def write(root: Path, *names: str) -> list[Path]:
    """Write an image for each name, each with pixels of its own."""
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = {".jpeg": "JPEG", ".jpg": "JPEG", ".tif": "TIFF", ".bmp": "BMP"}
        Image.fromarray(PIXELS + i).save(path, kind.get(path.suffix.lower(), "PNG"))
    return [root / name for name in names]


def told(samples: list[Sample], root: Path) -> list[tuple[str, str, str | None]]:
    return [
        (
            s.image.relative_to(root).as_posix(),
            s.defect,
            None if s.mask is None else s.mask.relative_to(root).as_posix(),
        )
        for s in samples
    ]


# --- folders


@pytest.mark.parametrize(
    "names",
    [
        ("a.PNG", "b.JPEG", "c.tif", "d.TIF", "e.bmp"),
        ("monday/a.png", "monday/late/b.png", "tuesday/a.png"),
    ],
)
def test_a_folder_of_images_holds_good_parts_flat_or_nested(tmp_path, names):
    images = write(tmp_path / "gear", *names)
    data = open_dataset(tmp_path / "gear")
    assert data.name == "gear"
    assert data.train() == sorted(images)
    assert data.good() == sorted(images)
    with pytest.raises(DataError, match=r"without labels.*--good FOLDER --ng FOLDER"):
        data.test()


@pytest.mark.parametrize("good", ["good", "OK", "normal"])
def test_folders_of_classes_are_told_by_their_names(tmp_path, good):
    write(tmp_path, f"{good}/1.png", f"{good}/2.png", "scratch/1.png", "dent/x/3.jpg")
    data = open_dataset(tmp_path)
    assert [path.name for path in data.train()] == ["1.png", "2.png"]
    assert told(data.test(), tmp_path) == [
        (f"{good}/1.png", "good", None),
        (f"{good}/2.png", "good", None),
        ("dent/x/3.jpg", "x", None),
        ("scratch/1.png", "scratch", None),
    ]


def test_all_folders_of_good_parts_are_good(tmp_path):
    """The images of the second and the third were counted as defects."""
    write(tmp_path, "good/1.png", "OK/1.png", "normal/1.png", "scratch/1.png")
    data = open_dataset(tmp_path)
    assert len(data.train()) == len(data.good()) == 3
    kinds = [(s.image.parent.name, s.defect) for s in data.test()]
    assert sorted(kinds[:3]) == [("OK", "good"), ("good", "good"), ("normal", "good")]
    assert kinds[3:] == [("scratch", "scratch")]
    with pytest.raises(DataError, match=r"among NG parts, and its folder is called OK\. Rename"):
        of_folders(tmp_path / "good", [tmp_path]).test()


def test_a_list_that_is_named_for_ng_parts_gives_its_ng_parts(tmp_path):
    """Its good rows were counted as defects, and its masks were lost."""
    write(tmp_path, "good/1.png")
    listed = tmp_path / "parts.csv"
    listed.write_text("path,label,mask\n4.png,good,\n5.png,dent,m.png\n")
    data = of_folders(tmp_path / "good", [listed])
    assert told(data.test(), tmp_path)[1:] == [("5.png", "dent", "m.png")]
    listed.write_text("path\n4.png\n5.png\n")
    assert [one[:2] for one in told(data.test(), tmp_path)[1:]] == [
        ("4.png", "parts"),
        ("5.png", "parts"),
    ]
    listed.write_text("path,label\n4.png,good\n")
    with pytest.raises(DataError, match="only good images, and it was named for NG parts"):
        data.test()


@pytest.mark.parametrize(
    ("good", "ng", "words"),
    [
        ("a", ["a"], "a and as good"),
        ("a", ["b", "b"], "b"),
        ("b/x", ["b"], "good and as x"),
        ("link", ["a"], "a and as good"),
    ],
)
def test_an_image_is_not_named_twice(tmp_path, good, ng, words):
    write(tmp_path, "a/1.png", "b/2.png", "b/x/3.png")
    (tmp_path / "link").symlink_to("a")
    data = of_folders(tmp_path / good, [tmp_path / name for name in ng])
    with pytest.raises(DataError, match=rf"named twice, as {words}\."):
        data.test()


def test_mvtec_masks_may_have_the_stem_alone(tmp_path):
    write(tmp_path, "test/good/1.png", "test/dent/2.png", "ground_truth/dent/2.PNG")
    assert told(open_dataset(tmp_path).test(), tmp_path)[1] == (
        "test/dent/2.png",
        "dent",
        "ground_truth/dent/2.PNG",
    )


def test_the_good_parts_of_mvtec_for_a_threshold_are_not_those_trained_on(tmp_path):
    write(tmp_path, "train/good/1.png", "test/good/2.png", "test/dent/3.png")
    data = open_dataset(tmp_path)
    assert [path.name for path in data.train()] == ["1.png"]
    assert [path.name for path in data.good()] == ["2.png"]


def test_ng_parts_are_not_trained_on_by_mistake(tmp_path):
    write(tmp_path, "NG/1.png", "shift1/2.png")
    with pytest.raises(DataError, match="holds NG, and no folder that is called good"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("inner", "files"),
    [
        ("cable", ["train/good/1.png", "test/dent/2.png", "ground_truth/dent/2_mask.png"]),
        ("cable", ["test/good/1.png", "test/dent/2.png"]),
        ("line/cable", ["good/1.png", "ng/2.png"]),
        ("cable", ["1.png", "defects/2.png"]),
        ("cable", ["1.png", "masks/1.png"]),
    ],
)
def test_the_folder_above_a_data_set_is_none_of_good_parts(tmp_path, inner, files):
    """All images below were trained on as good parts: test images, NG parts and masks."""
    write(tmp_path / inner, *files)
    with pytest.raises(DataError, match=f"not told apart. Pass {tmp_path / inner} if that is"):
        open_dataset(tmp_path)
    with pytest.raises(DataError, match="not told apart"):
        of_folders(tmp_path, [tmp_path]).good()


def test_masks_among_good_parts_are_no_good_parts(tmp_path):
    write(tmp_path, "1.png", "masks/1.png")
    with pytest.raises(DataError, match=r"masks, so good parts.* apart\. Name the folders"):
        open_dataset(tmp_path)


def test_what_is_named_as_good_gives_its_good_parts(tmp_path):
    """A category gave all its test images, and a list those of every label."""
    write(tmp_path / "cable", "train/good/1.png", "test/good/2.png", "test/dent/3.png")
    write(tmp_path / "cable", "ground_truth/dent/3_mask.png")
    listed = tmp_path / "parts.csv"
    listed.write_text("path,label\n4.png,good\n5.png,dent\n")
    for source, name in ((tmp_path / "cable", "2.png"), (listed, "4.png")):
        assert [path.name for path in of_folders(source, [tmp_path]).good()] == [name]


def test_good_and_ng_folders_can_be_named(tmp_path):
    write(tmp_path, "a/1.png", "b/2.png", "c/crack/3.png", "c/4.png", "truth/2.png")
    write(tmp_path, "truth/3.png", "truth/4_mask.png")
    data = of_folders(tmp_path / "a", [tmp_path / "b", tmp_path / "c"])
    expected = [("a/1.png", "good"), ("b/2.png", "b"), ("c/4.png", "c"), ("c/crack/3.png", "crack")]
    assert [one[:2] for one in told(data.test(), tmp_path)] == expected
    assert data.source == tmp_path
    masks = [s.mask and s.mask.name for s in with_masks(data, tmp_path / "truth").test()]
    assert masks == [None, "2.png", "4_mask.png", "3.png"]


def test_a_folder_is_named_by_what_tells_something(tmp_path):
    write(tmp_path, "gear/good/1.png", "gear/parts.csv")
    assert name_of(tmp_path / "gear/good") == "gear"
    assert name_of(tmp_path / "gear/parts.csv") == "parts"


@pytest.mark.parametrize(("name", "words"), [("none", "no such folder"), ("empty", "no images")])
def test_a_folder_that_is_not_there_or_empty_is_named(tmp_path, name, words):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=rf"{name}: {words}"):
        open_dataset(tmp_path / name).train()


# --- lists


ROWS = [
    {"path": "in/1.png", "label": "good", "split": "train"},
    {"path": "in/2.png", "label": "OK", "split": "test"},
    {"path": "in/3.png", "label": "scratch", "mask": "masks/three.png", "split": "test"},
]


def write_list(root: Path, form: str) -> Path:
    write(root, "in/1.png", "in/2.png", "in/3.png", "masks/three.png")
    path = root / f"parts.{form.removesuffix(';')}"
    if form == "json":
        path.write_text(json.dumps(ROWS))
    else:
        names = ("path", "label", "mask", "split")
        table = [names, *([row.get(name, "") for name in names] for row in ROWS)]
        text = "\n".join((";" if form == "csv;" else ",").join(row) for row in table)
        path.write_text(text, encoding="utf-8-sig")
    return path


@pytest.mark.parametrize("form", ["csv", "csv;", "json"])
def test_a_list_says_what_each_image_is(tmp_path, form):
    data = open_dataset(write_list(tmp_path, form))
    assert data.name == "parts"
    assert [path.name for path in data.train()] == ["1.png"]
    assert [path.name for path in data.good()] == ["2.png"]
    assert told(data.test(), tmp_path) == [
        ("in/2.png", "good", None),
        ("in/3.png", "scratch", "masks/three.png"),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("form", ["csv", "json"])
def test_a_list_is_read_in_each_encoding_of_excel(tmp_path, form, encoding):
    path = write_list(tmp_path, form)
    expected = open_dataset(path).test()
    text = path.read_text("utf-8-sig").replace("\n", "\r\n")
    path.write_bytes(text.encode(encoding))
    assert open_dataset(path).test() == expected


def test_a_list_without_labels_holds_good_parts(tmp_path):
    path = tmp_path / "parts.csv"
    path.write_text("path\na.png\nb.png\n")
    assert [p.name for p in open_dataset(path).train()] == ["a.png", "b.png"]
    with pytest.raises(DataError, match="without labels"):
        open_dataset(path).test()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "columns are missing"),
        ("file,label\na.png,good\n", "columns are file, label, expected path"),
        ("path,label\n", "no rows"),
        ("path,label\n,good\n", "row 2 has no path"),
        ("path,label\na.png,good\nb.png,\n", r"image 2 \(b.png\) has no label"),
        ("path,label,split\na.png,good,val\n", "split 'val', expected train or test"),
        ("path\na.png\nb.png\n./a.png\n", "rows 2 and 4 name the same image, .*a.png. Expected"),
        ("path,label\na.png,good\na.png,cut\n", "rows 2 and 3 .*a.png, as good and cut. Expect"),
        ("path,split\na.png,train\na.png,test\n", "rows 2 and 3 name the same image"),
        ('path,label\n"' + "a" * 200_000, "no list of images .field larger than"),
    ],
)
def test_a_list_that_says_too_little_is_refused(tmp_path, text, words):
    path = tmp_path / "parts.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=words):
        open_dataset(path)


@pytest.mark.parametrize("text", ["{}", "[1]", "[{", "\xff", "[" * 99_999])
def test_json_that_is_no_list_of_objects_is_refused(tmp_path, text):
    path = tmp_path / "parts.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"parts\.json: "):
        open_dataset(path)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "path,lable\na.png,scratch\n", "a column 'lable', expected path, label.*'label'"),
        ("a.csv", "path,label\na,b.png,good\n", "row 2 has more cells than the 2 columns"),
        ("a.csv", "path\na\0b.png\n", r"row 2: path is 'a\\x00b.png', expected no zero byte"),
        ("a.json", '[{"path": "a.png", "labels": "dent"}]', "a column 'labels'"),
        ("a.json", '[{"path": "a.png", "label": false}]', "row 1: label is False, expected text"),
        ("a.json", '[{"path": ["a.png"]}]', r"row 1: path is \['a.png'\], expected text"),
    ],
)
def test_a_row_that_may_be_meant_otherwise_is_refused(tmp_path, name, text, words):
    """Where a label is not read, NG parts are trained on as good ones."""
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=words):
        open_dataset(tmp_path / name)


@pytest.mark.parametrize("other", ["task", "mark", "label_id", "mask2", "paths"])
def test_columns_of_others_are_not_read(tmp_path, other):
    (tmp_path / "a.csv").write_text(
        f"path,label,mask,{other}\na.png,good,,x\nb.png,dent,m.png,x,\n"
    )
    found = open_dataset(tmp_path / "a.csv").test()
    assert [one.defect for one in found] == ["good", "dent"]


def test_a_list_has_its_names_in_any_case_and_other_columns(tmp_path):
    (tmp_path / "a.json").write_text(
        '[{"Path": "a.png", "LABEL": "good", "camera": 1}, {"Path": "b.png", "LABEL": "dent"}]'
    )
    (tmp_path / "a.csv").write_text('Path,Label,camera\n"a\nb.png",good,1\nb.png,dent,1\n')
    for name, first in (("a.json", "a.png"), ("a.csv", "a\nb.png")):
        found = open_dataset(tmp_path / name)
        assert [path.name for path in found.train()] == [first]
        assert [(one.image.name, one.defect) for one in found.test()] == [
            (first, "good"),
            ("b.png", "dent"),
        ]


def test_masks_for_some_ng_parts_only_are_refused(tmp_path):
    path = tmp_path / "parts.csv"
    path.write_text("path,label,mask\na.png,good,\nb.png,dent,m.png\nc.png,dent,\n")
    with pytest.raises(DataError, match=r"c\.png: no mask, and others have one"):
        open_dataset(path).test()


# --- images alone, and images that were seen


def test_images_are_found_in_lists_and_without_the_masks_of_mvtec(tmp_path):
    path = write_list(tmp_path / "list", "csv")
    write(tmp_path / "cable", "test/good/1.png", "test/dent/2.png", "ground_truth/dent/2_mask.png")
    found = find_images([str(path), str(tmp_path / "cable")])
    assert [p.name for p in found] == ["1.png", "2.png", "3.png", "2.png", "1.png"]


def test_images_of_a_list_alone_may_be_named_twice(tmp_path):
    (tmp_path / "frames.csv").write_text("path\na.png\nb.png\na.png\n")
    found = find_images([str(tmp_path / "frames.csv")])
    assert [path.name for path in found] == ["a.png", "b.png"]


def test_images_alone_are_without_masks_and_what_was_trained_on(tmp_path):
    write(tmp_path / "tm", "good/1.png", "dent/2.png", "masks/dent/2_mask.png")
    write(tmp_path / "cable", "train/good/1.png", "test/good/2.png")
    assert [p.name for p in find_images([str(tmp_path / "tm")])] == ["2.png", "1.png"]
    assert [p.name for p in find_images([str(tmp_path / "cable")])] == ["2.png"]
    write(tmp_path / "unlabelled", "good/1.png", "0/2.png")  # labels are not asked for
    assert len(find_images([str(tmp_path / "unlabelled")])) == 2


def test_images_at_hand_are_those_of_the_training_data(tmp_path):
    images = write(tmp_path, "flat/1.png", "cable/test/good/2.png")
    assert images_at_hand(str(tmp_path / "flat")) == [images[0]]
    assert images_at_hand(str(tmp_path / "cable")) == [images[1]]
    assert images_at_hand(str(tmp_path / "gone")) == images_at_hand(None) == []


def test_images_that_were_trained_on_are_known_by_path_and_by_content(tmp_path):
    one, two, held = write(tmp_path / "good", "1.png", "2.png", "x/3.png")
    new, copied = write(tmp_path / "new", *(f"{i}.png" for i in range(4, 9)))[-2:]
    copied.write_bytes(one.read_bytes())
    record = TrainingRecord(
        data=str(tmp_path / "good"), images=2, held_out=names_below([held], [one, two, held])
    )
    assert record.held_out == ("x/3.png",)
    assert seen_in_training(record, [two, held, new, copied]) == [two, copied]
    assert seen_in_training(None, [two]) == []
    gone = TrainingRecord(data=str(tmp_path / "gone"), images=2)
    assert seen_in_training(gone, [two]) == []


def test_a_list_may_mix_absolute_and_relative_paths(tmp_path, monkeypatch):
    """The names of held-out images are written at the end of a training, hours later."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parts.csv").write_text(f"path\n{tmp_path / 'in/1.png'}\nin/2.png\n")
    images = open_dataset(Path("parts.csv")).train()
    assert names_below(images[1:], images) == ("2.png",)
