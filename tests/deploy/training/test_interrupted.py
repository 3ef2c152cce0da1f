"""Nothing of a run is lost or mistaken: locks, full disks, signals, damaged states, threads."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from destseg_deploy import files as files_module
from destseg_deploy.errors import OutputError, TrainingError
from destseg_deploy.locks import locked
from destseg_deploy.spec import ModelSpec, Threshold
from destseg_deploy.thresholds import set_threshold
from destseg_deploy.training import checkpointing, loop, run
from destseg_deploy.training.precision import computing_with
from destseg_deploy.training.run import refuse_shared
from tests.deploy.training.cases import LONGER, ROOT, TINY, train_small
from tests.unchanged import unchanged


class Stop(Exception):
    """Ends a run where a test wants it interrupted."""


def interrupted(category: Path, output: Path, step: int = 14) -> Path:
    """Return the state of a run that stopped after a step."""

    def report(progress: Any) -> None:
        if progress.done == step:
            raise Stop

    with pytest.raises(Stop):
        train_small(category, output, LONGER, report=report, save_every=0)
    return output.with_suffix(".resume")


# ---------------------------------------------------------------------------- two runs


@pytest.mark.parametrize("restart", [False, True])
def test_a_second_run_is_refused_and_deletes_nothing(
    restart: bool, category: Path, tmp_path: Path
) -> None:
    output = tmp_path / "cable.safetensors"
    interrupted(category, output)
    refused = pytest.raises(OutputError, match=r"cable\.safetensors: process \d+ is writing it")
    with locked(output), unchanged(tmp_path), refused as caught:
        train_small(category, output, LONGER, restart=restart)
    assert "\n" not in str(caught.value)


def test_categories_of_one_name_are_refused() -> None:
    a, b = Path("out/cable.safetensors"), Path("out/screw.safetensors")
    refuse_shared([a, b])
    with pytest.raises(TrainingError, match=r"cable\.safetensors: several data sets of this name"):
        refuse_shared([a, b, a])


def test_a_checkpoint_of_another_folder_is_kept(category: Path, tmp_path: Path) -> None:
    output = tmp_path / "out/cable.safetensors"
    train_small(category, output)
    other = Path(shutil.copytree(category, tmp_path / "b/cable"))
    next((other / "train/good").iterdir()).unlink()
    refused = pytest.raises(TrainingError, match=rf"trained on {category}, and .*{other} would")
    with unchanged(output.parent), refused:
        train_small(other, output)
    train_small(other, output, restart=True)
    assert ModelSpec.read(output).training.data == str(other)


def test_a_threshold_that_is_lost_is_named(category: Path, tmp_path: Path) -> None:
    output, notes = tmp_path / "cable.safetensors", []
    train_small(category, output)
    set_threshold(output, Threshold(0.25, 0.5, "set by hand"))
    train_small(category, output, restart=True, notify=notes.append)
    assert f"{output}: will be replaced, with its threshold 0.250000 (set by hand)" in notes


@pytest.mark.parametrize("name", ["cable", "cable.onnx", "cable.resume"])
def test_a_checkpoint_has_its_suffix(name: str, category: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"expected a name that ends in \.safetensors"):
        train_small(category, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_users_own_table_is_kept(category: Path, tmp_path: Path) -> None:
    table = tmp_path / "cable-losses.csv"
    table.write_text("date,shift,rejects\n")
    with pytest.raises(OutputError, match=r"cable-losses\.csv: exists and was not written by"):
        train_small(category, tmp_path / "cable.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == [table.name]
    table.write_text("step,phase,loss\r\n1,de,0.5\r\n")  # of an earlier training
    train_small(category, tmp_path / "cable.safetensors")
    assert "0.5\r" not in table.read_bytes().decode()


# ---------------------------------------------------------------------------- full disks


def full(*arguments: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_found_before_the_training(
    category: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", full)
    refused = pytest.raises(OutputError, match=r"MiB are needed \(No space left on device\)")
    with refused, mock.patch.object(loop.Loop, "fit", side_effect=Stop):
        train_small(category, tmp_path / "new/cable.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_the_folder_is_found_before_the_training(
    category: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(OSError, match="out"), mock.patch.object(loop.Loop, "fit", side_effect=Stop):
        train_small(category, tmp_path / "out/cable.safetensors")


@pytest.mark.parametrize("step", [1, 12, 25])
def test_a_save_that_fails_is_one_line_and_leaves_the_state_before(
    step: int, category: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, plain, saved = tmp_path / "cable.safetensors", files_module._prepare, []

    def prepare(source: Path, target: Path, durable: bool) -> None:
        if target.suffix == ".resume":
            saved.append(target.read_bytes() if target.exists() else b"")
            if len(saved) == {1: 1, 12: 3, 25: 6}[step]:
                full()
        plain(source, target, durable)

    monkeypatch.setattr(files_module, "_prepare", prepare)
    expected = rf"cable\.resume: the state after step {step} cannot be saved \(No space"
    with pytest.raises(TrainingError, match=expected) as caught:
        train_small(category, output, LONGER, save_every=0)
    assert "\n" not in str(caught.value)
    left = [path.name for path in tmp_path.iterdir()]
    assert left == (["cable.resume"] if step > 1 else [])
    assert not left or output.with_suffix(".resume").read_bytes() == saved[-1]


def test_a_checkpoint_that_cannot_be_written_leaves_the_state(
    category: Path, tmp_path: Path
) -> None:
    output = tmp_path / "cable.safetensors"
    with (
        mock.patch.object(run, "save_checkpoint", side_effect=OSError(28, "No space left")),
        pytest.raises(TrainingError, match=r"No space left\)\. The trained state is in .*\.resume"),
    ):
        train_small(category, output)
    reports: list[Any] = []
    train_small(category, output, report=reports.append)
    assert reports == []
    assert output.is_file()


# ---------------------------------------------------------------------------- signals


RUNS = """
import sys
import time
from pathlib import Path
from unittest import mock
import click
from destseg_deploy.cli.console import OneLineErrors
from tests.deploy.training.cases import LONGER, train_small

def report(progress):
    print(progress.done, flush=True)
    while progress.done == 14:  # one long wait would not see a signal that came just before it
        time.sleep(0.05)

@click.command(cls=OneLineErrors)
def command():
    paths = map(Path, sys.argv[1:])
    train_small(*paths, LONGER, save_every=0, report=report)

command.main(args=[])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_training_quietly(
    number: signal.Signals, category: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out/cable.safetensors"
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", RUNS, str(category), str(output)]
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        while process.stdout.readline() != "14\n":
            assert process.poll() is None
        process.send_signal(number)
        process.wait(timeout=120)
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 128 + number
    assert [path.name for path in output.parent.iterdir()] == ["cable.resume"]


# ---------------------------------------------------------------------------- damaged states


def flipped(seed: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        chance = random.Random(seed)
        # Half of them in the header, where the names, the step and the options are.
        end = 8 + int.from_bytes(content[:8], "little") if seed % 2 else len(content)
        content[chance.randrange(end)] ^= 1 << chance.randrange(8)
        path.write_bytes(content)

    return damage


def rewritten(change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            notes = dict(file.metadata())
        tensors = load_file(path)
        change(notes, tensors)
        save_file(tensors, path, notes)

    return damage


DAMAGE = [
    *map(flipped, range(40)),
    lambda path: path.write_bytes(path.read_bytes()[:-1]),
    lambda path: path.write_bytes(path.read_bytes() + b" "),
    lambda path: path.write_bytes(b"\xff" * 100),
    lambda path: (path.unlink(), path.mkdir()),
    rewritten(lambda notes, tensors: notes.update(step="3")),
    rewritten(lambda notes, tensors: notes.update(step="1e400")),
    rewritten(lambda notes, tensors: notes.update(scaler="[" * 100_000)),
    rewritten(lambda notes, tensors: notes.update(seconds="null")),
    rewritten(lambda notes, tensors: notes.update(identity="[]")),
    rewritten(lambda notes, tensors: notes.pop("digest")),
    rewritten(lambda notes, tensors: notes.pop("threads")),
    rewritten(lambda notes, tensors: tensors.pop("momentum.0000")),
    rewritten(lambda notes, tensors: tensors.update(losses=torch.zeros(25, 2))),
    rewritten(lambda notes, tensors: tensors.update(losses=torch.zeros(25, dtype=torch.int8))),
    rewritten(lambda notes, tensors: tensors.update({"momentum.0000": torch.zeros(3)})),
]


@pytest.fixture(scope="module")
def stopped(category: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A saved state, and the checkpoint that an undisturbed run makes."""
    folder = tmp_path_factory.mktemp("stopped")
    train_small(category, folder / "whole.safetensors", LONGER)
    state = interrupted(category, folder / "cable.safetensors")
    return state, (folder / "whole.safetensors").read_bytes()


@pytest.mark.parametrize("number", range(len(DAMAGE)))
def test_a_damaged_state_is_refused_or_harmless(
    number: int, stopped: tuple[Path, bytes], category: Path, tmp_path: Path
) -> None:
    state, whole = stopped
    output = tmp_path / "cable.safetensors"
    shutil.copy(state, output.with_suffix(".resume"))
    DAMAGE[number](output.with_suffix(".resume"))
    refusal = refused(category, output)
    assert output.is_file() == (refusal is None)
    assert output.read_bytes() == whole if refusal is None else "--restart" in refusal
    assert "\n" not in (refusal or "")


def refused(category: Path, output: Path) -> str | None:
    """Return why a run is refused; None if it came to its end."""
    try:
        train_small(category, output, LONGER)
    except TrainingError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"step": 26}, "its step is 26, expected 0 to 25"),
        ({"step": True}, "its step is True"),
        ({"step": 20}, "it lacks losses"),
        ({"threads": 0}, "its threads are 0"),
        ({"seconds": -1.0}, r"its seconds are -1\.0"),
        ({"weights": {}}, "it has no weights"),
        ({"weights": {"a": torch.zeros(2)}}, "the weights differ"),
        ({"momentum": [torch.zeros(2)]}, "the momenta differ"),
        ({"scaler": {"scale": 1.0}}, "the scale of fp16 differ"),
    ],
)
def test_a_whole_state_that_contradicts_itself_is_refused(
    change: dict[str, Any], words: str, stopped: tuple[Path, bytes], category: Path, tmp_path: Path
) -> None:
    """With a digest that fits, as only a fault of ours could write it."""
    output = tmp_path / "cable.safetensors"
    shutil.copy(stopped[0], output.with_suffix(".resume"))
    plain = checkpointing.RunFiles.read_state

    def changed(files: checkpointing.RunFiles) -> Any:
        state = plain(files)
        if state is not None:
            for name, value in change.items():
                setattr(state, name, value)
            files.write_state(state)
        return plain(files)

    with mock.patch.object(checkpointing.RunFiles, "read_state", changed):
        with pytest.raises(TrainingError, match=words):
            train_small(category, output, LONGER)


# ---------------------------------------------------------------------------- threads


def test_the_threshold_is_measured_with_the_threads_of_the_training(
    category: Path, tmp_path: Path
) -> None:
    """Another number changes the last bits of scores, and so the threshold."""
    counts: list[int] = []
    measure = run.measure_normal

    def noted(*given: Any) -> Threshold:
        counts.append(torch.get_num_threads())
        return measure(*given)

    output = tmp_path / "cable.safetensors"
    with computing_with(2):
        interrupted(category, output)
    with mock.patch.object(run, "measure_normal", noted):
        train_small(category, output, LONGER, threads=1)
    assert counts == [2]


def test_a_continued_run_takes_the_threads_it_began_with(category: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    outputs = [tmp_path / f"{name}/cable.safetensors" for name in "ab"]
    try:
        torch.set_num_threads(2)
        train_small(category, outputs[0], LONGER)
        interrupted(category, outputs[1])
        torch.set_num_threads(1)
        train_small(category, outputs[1], LONGER)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_the_state_says_what_made_it(stopped: tuple[Path, bytes]) -> None:
    with safe_open(stopped[0], framework="pt") as file:
        notes = file.metadata()
    assert json.loads(notes["threads"]) >= 1
    assert len(notes["digest"]) == 64
    assert TINY.steps < LONGER.steps
