"""destseg-bench accuracy and ablation: what reaches the library, and what is refused."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

pytest.importorskip("torch")

from destseg_bench.accuracy import measure
from destseg_bench.accuracy.measure import MeasuredRun
from destseg_bench.accuracy.runs import Run
from destseg_bench.cli.ablation import ablation
from destseg_bench.cli.accuracy import accuracy
from destseg_deploy.training.recipe import Recipe, TrainingOptions, make_recipe
from tests.bench.accuracy.run_cases import measured, place_checkpoint
from tests.fakes.ray_tasks import FakeRay

SMALL = make_recipe(size=64, batch_size=2, student_steps=1, segmentation_steps=1)
TINY = ("--size", 64, "--batch-size", 2, "--steps", "1,1", "--device", "cpu")


def invoke(command: click.Command, *words: object) -> Result:
    return CliRunner().invoke(command, [str(word) for word in words])


@pytest.fixture
def data(category: Path, tmp_path: Path) -> Path:
    """Two of the paper's categories and another, links to the sample."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("cable", "capsule", "nut"):
        (folder / name).symlink_to(category)
    return folder


@dataclass(frozen=True)
class Training:
    """What one call of ``train`` was asked for."""

    output: Path
    size: tuple[int, int] | None
    log: Path | None


@pytest.fixture
def trained(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> list[Training]:
    """Let training put a ready checkpoint; return what was trained."""
    made: list[Training] = []

    def fake(
        category: Path, output: Path, recipe: Recipe, options: TrainingOptions, **rest: Any
    ) -> None:
        size = rest["textures"].textures.size if rest["textures"] else None  # a worker opens them
        made.append(Training(output, size, options.tensorboard))
        rest["report"](SimpleNamespace(phase="student", done=1, total=2, loss=0.5))
        place_checkpoint(checkpoint, output, category.name, recipe)

    monkeypatch.setattr(measure, "train", fake)
    return made


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Let measuring give made-up numbers; return what was measured, and where."""
    seen: list[tuple[str, str]] = []

    def fake(run: Run, device: str, report: object) -> MeasuredRun:
        seen.append((run.name, device))
        value = 0.9 + 0.01 * run.seed
        one = measured(run.category.name, run.seed, value, settings=run.settings)
        return replace(one, run=run)

    monkeypatch.setattr(measure, "measure_run", fake)
    return seen


def test_categories_and_seeds_are_trained_and_measured(
    trained: list[Training], data: Path, tmp_path: Path
) -> None:
    art, output = tmp_path / "art", tmp_path / "accuracy.json"
    result = invoke(
        accuracy, "--data", data, "--train-into", art, *TINY, "--category", "cable",
        "--output", output,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert trained == [Training(art / "cable.safetensors", (64, 64), None)]
    kept = json.loads(output.read_text())
    (run,) = kept["runs"]
    assert (kept["complete"], run["category"], run["seed"]) == (True, "cable", 0)
    assert run["recipe"]["name"] == "custom"
    assert run["metrics"]["image_auroc"] == run["evaluation"]["image_auroc"]
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    shown = f"cable 1 {100 * run['metrics']['image_auroc']:.1f} 97.8 ± 0.5"
    assert any(line.startswith(shown) for line in lines)
    assert lines[0].endswith("the paper's: 1000 + 4000 steps of 32 at 256 px")


def test_the_paper_s_categories_are_the_default(
    trained: list[Training], scored: list[tuple[str, str]], data: Path, tmp_path: Path
) -> None:
    words = ("--data", data, "--train-into", tmp_path, *TINY, "--seeds", "0,2")
    result = invoke(accuracy, *words)
    assert result.exit_code == 0, result.output
    names = ["cable-seed0", "cable-seed2", "capsule-seed0", "capsule-seed2"]
    assert [training.output.stem for training in trained] == names
    assert scored == [(name, "cpu") for name in names]
    assert "missing" in result.stdout


def test_a_cluster_s_results_stand_in_the_order_of_the_plan(
    trained: list[Training],
    scored: list[tuple[str, str]],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The fake Ray ends the last job first."""
    monkeypatch.setitem(sys.modules, "ray", FakeRay())
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ENABLE_AUTO_CONNECT"):
        monkeypatch.setenv(name, "0")
    words = ("--data", data, *TINY, "--seeds", "0,2", "--category", "cable")
    files = [tmp_path / f"{on}.json" for on in ("here", "ray")]
    shown = [
        invoke(
            accuracy, *words, "--on", on, "--train-into", tmp_path / on,
            "--output", tmp_path / f"{on}.json",
        )
        for on in ("here", "ray")
    ]  # fmt: skip
    assert [result.exit_code for result in shown] == [0, 0], shown[1].output
    names = ["cable-seed0", "cable-seed2"]
    assert [name for name, _ in scored] == [*names, *reversed(names)]
    assert shown[0].stdout == shown[1].stdout
    kept = [json.loads(path.read_text()) for path in files]
    assert kept[0]["runs"] == kept[1]["runs"]
    assert kept[0]["summary"] == kept[1]["summary"]


def test_checkpoints_are_taken(
    checkpoint: Path, scored: list[tuple[str, str]], data: Path, tmp_path: Path
) -> None:
    for seed in (0, 1):
        path = tmp_path / f"art/cable-seed{seed}.safetensors"
        place_checkpoint(checkpoint, path, "cable", replace(SMALL, seed=seed))
    place_checkpoint(
        checkpoint, tmp_path / "art/nut.safetensors", "nut", replace(Recipe(), size=64)
    )
    words = ("--data", data, "--checkpoints", tmp_path / "art", "--device", "cpu")
    result = invoke(accuracy, *words)
    assert result.exit_code == 0, result.output
    assert [name for name, _ in scored] == ["cable-seed0", "cable-seed1", "nut"]
    assert "[cable]" in result.stdout.splitlines()[0]
    assert "[nut]" in result.stdout.splitlines()[1]
    scored.clear()
    assert invoke(accuracy, *words, "--seeds", 1).exit_code == 0
    assert [name for name, _ in scored] == ["cable-seed1"]


def test_gammas_are_trained_and_then_taken_again(
    trained: list[Training], scored: list[tuple[str, str]], data: Path, tmp_path: Path
) -> None:
    art, output = tmp_path / "art", tmp_path / "s2.json"
    words = ("--table", "s2", "--data", data, "--category", "cable", "--output", output)
    first = invoke(ablation, *words, "--train-into", art, *TINY, "--tensorboard", tmp_path)
    assert first.exit_code == 0, first.output
    folders = ["gamma-1", "gamma-2", "gamma-4", "gamma-8"]
    assert [training.output.parent.name for training in trained] == folders
    assert [training.log for training in trained] == [tmp_path / f for f in folders]
    summary = json.loads(output.read_text())["summary"]
    assert [row["runs"] for row in summary["settings"]] == [1, 1, 1, 1]
    again = invoke(ablation, *words, "--checkpoints", art, "--device", "cpu")
    assert again.exit_code == 0, again.output
    assert again.stdout == first.stdout
    assert len(trained) == 4
    assert [name for name, _ in scored] == [f"{folder}/cable" for folder in folders] * 2


def test_a_category_without_rotation_is_trained_once(
    trained: list[Training], scored: list[tuple[str, str]], data: Path, tmp_path: Path
) -> None:
    words = ("--table", "S3", "--data", data, "--train-into", tmp_path / "art", *TINY)
    result = invoke(ablation, *words)
    assert result.exit_code == 0, result.output
    made = ["/".join(training.output.parts[-2:]) for training in trained]
    assert made == [
        "rotation-none/cable.safetensors",
        "rotation-none/capsule.safetensors",
        "rotation-paper/cable.safetensors",
    ]
    assert "w/o data augmentation" in result.stdout


def test_t_needs_one_pass_over_checkpoints(
    checkpoint: Path, scored: list[tuple[str, str]], data: Path, tmp_path: Path
) -> None:
    place_checkpoint(checkpoint, tmp_path / "art/cable.safetensors", "cable", SMALL)
    words = ("--table", "s1", "--data", data, "--checkpoints", tmp_path / "art", "--device", "cpu")
    result = invoke(ablation, *words)
    assert result.exit_code == 0, result.output
    assert scored == [("cable", "cpu")]
    assert "100 (adopted)" in result.stdout


# --- refusals


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        (accuracy, (), "Give either --checkpoints FOLDER or --train-into FOLDER"),
        (accuracy, ("--checkpoints", "a", "--train-into", "b"), "Give either"),
        (accuracy, ("--checkpoints", "a", "--gamma", "2"), "--gamma: it is for training"),
        (accuracy, ("--checkpoints", "a", "--threads", "2"), "--threads: it is for training"),
        (accuracy, ("--train-into", "a", "--on", "there"), "expected here, ray, ray://auto"),
        (accuracy, ("--checkpoints", "a", "--literal"), "--literal: it is for training"),
        (accuracy, ("--train-into", "a", "--seeds", "0,x"), "expected whole numbers"),
        (accuracy, ("--train-into", "a", "--seeds", "1,1"), "twice"),
        (accuracy, ("--train-into", "a", "--seeds", "-1"), "expected whole numbers"),
        (ablation, ("--table", "s1", "--train-into", "a"), "s1 trains nothing"),
        (ablation, ("--table", "s2", "--train-into", "a", "--gamma", "2"), "--gamma: s2 sets it"),
        (ablation, ("--table", "s3", "--train-into", "a", "--rotation", "none"), "--rotation: s3"),
        (ablation, ("--table", "s5", "--train-into", "a"), "'s5' is not one of"),
        (ablation, ("--train-into", "a"), "Missing option '--table'"),
    ],
)
def test_wrong_use_is_a_usage_error(
    command: click.Command, words: tuple[str, ...], said: str
) -> None:
    result = invoke(command, *words)
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.stderr.split())


def test_what_is_not_there_is_one_line(
    checkpoint: Path, trained: list[Training], data: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    into = ("--train-into", tmp_path / "art", *TINY)
    off = tmp_path / "off/cable.safetensors"
    place_checkpoint(checkpoint, off, "cable", replace(SMALL, gamma=3.0))
    place_checkpoint(checkpoint, tmp_path / "twins/a.safetensors", "cable", SMALL)
    place_checkpoint(checkpoint, tmp_path / "twins/b.safetensors", "cable", SMALL)
    output = tmp_path / "out.json"
    for command, words, said in (
        (accuracy, ("--data", data, "--category", "bolt", *into), "no category 'bolt'"),
        (accuracy, ("--data", empty, *into), "none of the paper's categories"),
        (accuracy, ("--data", data, "--checkpoints", empty), "no checkpoint in it"),
        (accuracy, ("--data", data, "--checkpoints", off.parent, "--seeds", 4), "of seed 4"),
        (accuracy, ("--data", data, "--checkpoints", tmp_path / "twins"), "move one away"),
        (ablation, ("--table", "s2", "--data", data, "--checkpoints", off.parent), "gamma 3"),
    ):
        result = invoke(command, *words, "--output", output)
        assert result.exit_code == 1, result.output
        assert result.stderr.startswith("Error: ")
        assert result.stderr.count("\n") == 1
        assert said in result.stderr
        assert result.stdout == ""
    assert trained == []
    assert not output.exists()
    assert not (tmp_path / "art").exists()
