"""Which images an archive has."""

import os
from pathlib import Path

import pytest

from destseg_deploy.archive.sources import stream_paths
from destseg_deploy.data.datasets import find_images
from destseg_deploy.data.finding import stream_below
from destseg_deploy.errors import DataError
from tests.deploy.archive.cases import write_image


@pytest.fixture
def tree(tmp_path) -> Path:
    for name in ("b.png", "deep/a b.png", "deep/c#1.png", ".hidden/d.png"):
        write_image(tmp_path / "in" / name, 9)
    (tmp_path / "in/notes.txt").write_text("b.png\n")
    return tmp_path / "in"


def found(*sources: Path | str) -> list[str]:
    return list(stream_paths([str(source) for source in sources]))


def names(tree: Path, *wanted: str) -> list[str]:
    return [str(tree / name) for name in wanted]


def test_a_folder_is_searched_at_any_depth(tree, monkeypatch):
    wanted = names(tree, "b.png", "deep/a b.png", "deep/c#1.png")
    assert found(tree) == wanted
    monkeypatch.chdir(tree.parent)
    assert found("in") == wanted, "absolute, so that another folder goes on"
    assert found("in/*.png", "in/deep/c#1.png") == [wanted[0], wanted[2]]


@pytest.mark.parametrize(
    "files",
    [
        ("good/1.png", "dent/2.png", "masks/dent/2_mask.png"),
        ("train/good/1.png", "test/good/2.png"),
        ("test/dent/2.png", "ground_truth/dent/2_mask.png"),
        ("good/1.png", "0/2.png"),
    ],
)
def test_an_archive_has_the_images_that_predict_has_of_a_folder(tmp_path, files):
    for name in files:
        write_image(tmp_path / name, 9)
    assert sorted(found(tmp_path)) == sorted(map(str, find_images([str(tmp_path)])))


def test_a_folder_is_streamed(tree):
    stream = stream_below(tree)
    assert next(stream) == tree / "b.png"
    (tree / "deep/later.png").touch()
    assert tree / "deep/later.png" in list(stream), "a folder is listed when it is reached"


@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_a_text_file_has_a_path_on_each_line(tree, end):
    listed = tree / "list.txt"
    listed.write_bytes(f"\ufeffb.png\n\n{tree}/deep/a b.png\ns3://bucket/x.png{end}".encode())
    assert found(listed) == [*names(tree, "b.png", "deep/a b.png"), "s3://bucket/x.png"]


@pytest.mark.skipif(os.name != "posix", reason="file names are text there")
def test_a_text_file_may_name_files_that_are_no_utf_8(tree):
    (tree / "list.txt").write_bytes(b"k\xe4se.png\n")
    assert os.fsencode(found(tree / "list.txt")[0]).endswith(b"/k\xe4se.png")


def test_lists_name_missing_files_too(tree):
    (tree / "list.csv").write_text("path,label\nb.png,good\ngone.png,good\n")
    assert found(tree / "list.csv") == names(tree, "b.png", "gone.png")


def test_a_parquet_file_has_a_column_path(tree):
    pa = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    listed = tree / "list.parquet"
    write_table(pa.table({"line": [1, 2], "path": ["b.png", "s3://bucket/x.png"]}), listed)
    assert found(listed) == [*names(tree, "b.png"), "s3://bucket/x.png"]
    write_table(pa.table({"file": ["b.png"]}), listed)
    with pytest.raises(DataError, match="the columns are file, expected a column path"):
        found(listed)
    write_table(pa.table({"path": ["b.png", None]}), listed)
    with pytest.raises(DataError, match="row 2 has the path None"):
        found(listed)
    listed.write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match=r"list\.parquet: no Parquet file"):
        found(listed)


def test_uris_are_read_by_pyarrow(tree):
    pytest.importorskip("pyarrow")
    from destseg_deploy.archive.uris import FileSystems

    found_there = found(tree.as_uri())
    assert found_there == [
        f"file://{tree}/{name}" for name in ("b.png", "deep/a%20b.png", "deep/c%231.png")
    ]
    systems = FileSystems()
    assert systems.read(found_there[2]) == (tree / "deep/c#1.png").read_bytes()
    with pytest.raises(FileNotFoundError):
        systems.read(f"file://{tree}/gone.png")
    (tree / "list.txt").write_text("deep/x.png\n")
    assert found(f"file://{tree}/list.txt") == [f"file://{tree}/deep/x.png"]


def test_a_file_system_that_does_not_answer_is_named():
    pytest.importorskip("pyarrow")
    from destseg_deploy.archive.uris import UnreachableError

    with pytest.raises(UnreachableError, match="nosuch://host/a: cannot be reached"):
        found("nosuch://host/a")


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("empty.txt", "\n", "empty.txt: no images there"),
        ("zero.txt", "a\n\0\n", "line 2 holds a zero byte"),
        ("list.csv", "file\na.png\n", "the columns are file"),
    ],
)
def test_lists_that_are_none_are_refused(tmp_path, name, text, wanted):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=wanted):
        found(tmp_path / name)


def test_what_names_no_image_is_refused(tmp_path):
    (tmp_path / "bare").mkdir()
    for source, wanted in (("bare", "no images there"), ("gone", "gone: no such file or folder")):
        with pytest.raises(DataError, match=wanted):
            found(tmp_path / source)
    with pytest.raises(DataError, match="an empty name"):
        found(" ")
