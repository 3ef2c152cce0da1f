"""What a run leaves to look at: the table of losses, and TensorBoard's log read back."""

from __future__ import annotations

import csv
import io
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from destseg_deploy.errors import BackendError, TrainingError
from destseg_deploy.training.checkpointing import RunState, write_losses
from destseg_deploy.training.logs import TensorBoardLog
from destseg_deploy.training.loop import StepReport
from tests.deploy.training.cases import (
    LONGER,
    TINY,
    equal,
    fit,
    killed,
    make_loop,
    make_net,
    noise,
    snapshot,
    train_small,
)

pytest.importorskip("tensorboard")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

STUDENT, SEGMENTATION = list(range(1, 13)), list(range(13, 26))


def read_log(folder: Path) -> Any:
    """Return all that a folder's logs hold, as TensorBoard shows it."""
    log = EventAccumulator(str(folder), {"scalars": 0, "images": 0})
    log.Reload()
    return log


def steps(log: Any, name: str) -> list[int]:
    return [event.step for event in log.Scalars(name)]


# ---------------------------------------------------------------------------- the table


def test_the_table_holds_every_loss(tmp_path: Path) -> None:
    recipe = replace(TINY, segmentation_steps=3)
    losses = np.array([3.25, 2.0 / 3, 0.5, 1e-5, 0.125], np.float32)
    write_losses(tmp_path / "new/cable-seed1.safetensors", recipe, losses)
    path = tmp_path / "new/cable-seed1-losses.csv"
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["step", "phase", "loss"]
    assert [(row[0], row[1]) for row in rows] == [
        ("1", "student"),
        ("2", "student"),
        ("3", "segmentation"),
        ("4", "segmentation"),
        ("5", "segmentation"),
    ]
    assert [float(row[2]) for row in rows] == pytest.approx(losses.tolist(), rel=1e-5)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


# ---------------------------------------------------------------------------- the log


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, RunState, Any]:
    """The log of a run, its losses and its networks."""
    folder = tmp_path_factory.mktemp("log")
    net = make_net()
    with TensorBoardLog(folder) as log:
        state = fit(net, replace(LONGER, decay="cosine"), log=log)
    return read_log(folder), state, net


def test_every_loss_is_logged(logged: tuple[Any, RunState, Any]) -> None:
    log, state, _ = logged
    assert steps(log, "loss/student") == STUDENT
    assert steps(log, "loss/segmentation") == SEGMENTATION
    events = [*log.Scalars("loss/student"), *log.Scalars("loss/segmentation")]
    assert np.array_equal(np.array([e.value for e in events], np.float32), state.losses)


def test_rates_and_speed_are_logged(logged: tuple[Any, RunState, Any]) -> None:
    log = logged[0]
    for name, rate, first, length, at in (
        ("student", 0.4, 1, 12, [1, 11, 12]),
        ("res", 0.1, 13, 13, [13, 23, 25]),
        ("head", 0.01, 13, 13, [13, 23, 25]),
    ):
        expected = [rate * (1 + math.cos(math.pi * (step - first) / length)) / 2 for step in at]
        assert steps(log, f"rate/{name}") == at
        assert [e.value for e in log.Scalars(f"rate/{name}")] == pytest.approx(expected, rel=1e-5)
    assert steps(log, "speed/steps_per_second") == [1, 11, 12, 13, 23, 25]
    assert all(e.value > 0 for e in log.Scalars("speed/steps_per_second"))


def test_pictures_show_the_batch_and_what_is_found(logged: tuple[Any, RunState, Any]) -> None:
    """At first and as phases end; columns: corrupted, clean, mask, segmentation."""
    log, _, net = logged
    pictures = log.Images("samples")
    assert [picture.step for picture in pictures] == [1, 12, 25]
    for picture in pictures:
        shown = np.asarray(Image.open(io.BytesIO(picture.encoded_image_string)), float)
        assert shown.shape == (2 * 64, 4 * 64, 3)
        image, clean, mask = next(noise(picture.step - 1, picture.step))
        for column, part in enumerate((image, clean, mask.expand(-1, 3, -1, -1) * 255)):
            wanted = torch.cat(list(part), dim=1).permute(1, 2, 0).numpy()
            assert np.abs(shown[:, column * 64 : column * 64 + 64] - wanted).max() <= 1
        found = shown[:, 192:]
        assert (found == found[..., :1]).all()
    image, _, _ = next(noise(24, 25))
    loop = make_loop(net, LONGER)
    with torch.no_grad():
        segmentation = net(loop._pixels(image))[0].repeat_interleave(4, 2).repeat_interleave(4, 3)
    wanted = torch.cat(list(segmentation), dim=1)[0].numpy() * 255
    assert np.abs(found[..., 0] - wanted).max() <= 1
    assert wanted.std() > 1


def test_pictures_are_few(tmp_path: Path) -> None:
    batch = next(noise(0, 1))
    many = [part.repeat(4, 1, 1, 1) for part in batch]
    with TensorBoardLog(tmp_path) as log:
        assert log.wants_pictures(1, last=False)
        log.write_pictures(1, batch, torch.zeros(2, 1, 16, 16))
        assert not log.wants_pictures(200, last=False)
        assert log.wants_pictures(201, last=False)
        assert log.wants_pictures(2, last=True)
        log.write_pictures(2, tuple(many), torch.zeros(8, 1, 16, 16))
    assert [p.height for p in read_log(tmp_path).Images("samples")] == [2 * 64, 6 * 64]


@pytest.mark.parametrize(
    ("precision", "literal"), [("fp32", False), ("bf16", False), ("fp16", False), ("fp32", True)]
)
def test_a_log_changes_no_bit(precision: str, literal: bool, tmp_path: Path) -> None:
    nets = [make_net(), make_net()]
    plain = fit(nets[0], LONGER, precision, literal=literal)
    with TensorBoardLog(tmp_path) as log:
        logged = fit(nets[1], LONGER, precision, literal=literal, log=log)
    assert equal(snapshot(nets[0]), snapshot(nets[1]))
    assert np.array_equal(plain.losses, logged.losses)


def test_a_log_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard's own error is "No space left on device", of no file."""
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match=r"file/log: TensorBoard's log cannot be written"):
        TensorBoardLog(tmp_path / "file/log")
    log, full = TensorBoardLog(tmp_path / "log"), OSError(28, "No space left on device")
    monkeypatch.setattr(log._writer, "close", lambda: (_ for _ in ()).throw(full))
    with pytest.raises(TrainingError, match=r"/log: TensorBoard's .*\(No space left on device\)"):
        log.__exit__(None, None, None)
    log.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)  # the first error is the one


# ---------------------------------------------------------------------------- interruptions


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out/cable.safetensors"


def await_next_second() -> None:
    """Logs are read in the order of their names, which tell times apart by seconds."""
    time.sleep(1.01 - time.time() % 1)


def complete(folder: Path) -> bool:
    """Tell whether the log has each step once."""
    log = read_log(folder / "cable")
    rates = steps(log, "rate/student") + steps(log, "rate/res")
    assert rates == [1, 11, 12, 13, 23, 25]
    pictures = [picture.step for picture in log.Images("samples")]
    assert pictures == sorted(set(pictures))
    return steps(log, "loss/student") == STUDENT and steps(log, "loss/segmentation") == SEGMENTATION


def test_the_log_of_a_killed_run_goes_on_without_gap_or_repetition(
    category: Path, output: Path, tmp_path: Path
) -> None:
    killed(category, output, "step 24", str(tmp_path / "log"))
    await_next_second()
    train_small(category, output, LONGER, tensorboard=tmp_path / "log")
    assert complete(tmp_path / "log")


@pytest.mark.parametrize("save_every", [0.0, 1e9])
def test_the_log_of_an_interrupted_run_goes_on(
    save_every: float, category: Path, output: Path, tmp_path: Path
) -> None:
    """With the last read in the log and in the state, or in the log alone."""

    def report(progress: StepReport) -> None:
        if progress.done == 11:
            raise KeyboardInterrupt

    how: dict[str, Any] = {"tensorboard": tmp_path / "log", "save_every": save_every}
    with pytest.raises(KeyboardInterrupt):
        train_small(category, output, LONGER, report=report, **how)
    assert steps(read_log(tmp_path / "log/cable"), "loss/student") == STUDENT[:11]
    await_next_second()
    train_small(category, output, LONGER, **how)
    assert complete(tmp_path / "log")


def test_a_run_that_is_begun_anew_has_the_log_for_itself(
    category: Path, output: Path, tmp_path: Path
) -> None:
    for seed in (0, 1):
        await_next_second()
        recipe = replace(LONGER, seed=seed)
        spec = train_small(category, output, recipe, tensorboard=tmp_path / "log", restart=True)
    assert complete(tmp_path / "log")
    last = read_log(tmp_path / "log/cable").Scalars("loss/student")[-1].value
    assert last == spec.training.losses["student"]


def test_without_tensorboard_a_run_does_not_begin(
    category: Path, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    expected = r"TensorBoard is not installed\. Install it with pip install 'destseg-deploy\["
    with pytest.raises(BackendError, match=expected) as caught:
        train_small(category, output, tensorboard=tmp_path / "log")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    train_small(category, output)
