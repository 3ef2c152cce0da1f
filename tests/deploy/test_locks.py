"""One output, one writer; what an ended process left is taken over or removed."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from destseg_deploy.errors import OutputError
from destseg_deploy.files import replacing, staging, sweep
from destseg_deploy.locks import Owner, locked, owner_of, temporary_name

ROOT = Path(__file__).resolve().parents[2]


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a process that runs some lines of Python in the repository."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


HOLDS = """
import sys
from pathlib import Path
from destseg_deploy.files import staging
from destseg_deploy.locks import locked
target = Path(sys.argv[1])
with locked(target), staging(target.parent) as folder:
    (folder / "half").write_text("half")
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of ``a.onnx`` and has begun to write."""
    process = python(HOLDS, tmp_path / "a.onnx")
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_this_process_is_not_gone():
    assert not Owner.current().gone
    assert owner_of(temporary_name(".onnx")) == Owner.current()
    assert owner_of(".destseg-notours") is None


def test_a_process_number_that_is_used_again_is_another_process():
    now = Owner.current()
    assert Owner(now.pid, now.start + 1, now.host).gone
    assert not Owner(now.pid, now.start + 1, "00000000").gone, "another host's cannot be asked"


def test_an_ended_process_is_gone_also_before_it_is_collected():
    process = subprocess.Popen([sys.executable, "-c", ""])
    pid = process.pid
    start = Owner.current().start
    deadline = time.monotonic() + 10
    while not Owner(pid, start, Owner.current().host).gone and time.monotonic() < deadline:
        time.sleep(0.01)
    assert Owner(pid, start, Owner.current().host).gone
    process.wait()


def test_a_second_writer_is_refused_in_one_line_and_the_first_goes_on(holder, tmp_path):
    message = rf"a\.onnx: process {holder.pid} is writing it\. Wait for .* delete .*\.a\.onnx\.lock"
    with pytest.raises(OutputError, match=message) as caught, locked(tmp_path / "a.onnx"):
        pytest.fail("both write")
    assert "\n" not in str(caught.value)
    with locked(tmp_path / "b.onnx"):  # another output of the same folder
        sweep(tmp_path)
    holder.communicate("")
    assert [path.name for path in tmp_path.iterdir()] == ["half"]


def test_a_link_has_the_lock_of_its_target(holder, tmp_path):
    (tmp_path / "b.onnx").symlink_to("a.onnx")
    with pytest.raises(OutputError), locked(tmp_path / "b.onnx"):
        pytest.fail("both write")


def test_two_threads_of_one_process_are_two_writers(tmp_path):
    with (
        locked(tmp_path / "a"),
        pytest.raises(OutputError, match=f"process {os.getpid()}"),
        locked(tmp_path / "a"),
    ):
        pytest.fail("both write")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", [locked, replacing, staging])
def test_what_a_killed_process_left_is_taken_over_and_removed(holder, where, tmp_path):
    holder.kill()
    holder.wait()
    left = {path.name[:9] for path in tmp_path.iterdir()}
    assert left == {".a.onnx.l", ".destseg-"}
    with locked(tmp_path / "a.onnx"), replacing(tmp_path / "a.onnx") as temporary:
        temporary.write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


def test_an_empty_lock_is_taken_over(tmp_path):
    """Its process was killed before it wrote its name."""
    (tmp_path / ".a.lock").touch()
    with locked(tmp_path / "a"):
        assert owner_of((tmp_path / ".a.lock").read_text()) == Owner.current()


def test_a_damaged_lock_is_taken_over(tmp_path):
    (tmp_path / ".a.lock").write_bytes(b"\xff\xfe\x00" * 50)
    with locked(tmp_path / "a"):
        assert owner_of((tmp_path / ".a.lock").read_text()) == Owner.current()


def test_on_a_full_disk_no_lock_is_left_and_the_folder_is_named(tmp_path):
    resource = pytest.importorskip("resource", reason="Windows has no limits of this kind")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))  # a file may be made, not written
    try:
        with pytest.raises(OutputError, match=f"^{tmp_path}: cannot be written"):
            with locked(tmp_path / "a"):
                pytest.fail("held without a lock")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_of_another_host_is_left_alone_and_named(tmp_path):
    lock = tmp_path / ".a.lock"
    lock.write_text(".destseg-1-1-00000000-\nline4\n")
    with pytest.raises(OutputError, match=r"process 1 on line4 \(not this computer\)"):
        with locked(tmp_path / "a"):
            pytest.fail("both write")
    assert lock.exists()


def test_another_hosts_temporary_files_are_removed_when_they_are_old(tmp_path):
    kept, old = (tmp_path / f".destseg-1-1-00000000-{name}" for name in "ab")
    kept.touch()
    old.touch()
    os.utime(old, (0, 0))
    (tmp_path / ".other").touch()
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {kept.name, ".other"}


def test_of_many_that_start_at_once_over_a_stale_lock_one_holds_it(tmp_path):
    (tmp_path / ".a.lock").write_text(f".destseg-999999-1-{Owner.current().host}-\n")
    code = """
        import sys
        from pathlib import Path
        from destseg_deploy.errors import OutputError
        from destseg_deploy.locks import locked
        sys.stdin.readline()
        try:
            with locked(Path(sys.argv[1])):
                print("held", flush=True)
                sys.stdin.read()
        except OutputError:
            print("refused", flush=True)
    """
    runs = [python(code, tmp_path / "a") for _ in range(6)]
    for run in runs:
        run.stdin.write("go\n")
        run.stdin.flush()
    answers = [run.stdout.readline() for run in runs]
    for run in runs:
        run.communicate()
    assert sorted(answers) == ["held\n"] + ["refused\n"] * 5
