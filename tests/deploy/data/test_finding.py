"""Finding image files: one rule for files, folders and globs."""

from __future__ import annotations

import ntpath
import os
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace

import pytest

from destseg_deploy.data import finding
from destseg_deploy.data.finding import (
    common_folder,
    expand,
    folder_below,
    is_image,
    list_below,
    list_folders,
    list_images,
)
from destseg_deploy.errors import DataError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Images a.png, b.JPG, sub/c.tif; a text, a hidden image, a file that is no image by name."""
    (tmp_path / "sub").mkdir()
    for name in ("b.JPG", "a.png", "sub/c.tif", "notes.txt", ".hidden.png", "sub/raw.dat"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def names(paths: list[Path], root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.png", True),
        ("a.b.TIFF", True),
        ("a.jpeg", True),
        ("a.bmp", True),
        ("a.txt", False),
        ("png", False),
        ("._a.png", False),
    ],
)
def test_is_image_goes_by_the_suffix(name: str, expected: bool) -> None:
    assert is_image(Path("folder") / name) is expected


def test_list_images_is_sorted_and_leaves_other_files_out(tree: Path) -> None:
    assert names(list_images(tree), tree) == ["a.png", "b.JPG"]


def test_list_images_refuses_a_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / ".hidden.png").touch()
    with pytest.raises(DataError, match=r"no images in it. Expected files ending in \.png"):
        list_images(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        list_images(tmp_path / "gone")


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["a.png"], ["a.png"]),
        (["notes.txt"], ["notes.txt"]),  # named by hand: reading it will tell
        (["."], ["a.png", "b.JPG", "sub/c.tif"]),
        (["*"], ["a.png", "b.JPG", "sub/c.tif"]),  # as where the shell expands it
        (["s*"], ["sub/c.tif"]),
        (["**"], ["a.png", "b.JPG", "sub/c.tif"]),
        (["**/*"], ["a.png", "b.JPG", "sub/c.tif"]),
        (["**/sub/*"], ["sub/c.tif"]),
        (["sub/../*.png"], ["sub/../a.png"]),
        (["a.png", "sub/../a.png"], ["a.png"]),
        (["sub"], ["sub/c.tif"]),
        (["*.png"], ["a.png"]),
        (["*/*"], ["sub/c.tif"]),
        (["**/*.tif"], ["sub/c.tif"]),
        (["b.JPG", "a.png"], ["b.JPG", "a.png"]),
        (["a.png", "*.png", ".", "a.png"], ["a.png", "b.JPG", "sub/c.tif"]),
    ],
)
def test_expand_finds_files_folders_and_globs_once(
    patterns: list[str], expected: list[str], tree: Path
) -> None:
    assert names(expand([str(tree / pattern) for pattern in patterns]), tree) == expected


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("*.tif", "no images there"),
        ("gone.png", r"gone\.png: no such file or folder"),
        ("empty", "no images there"),
    ],
)
def test_expand_refuses_what_names_no_image(pattern: str, words: str, tree: Path) -> None:
    (tree / "empty").mkdir()
    with pytest.raises(DataError, match=words):
        expand([str(tree / "a.png"), str(tree / pattern)])


@pytest.mark.parametrize("pattern", ["", " "])
def test_an_empty_name_is_not_the_current_folder(
    pattern: str, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree)
    with pytest.raises(DataError, match=r"an empty name. Expected images; '\.' is the current"):
        expand(["a.png", pattern])
    assert names(expand(["."]), Path()) == ["a.png", "b.JPG", "sub/c.tif"]
    assert names(expand(["*.png"]), Path()) == ["a.png"]


def test_hidden_folders_are_left_out(tree: Path) -> None:
    for name in (".ipynb_checkpoints/a-checkpoint.png", "sub/.trash/b.png"):
        (tree / name).parent.mkdir()
        (tree / name).touch()
    for pattern in (".", "**/*.png", "*/*", "**"):
        assert not any(
            ".ipynb" in str(p) or ".trash" in str(p) for p in expand([str(tree / pattern)])
        )
    assert names(expand([str(tree / "sub/.trash")]), tree) == ["sub/.trash/b.png"]  # named by hand


OURS = {
    "predictions.csv": "image,score,normalized_score,verdict,peak,x,y\n",
    "predictions.json": '[\n  {\n    "image": "a.png",\n    "score": 0.1,\n',
    "metrics.json": '{\n  "artifact": "cable.onnx",\n  "data": "data/cable",\n',
}
WRITTEN = (
    "overlays/a.png",
    "overlays/sub/a.png",
    "maps/a.tiff",
    "overview.png",
    "curves.png",
    "worst.png",
)


def write_all(folder: Path, table: str, text: str) -> None:
    for name in WRITTEN:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / table).write_text(text)


@pytest.mark.parametrize("table", OURS)
@pytest.mark.parametrize("place", [".", "sub", "predictions"])
def test_what_our_commands_wrote_is_no_input(table: str, place: str, tree: Path) -> None:
    write_all(tree / place, table, OURS[table])
    rest = (
        {"curves.png", "worst.png", "maps/a.tiff"}
        if table.startswith("pred")
        else {"overlays/a.png", "overlays/sub/a.png", "maps/a.tiff", "overview.png"}
    )
    wanted = {"a.png", "b.JPG", "sub/c.tif"} | {os.path.normpath(f"{place}/{r}") for r in rest}
    for pattern in (".", "**", "**/*", "*"):
        assert set(names(expand([str(tree / pattern)]), tree)) == wanted
    for ours in ("overlays/a.png", "overlays", "overlays/*.png", "overview.png"):
        if table.startswith("pred"):
            with pytest.raises(DataError, match="not written by destseg-predict"):
                expand([str(tree / place / ours)])
    assert not [
        p
        for p in list_images(tree)
        if p.name == "overview.png" and place == "." and table.startswith("pred")
    ]


@pytest.mark.parametrize("table", OURS)
def test_a_long_path_in_a_table_hides_nothing(table: str, tree: Path) -> None:
    text = OURS[table].replace("a.png", f"{'部品' * 40}.png").replace("cable.onnx", "部" * 90)
    write_all(tree, table, text.encode("ascii", "backslashreplace").decode())  # as json writes it
    found = names(expand([str(tree)]), tree)
    assert not {"overview.png", "overlays/a.png"} & set(found) or table == "metrics.json"
    assert "worst.png" not in found or table != "metrics.json"


@pytest.mark.parametrize("table", OURS)
def test_a_users_own_table_and_overlays_are_the_users(table: str, tree: Path) -> None:
    write_all(tree, table, "part,operator\n1,Ada\n")
    found = set(names(expand([str(tree)]), tree))
    assert found == {"a.png", "b.JPG", "sub/c.tif", *WRITTEN}


def test_links_are_followed_and_a_link_that_leads_back_ends_there(tree: Path) -> None:
    (tree / "sub/back").symlink_to(tree)
    (tree / "sub/self").symlink_to(".")
    (tree / "aaa").symlink_to(tree / "sub")
    (tree / "alias.png").symlink_to("a.png")
    for pattern in (".", "**", "**/*", "*"):
        found = [p.name for p in expand([str(tree / pattern)])]
        assert sorted(found) == ["a.png", "alias.png", "b.JPG", "c.tif"]


def test_a_linked_folder_is_searched_like_any_other(tree: Path, tmp_path_factory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "far.png").touch()
    (tree / "link").symlink_to(other)
    for pattern in (".", "**/*.png", "*/*.png", "link", "link/*"):
        assert tree / "link/far.png" in expand([str(tree / pattern)])


def test_a_folder_named_like_an_image_is_a_folder(tree: Path) -> None:
    (tree / "x.png").mkdir()
    (tree / "x.png/y.png").touch()
    assert names(list_images(tree), tree) == ["a.png", "b.JPG"]
    for pattern in ("x.png", "x.*", "**/y.png"):
        assert names(expand([str(tree / pattern)]), tree) == ["x.png/y.png"]
    assert "x.png/y.png" in names(expand([str(tree)]), tree)


def test_what_is_no_regular_file_is_refused_where_it_is_named(tree: Path) -> None:
    os.mkfifo(tree / "pipe.png")
    (tree / "lost.png").symlink_to("gone")
    with pytest.raises(DataError, match=r"pipe\.png: a pipe, expected an image file"):
        expand([str(tree / "pipe.png")])
    with pytest.raises(DataError, match="a link to gone, which is not there"):
        expand([str(tree / "lost.png")])
    # In a folder they stay: their reader names them, where leaving them out would be silent.
    assert {"pipe.png", "lost.png"} < set(names(expand([str(tree)]), tree))


def test_a_missing_folder_holds_nothing(tree: Path) -> None:
    assert list_below(tree / "gone") == []
    assert names(list_below(tree), tree) == ["a.png", "b.JPG", "sub/c.tif"]
    (tree / ".hidden").mkdir()
    assert names(list_folders(tree), tree) == ["sub"]


@pytest.mark.parametrize(
    "pattern",
    [
        "line[1]/*.png",
        "line[1]",
        "line[1]/p[2].png",
        "line[1]/p[2]*",
        "*/p[2].png",
        "l*/p[2]*.png",
        "**/p[2].png",
        "line?1?/p*",
    ],
)
def test_brackets_of_names_that_exist_are_brackets(pattern: str, tree: Path) -> None:
    (tree / "line[1]").mkdir()
    (tree / "line[1]/p[2].png").touch()
    assert names(expand([str(tree / pattern)]), tree) == ["line[1]/p[2].png"]


def test_brackets_are_a_choice_where_no_such_name_exists(tree: Path) -> None:
    assert names(expand([str(tree / "[ab].*")]), tree) == ["a.png", "b.JPG"]


def test_expand_takes_brackets_in_a_file_name_literally(tree: Path) -> None:
    (tree / "part[1].png").write_bytes(b"")
    assert names(expand([str(tree / "part[1].png")]), tree) == ["part[1].png"]


def test_the_common_folder_of_absolute_and_relative_paths(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [tmp_path / "parts/a", Path("parts/b/c")]
    common = common_folder(folders)
    assert common == tmp_path / "parts"
    assert [folder_below(one, common) for one in folders] == [Path("a"), Path("b/c")]


def test_drives_have_no_common_folder_and_their_letters_tell_files_apart(monkeypatch) -> None:
    """Of Windows, as its own functions on paths see them."""
    monkeypatch.setattr(finding, "os", SimpleNamespace(path=ntpath))
    monkeypatch.setattr(finding, "Path", PureWindowsPath)
    folders = [PureWindowsPath(one) for one in (r"C:\line\1", r"D:\line\1", r"\\pc\share\1")]
    assert common_folder(folders) is None
    names = [folder_below(one, None).as_posix() for one in folders]
    assert names == ["C/line/1", "D/line/1", "pc-share/1"]
    assert common_folder(folders[:1] * 2) == folders[0]
