"""Files are whole or not there."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

import pytest

from destseg_deploy.errors import OutputError
from destseg_deploy.files import (
    refuse_others,
    replacing,
    reserve,
    scratch,
    sha256,
    staging,
    sweep,
)
from destseg_deploy.locks import temporary_name
from destseg_deploy.text import load_json

ROOT = Path(__file__).resolve().parents[2]


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


# ---------------------------------------------------------------------------- links and modes


@pytest.mark.parametrize("writer", ["replacing", "staging"])
def test_a_link_stays_and_its_target_is_replaced(tmp_path, writer):
    real, link = tmp_path / "store/real.json", tmp_path / "out/a.json"
    for path in (real, link):
        path.parent.mkdir()
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to("../store/real.json")
    write(link, "new", writer)
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert real.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in link.parent.iterdir()] == ["a.json"]
    assert [path.name for path in real.parent.iterdir()] == ["real.json"]


def write(path, text, writer):
    if writer == "replacing":
        with replacing(path) as temporary:
            temporary.write_text(text)
    else:
        with staging(path.parent) as folder:
            (folder / path.name).write_text(text)


@pytest.mark.parametrize("failing", [False, True])
def test_a_link_to_another_file_system_is_followed(tmp_path, failing):
    """Its target cannot be renamed to from the staged folder."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system at /dev/shm")
    with tempfile.TemporaryDirectory(dir=memory) as other:
        real = Path(other) / "real.onnx"
        real.write_text("old")
        (tmp_path / "a.onnx").symlink_to(real)
        if failing:
            (tmp_path / "b.json").mkdir()
        with nullcontext() if not failing else pytest.raises(IsADirectoryError):
            stage(tmp_path, "a.onnx", "b.json")
        assert real.read_text() == ("old" if failing else "new")
        assert os.listdir(other) == ["real.onnx"]


# ---------------------------------------------------------------------------- all or none


def stage(output, *names):
    with staging(output) as folder:
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("new")


def test_a_move_that_fails_leaves_everything_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_text("old")
    plain, moved = os.replace, []

    def replace(source, target):
        if Path(target).name == "z.json":
            raise OSError(28, "No space left on device")
        moved.append(Path(target).name)
        plain(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="No space"):
        stage(tmp_path, "a.png", "sub/b.png", "z.json")
    assert {"a.png", "b.png"} <= set(moved), "some were moved before"
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.png", "old")]


@pytest.mark.parametrize("name", ["predictions.csv", "overlays"])
def test_what_is_in_the_way_is_seen_before_anything_is_moved(tmp_path, name):
    if name == "overlays":
        (tmp_path / name).write_text("a file")
    else:
        (tmp_path / name).mkdir()
    with pytest.raises(OSError, match=name):
        stage(tmp_path, "overlays/a.png", "predictions.csv")
    assert [path.name for path in tmp_path.iterdir()] == [name]


KILLED = """
import os, signal, sys
from pathlib import Path
from destseg_deploy import files

def write(folder):
    with files.staging(folder) as staged:
        (staged / "a.onnx").write_text("new graph")
        (staged / "a.json").write_text("new spec")

def counted(plain, last, seen):
    def call(*arguments, **named):
        seen.append(plain)
        if len(seen) == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*arguments, **named)
    return call

def child(folder, last, what):
    seen = []
    for name in ("replace", "link", "fsync", "unlink", "mkdir", "open", "rmdir", "scandir"):
        setattr(os, name, counted(getattr(os, name), last, seen))
    (write if what == "write" else files.sweep)(Path(folder))
    os._exit(0)

for line in sys.stdin:
    folder, last, what = line.split()
    if (pid := os.fork()) == 0:
        child(folder, int(last), what)
    print(os.waitpid(pid, 0)[1], flush=True)
"""
OLD = {"a.onnx": "old graph", "a.json": "old spec"}
NEW = {"a.onnx": "new graph", "a.json": "new spec"}


@pytest.fixture(scope="module")
def killed_at():
    """Run in another process that is killed at a call of the system; False if it was not."""
    command = [sys.executable, "-c", KILLED]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as server:

        def run(folder, step, what="write"):
            server.stdin.write(f"{folder} {step} {what}\n")
            server.stdin.flush()
            status = int(server.stdout.readline())
            assert status in (0, signal.SIGKILL)
            return status != 0

        yield run
        server.stdin.close()


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def pair(folder, before):
    folder.mkdir()
    for name, text in before.items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("before", [OLD, {}], ids=["replaced", "new"])
def test_killed_at_any_point_the_pair_is_old_or_new(tmp_path, before, killed_at):
    seen = []
    for step in range(1, 200):
        folder = pair(tmp_path / str(step), before)
        if not killed_at(folder, step):
            break
        mixed = contents(folder) not in (before, NEW)
        sweep(folder)
        assert contents(folder) in (before, NEW)
        assert sorted(os.listdir(folder)) == sorted(contents(folder)), "nothing hidden is left"
        seen.append(("mixed" if mixed else "whole", contents(folder) == NEW))
    assert ("mixed", False) in seen, "the kill between the two moves was not tried"
    assert {("whole", False), ("whole", True)} <= set(seen)
    assert len(seen) > 12


def test_killed_while_it_recovers_the_next_one_recovers(tmp_path, killed_at):
    def mixed(name):
        folder = pair(tmp_path / name, OLD)
        for step in range(1, 200):
            assert killed_at(folder, step)
            if contents(folder) not in (OLD, NEW):
                return folder
            sweep(folder)
        raise AssertionError

    for step in range(1, 50):
        folder = mixed(str(step))
        stopped = killed_at(folder, step, "recover")
        sweep(folder)
        assert contents(folder) == OLD
        assert sorted(os.listdir(folder)) == ["a.json", "a.onnx"]
        if not stopped:
            break
    assert step > 3


def test_recovery_leaves_a_file_that_the_user_has_changed_since(tmp_path, killed_at):
    folder = pair(tmp_path / "x", OLD)
    step = next(
        step
        for step in range(1, 200)
        if (killed_at(folder, step) and contents(folder) not in (OLD, NEW)) or sweep(folder)
    )
    assert step
    (folder / "a.onnx").unlink()
    (folder / "a.onnx").write_text("the user's")
    sweep(folder)
    assert contents(folder) == {"a.onnx": "the user's", "a.json": "old spec"}


# ---------------------------------------------------------------------------- room


def _left_by_a_killed_process(place):
    """A process number that is not in use, on this host."""
    host = temporary_name().split("-")[3]
    left = place / f".destseg-{2**22 + 1}-1-{host}-00000000"
    left.mkdir()
    (left / "graph.onnx").write_text("140 MB")
    return left


def test_what_a_killed_process_left_in_the_systems_folder_is_removed(tmp_path, monkeypatch):
    """Studies and benchmarks write graphs there."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = _left_by_a_killed_process(tmp_path)
    (tmp_path / "others").touch()
    with scratch() as folder:
        assert not left.exists()
        assert folder.parent == tmp_path
        (folder / "a").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["others"]


def test_a_journal_never_leads_out_of_its_folder(tmp_path):
    """Who may write to a folder could else delete any file of whoever runs a command there."""
    folder, mine = tmp_path / "out", tmp_path / "mine"
    folder.mkdir()
    mine.write_text("kept")
    left = _left_by_a_killed_process(folder)
    mark = [mine.stat().st_ino, mine.stat().st_mtime_ns]
    (left / ".journal").write_text(json.dumps([["../mine", mark], [str(mine), mark]]))
    sweep(folder)
    assert mine.read_text() == "kept"
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("text", ["[1]", "5", "[[1, 2, 3]]", '[["a", 5]]', "[" * 50_000, "\xff"])
def test_a_journal_that_is_none_restores_nothing(tmp_path, text):
    left = tmp_path / ".destseg-1-1-00000000-00000000"
    left.mkdir()
    (left / ".journal").write_bytes(text.encode("latin-1"))
    os.utime(left, (0, 0))  # of another host, and old
    (tmp_path / "a").write_text("kept")
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_without_room_is_refused_before_the_work(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    reserve(tmp_path, 1 << 20, "the states")
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutputError, match=r"the states cannot .* 2 MiB are needed \(No space left"):
        reserve(tmp_path, 2 << 20, "the states")
    assert list(tmp_path.iterdir()) == []


def test_others_files_are_not_replaced(tmp_path):
    path = tmp_path / "a.csv"
    refuse_others([path], lambda path: False)
    path.write_text("mine")
    refuse_others([path], lambda path: True)
    with pytest.raises(OutputError, match=r"a\.csv: exists and was not written by this command"):
        refuse_others([path], lambda path: False)


@pytest.mark.skipif(os.name == "nt", reason="named pipes are files on POSIX alone")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(OutputError, match="was not written by this command"):
        refuse_others([tmp_path / "a.json"], lambda path: bool(path.read_bytes()))
    with pytest.raises(OSError, match="not a file"):
        load_json(tmp_path / "a.json")
