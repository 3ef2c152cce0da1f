"""A whole run: what it writes, that it is repeatable, and that it is not repeated in vain."""

from __future__ import annotations

import copy
import csv
import math
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from destseg_deploy.data.images import read_image
from destseg_deploy.data.mvtec import list_train
from destseg_deploy.data.seen import seen_in_training
from destseg_deploy.errors import BackendError, DataError, DestsegError, TrainingError, WeightsError
from destseg_deploy.models.destseg import DeSTSeg, Teacher
from destseg_deploy.models.weights import fit_statistics, load_checkpoint, load_teacher
from destseg_deploy.predictor import Predictor
from destseg_deploy.runtime.torch_runtime import PyTorchRuntime
from destseg_deploy.spec import ModelSpec
from destseg_deploy.training import loop, run, setup
from destseg_deploy.training.batches import TextureBank
from destseg_deploy.training.checkpointing import RunFiles
from destseg_deploy.training.loop import StepReport
from destseg_deploy.training.recipe import Recipe
from destseg_deploy.training.run import checkpoint_path, train
from destseg_deploy.training.setup import open_bank
from tests.deploy.training.cases import (
    CPU,
    LONGER,
    TINY,
    GivenLosses,
    State,
    equal,
    furthest,
    part,
    small_options,
    snapshot,
    train_small,
)
from tests.unchanged import unchanged


@dataclass
class Trained:
    """What a run of the real networks left, and what they were after it."""

    path: Path
    spec: ModelSpec
    after: State
    reports: list[StepReport] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def trained(category: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    """A whole run, written to disk, with a teacher's file."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(3)
    teacher = Teacher()
    fit_statistics(teacher, torch.randn(8, 3, 64, 64))
    save_file(teacher.encoder.state_dict(), folder / "teacher.safetensors")
    nets: list[DeSTSeg] = []

    def build() -> DeSTSeg:
        nets.append(DeSTSeg())
        return nets[0]

    left = Trained(folder / "new/cable.safetensors", mock.Mock(), {})
    with mock.patch.object(setup, "DeSTSeg", build):
        left.spec = train(
            category,
            left.path,
            TINY,
            small_options(teacher="imagenet", teacher_weights=folder / "teacher.safetensors"),
            report=left.reports.append,
            notify=left.notes.append,
        )
    left.after = snapshot(nets[0])
    yield left
    shutil.rmtree(folder)  # 150 MB


# ---------------------------------------------------------------------------- what is written


def test_the_checkpoint_is_what_was_trained(trained: Trained) -> None:
    model, spec = load_checkpoint(trained.path)
    assert equal(snapshot(model), trained.after)
    assert spec == trained.spec
    assert (spec.category, spec.size, spec.precision) == ("cable", (64, 64), "fp32")
    assert {path.name for path in trained.path.parent.iterdir()} == {
        "cable.safetensors",
        "cable.json",
        "cable-losses.csv",
    }


def test_the_teacher_is_the_files(trained: Trained) -> None:
    teacher = Teacher()
    load_teacher(teacher, trained.path.parents[1] / "teacher.safetensors")
    expected = {f"teacher_net.{name}": tensor for name, tensor in teacher.state_dict().items()}
    assert equal(part(trained.after, "teacher_net"), expected)
    assert trained.spec.teacher.file == "teacher.safetensors"


def test_the_spec_says_how_it_was_trained(trained: Trained, category: Path) -> None:
    record = trained.spec.training
    assert Recipe(**record.recipe) == TINY
    assert record.data == str(category)
    assert record.images == 4
    assert len(record.held_out) == 2
    assert record.textures == "procedural"
    assert (record.device, record.precision, record.loop) == ("cpu", "fp32", "lean")
    assert record.seconds > 0
    assert record.losses == {
        "student": trained.reports[1].loss,
        "segmentation": trained.reports[3].loss,
    }


def test_the_table_holds_the_losses(trained: Trained) -> None:
    with trained.path.with_name("cable-losses.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert [row["phase"] for row in rows] == ["student"] * 2 + ["segmentation"] * 2
    losses = [float(row["loss"]) for row in rows]
    assert [losses[i] for i in (0, 1, 3)] == pytest.approx(
        [trained.reports[i].loss for i in (0, 1, 3)], rel=1e-5
    )


def test_a_run_without_textures_says_so(trained: Trained, category: Path, tmp_path: Path) -> None:
    assert trained.notes[0] == f"{trained.path}: {run.NO_TEXTURES}"
    assert len(trained.notes) == 4
    assert "rotation of the good parts: slight (--rotation changes it)" in trained.notes[1]
    assert "2 good images can guarantee a false-reject rate of 33.4 %; 1 %" in trained.notes[2]
    assert "scoring 2 held-out images to set the threshold" in trained.notes[3]
    notes: list[str] = []
    output = tmp_path / "cable.safetensors"
    train_small(category, output, textures=category / "test", notify=notes.append)
    rotation, *holdout = (note.partition(": ")[2] for note in trained.notes[1:])
    expected = [rotation, run.RANDOM_TEACHER, *holdout]  # the other one's teacher is from a file
    assert [note.partition(": ")[2] for note in notes] == expected


# ---------------------------------------------------------------------------- the threshold


def test_a_holdout_gives_a_threshold(trained: Trained) -> None:
    threshold = trained.spec.threshold
    assert threshold is not None
    assert threshold.images == 2
    assert "2 good images" in threshold.rule


def test_the_spec_names_its_images_for_commands_in_other_folders(
    category: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path was that of the command line, so that no command elsewhere found the images."""
    monkeypatch.chdir(category.parent)
    spec = train_small(Path(category.name), tmp_path / "cable.safetensors")
    assert spec.training.data == str(category)
    monkeypatch.chdir(tmp_path)
    every = list_train(category)
    trained_on = [path for path in every if path.name not in spec.training.held_out]
    assert seen_in_training(spec.training, every) == trained_on


def test_the_threshold_comes_from_the_images_held_out(
    model: DeSTSeg, category: Path, tmp_path: Path
) -> None:
    """Scored by a model that tells images apart, as four steps of training do not."""
    net = copy.deepcopy(model)
    with (
        mock.patch.object(setup, "DeSTSeg", return_value=net),
        mock.patch.object(setup, "fit_statistics"),
        mock.patch.object(loop.Loop, "fit"),
        mock.patch.object(run, "save_checkpoint", lambda model, spec, path: spec),
    ):
        spec = train(
            category,
            tmp_path / "cable.safetensors",
            replace(TINY, holdout=0.5),
            small_options(false_reject_rate=0.5),
        )
    held_out = [p for p in list_train(category) if p.name in spec.training.held_out]
    frames = [read_image(path) for path in held_out]
    prediction = Predictor(PyTorchRuntime(copy.deepcopy(model), spec))(frames)
    assert len(set(prediction.score.tolist())) == 3
    assert spec.threshold is not None
    assert spec.threshold.score == pytest.approx(sorted(prediction.score)[1], abs=2e-4)
    peaks = prediction.anomaly_map.max(axis=(1, 2))
    assert spec.threshold.pixel == pytest.approx(sorted(peaks)[1], abs=2e-4)
    assert np.diff(sorted(prediction.score)).min() > 1e-3


# ---------------------------------------------------------------------------- repeatable


def test_the_same_seed_gives_the_same_bits(category: Path, tmp_path: Path) -> None:
    """However many threads decode textures ahead."""
    outputs = [tmp_path / f"{workers}/cable.safetensors" for workers in (0, 2)]
    specs = [
        train_small(category, output, LONGER, workers=workers)
        for workers, output in enumerate(outputs)
    ]
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    assert specs[0].training.losses == specs[1].training.losses
    assert specs[0].threshold == specs[1].threshold


def test_another_seed_gives_another_model(category: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / f"{seed}/cable.safetensors" for seed in (0, 1)]
    for seed, output in enumerate(outputs):
        train_small(category, output, replace(TINY, seed=seed))
    first, other = (load_file(output) for output in outputs)
    for name in ("student_net", "segmentation_net"):
        assert furthest(part(first, name), part(other, name)) > 0.01


def test_lean_and_literal_runs_have_the_same_losses(category: Path, tmp_path: Path) -> None:
    """Samples within rounding and sums in another order: not the same bits."""
    lean, literal, other = (
        train_small(category, tmp_path / f"{name}/cable.safetensors", recipe, literal=name == "b")
        for name, recipe in (("a", TINY), ("b", TINY), ("c", replace(TINY, seed=1)))
    )
    assert [spec.training.loop for spec in (lean, literal)] == ["lean", "literal"]
    losses, expected, wrong = (list(s.training.losses.values()) for s in (lean, literal, other))
    assert losses == pytest.approx(expected, rel=0.005)
    assert losses != pytest.approx(wrong, rel=0.005)


# ---------------------------------------------------------------------------- once is enough


class Trains(Exception):
    """Raised where a run would begin to train."""


@pytest.fixture
def done(category: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the category and the checkpoint of a finished run."""
    copied = Path(shutil.copytree(category, tmp_path / "data/cable"))
    output = tmp_path / "out/cable.safetensors"
    train_small(copied, output)
    return copied, output


def trains(category: Path, output: Path, *arguments: Any, **options: Any) -> bool:
    """Tell whether a call would train; if not, it has to say so and to touch nothing."""
    notes: list[str] = []
    with mock.patch.object(loop.Loop, "fit", side_effect=Trains), unchanged(output.parent):
        try:
            spec = train_small(category, output, *arguments, notify=notes.append, **options)
        except Trains:
            return True
    expected = f"{output}: trained with these options before; --restart trains it again"
    assert notes == [expected]
    assert spec == ModelSpec.read(output)
    return False


def test_a_finished_run_is_not_repeated(done: tuple[Path, Path], tmp_path: Path) -> None:
    category, output = done
    assert not trains(category, output)
    assert not trains(category, output, workers=2, save_every=5.0, tensorboard=tmp_path / "log")
    moved = category.rename(tmp_path / "data/moved")
    assert not trains(moved, output)


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        (TINY, {"restart": True}),
        (replace(TINY, seed=1), {}),
        (replace(TINY, segmentation_steps=3), {}),
        (replace(TINY, head_lr=0.5), {}),
        (TINY, {"precision": "bf16"}),
        (TINY, {"literal": True}),
        (TINY, {"false_reject_rate": 0.5}),
    ],
)
def test_a_run_with_other_options_is_done(
    recipe: Recipe, options: dict[str, Any], done: tuple[Path, Path]
) -> None:
    assert trains(*done, recipe, **options)
    assert not trains(*done)


@pytest.mark.parametrize("number", [0, 1])
def test_a_run_on_other_images_is_done(number: int, done: tuple[Path, Path]) -> None:
    """The first is trained on, the second is held out."""
    category, _ = done
    path = list_train(category)[number]
    image = cv2.imread(str(path))
    image[5, 5] ^= 1
    assert cv2.imwrite(str(path), image)
    assert trains(*done)


@pytest.mark.parametrize(
    "damage",
    [
        lambda output: output.unlink(),
        lambda output: output.with_suffix(".json").unlink(),
        lambda output: output.write_bytes(output.read_bytes()[:-1]),
        lambda output: output.with_suffix(".json").write_text("{"),
    ],
    ids=["no checkpoint", "no spec", "short", "damaged spec"],
)
def test_a_damaged_result_is_made_again(damage: Any, done: tuple[Path, Path]) -> None:
    _, output = done
    damage(output)
    assert trains(*done)


def test_a_repeated_run_replaces_the_result(done: tuple[Path, Path]) -> None:
    category, output = done
    before = output.read_bytes()
    train_small(category, output, restart=True)
    assert output.read_bytes() == before
    train_small(category, output, replace(TINY, seed=1))
    assert output.read_bytes() != before
    assert len(list(output.parent.iterdir())) == 3


def test_a_state_left_beside_a_finished_run_is_cleared(done: tuple[Path, Path]) -> None:
    """A run may be killed after its checkpoint was written and before its state was deleted."""
    category, output = done
    output.unlink()
    with mock.patch.object(RunFiles, "remove_state", side_effect=Trains), pytest.raises(Trains):
        train_small(category, output)
    assert output.is_file()
    assert output.with_suffix(".resume").is_file()
    train_small(category, output, report=lambda progress: pytest.fail("it trains"))
    assert not output.with_suffix(".resume").exists()


def test_another_runs_state_is_left_beside_a_finished_run(done: tuple[Path, Path]) -> None:
    category, output = done
    with mock.patch.object(run, "save_checkpoint", side_effect=Trains), pytest.raises(Trains):
        train_small(category, output, replace(TINY, seed=1))
    assert output.with_suffix(".resume").is_file()
    assert not trains(category, output)  # and nothing is touched


# ---------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"device": "cuda"}, BackendError, "device 'cuda': this PyTorch .* sees no CUDA GPU"),
        ({"precision": "int8"}, TrainingError, "precision 'int8': expected auto or fp32"),
        ({"false_reject_rate": 0.0}, TrainingError, r"false_reject_rate is 0\.0, expected between"),
        ({"false_reject_rate": 1.0}, TrainingError, r"false_reject_rate is 1\.0, expected between"),
        ({"textures": Path("gone")}, DataError, "gone: no texture images"),
        ({"teacher_weights": Path("gone.pth")}, WeightsError, r"gone\.pth: no such file"),
        ({"teacher": "imagenet22k"}, TrainingError, "teacher 'imagenet22k': expected imagenet or"),
        ({"literal": True, "precision": "bf16"}, TrainingError, "bf16, expected fp32 with literal"),
    ],
)
def test_wrong_options_are_refused_before_training(
    options: dict[str, Any],
    error: type[DestsegError],
    message: str,
    category: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    how = {"teacher": "imagenet" if "teacher_weights" in options else "random", **options}
    refused = pytest.raises(error, match=message)
    with mock.patch.object(loop.Loop, "fit", side_effect=Trains), refused as caught:
        train_small(category, tmp_path / "out/cable.safetensors", **how)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("bad", "left"), [(1, set()), (11, {1}), (13, {12}), (24, {23})])
def test_a_loss_that_is_not_finite_leaves_the_state_before_it_alone(
    bad: int, left: set[int], category: Path, tmp_path: Path
) -> None:
    losses = [1.0] * 25
    losses[bad - 1] = math.nan
    output = tmp_path / "out/cable.safetensors"
    refused = pytest.raises(TrainingError, match=r"loss is nan at step \d+\. No checkpoint was")
    with mock.patch.object(setup, "LeanSteps", return_value=GivenLosses(losses)), refused:
        train_small(category, output, LONGER, save_every=0)
    if not left:
        assert not output.parent.exists()
        return
    assert [path.name for path in output.parent.iterdir()] == ["cable.resume"]
    kept = load_file(output.with_suffix(".resume"))["losses"]
    assert {int(torch.isfinite(kept).sum())} == left


# ---------------------------------------------------------------------------- several runs


def test_checkpoints_are_named_after_category_and_seed() -> None:
    assert checkpoint_path(Path("out"), "my.part") == Path("out/my.part.safetensors")
    assert checkpoint_path(Path("out"), "my.part", 0) == Path("out/my.part-seed0.safetensors")


def test_a_bank_is_of_the_recipes_size(category: Path) -> None:
    bank = open_bank(category / "test", TINY, "cpu")
    assert (bank.textures.size, bank.device) == ((64, 64), CPU)
    assert bank.textures.name == str(category / "test")
    assert open_bank(None, TINY, "cpu").textures.name == "procedural"


def test_a_bank_that_cannot_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="no texture images"):
        open_bank(tmp_path, TINY, "cpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(BackendError, match="sees no CUDA GPU"):
        open_bank(None, TINY, "cuda")


def counted(bank: TextureBank, monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """Count how often each texture is decoded."""
    reads: Counter[int] = Counter()
    plain = bank.textures.read

    def read(number: int) -> NDArray[np.uint8]:
        reads.update([number])
        return plain(number)

    monkeypatch.setattr(bank.textures, "read", read)
    return reads


def test_runs_share_textures_and_train_what_each_would_alone(
    category: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    textures, log = category / "test", tmp_path / "log"
    bank = open_bank(textures, LONGER, "cpu")
    reads = counted(bank, monkeypatch)
    outputs = [checkpoint_path(tmp_path / "out", "cable", seed) for seed in (0, 1)]
    decoded = []
    for seed, output in enumerate(outputs):
        recipe = replace(LONGER, seed=seed)
        spec = train_small(category, output, recipe, textures=bank, tensorboard=log)
        assert spec.training.recipe["seed"] == seed
        alone = tmp_path / output.stem / "cable.safetensors"
        train_small(category, alone, recipe, textures=textures)
        assert alone.read_bytes() == output.read_bytes()
        decoded.append(set(reads))
    assert set(reads.values()) == {1}
    assert len(decoded[0]) > 3
    assert sorted(path.name for path in log.iterdir()) == [path.stem for path in outputs]
