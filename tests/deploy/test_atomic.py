"""Files are whole or not there."""

import hashlib

import pytest

from destseg_deploy.atomic import replacing, sha256


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
