"""The slices of ``make test`` get a core each, and run without one where there is none to get."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "on_a_core.sh"
CORES = "import os; print(*sorted(os.sched_getaffinity(0)), flush=True); input()"
"""Print the cores that this process may use, and wait for a line."""


def start(folder: Path, **options) -> subprocess.Popen[str]:
    command = ["/bin/sh", str(SCRIPT), str(folder), sys.executable, "-c", CORES]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, **options)


def cores(process: subprocess.Popen[str]) -> set[int]:
    assert process.stdout is not None
    return set(map(int, process.stdout.readline().split()))


@pytest.fixture
def allowed() -> set[int]:
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("a process cannot be bound to cores here")
    return os.sched_getaffinity(0)


def test_each_command_has_a_core_until_it_ends(allowed, tmp_path):
    for tool in ("taskset", "flock"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    commands = [start(tmp_path) for _ in range(len(allowed))]
    found = [cores(command) for command in commands]
    assert {len(one) for one in found} == {1}
    assert set.union(*found) == allowed
    late = start(tmp_path)
    assert cores(late) == allowed, "none was free"
    commands[-1].communicate("\n")
    again = start(tmp_path)
    assert cores(again) == found[-1]
    for command in (*commands[:-1], late, again):
        command.communicate("\n")
        assert command.returncode == 0


def test_without_taskset_a_command_runs_on_all_of_them(allowed, tmp_path):
    process = start(tmp_path, env={"PATH": str(tmp_path)})
    assert cores(process) == allowed
    process.communicate("\n")
    assert process.returncode == 0
    assert list(tmp_path.iterdir()) == []
