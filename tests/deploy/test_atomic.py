"""Files are whole or not there."""

import hashlib
import os
from pathlib import Path

import pytest

from destseg_deploy.atomic import replacing, sha256, staging


def test_the_file_appears_when_the_block_succeeds(tmp_path):
    path = tmp_path / "new" / "folder" / "model.onnx"
    with replacing(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
        assert (temporary.parent, temporary.suffix) == (path.parent, ".onnx")
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_an_older_file_is_replaced(tmp_path):
    path = tmp_path / "model.json"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
@pytest.mark.parametrize("written", [True, False])
def test_a_failure_leaves_the_old_file_and_no_temporary_one(tmp_path, error, written):
    path = tmp_path / "model.json"
    path.write_text("old")

    def fail():
        with replacing(path) as temporary:
            if written:
                temporary.write_text("ha")
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "old"


def test_a_failing_rename_leaves_no_temporary_file(tmp_path):
    path = tmp_path / "model.json"
    path.mkdir()
    with pytest.raises(OSError, match=r"model\.json"), replacing(path) as temporary:
        temporary.write_text("new")
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_do_not_share_a_temporary_file(tmp_path):
    path = tmp_path / "model.json"
    with replacing(path) as first:
        first.write_text("first")
        with replacing(path) as second:
            second.write_text("second")
        assert first.read_text() == "first"
        assert path.read_text() == "second"
    assert path.read_text() == "first"


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, (1 << 20) + 1])
def test_sha256_covers_the_whole_content(tmp_path, size):
    path = tmp_path / "data.bin"
    content = bytes(i % 251 for i in range(size % 1000)) + b"x" * (size - size % 1000)
    path.write_bytes(content)
    assert sha256(path) == hashlib.sha256(content).hexdigest()


def test_a_staged_folder_arrives_whole_with_the_specs_last(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(os, "replace", lambda a, b: order.append(Path(b).name) or Path(a).rename(b))
    with staging(tmp_path / "new/out") as folder:
        (folder / "a.json").write_text("spec")
        (folder / "b.onnx").write_text("graph")
        (folder / "sub").mkdir()
        (folder / "sub/c.png").write_text("picture")
        assert [path.name for path in (tmp_path / "new/out").iterdir()] == [folder.name]
    assert order[-1] == "a.json"
    found = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert found == {"new/out/a.json", "new/out/b.onnx", "new/out/sub/c.png"}


def _stage_and_fail(output):
    with staging(output) as folder:
        (folder / "a.json").write_text("new")
        raise ValueError("no")


def test_a_staged_folder_that_fails_was_never_there(tmp_path):
    with pytest.raises(ValueError, match="no"):
        _stage_and_fail(tmp_path / "new/out")
    assert list(tmp_path.iterdir()) == []


def test_a_staged_folder_that_fails_leaves_what_was_there(tmp_path):
    (tmp_path / "a.json").write_text("old")
    with pytest.raises(ValueError, match="no"):
        _stage_and_fail(tmp_path)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.json", "old")]
