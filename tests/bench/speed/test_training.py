"""Training speed: interleaved, fair, and the same training."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("torch")

from destseg_bench.cli import bench
from destseg_bench.speed.training import (
    CONTENDERS,
    Measured,
    computed_in,
    measure_training,
    summarize,
)
from destseg_deploy.errors import TrainingError
from destseg_deploy.training.precision import Precision
from destseg_deploy.training.recipe import Recipe, TrainingOptions
from destseg_deploy.training.setup import open_bank

SMALL = Recipe(size=64, batch_size=2)
OPTIONS = TrainingOptions(teacher="random", device="cpu", workers=0)


def test_rows_are_medians_and_ratios_to_the_first() -> None:
    slow = Measured(
        "literal",
        "fp32",
        {"student": [4.0, 2.0, 3.0], "segmentation": [8.0, 6.0, 9.0]},
        {"student": [7.0], "segmentation": [0.6]},
    )
    fast = Measured(
        "lean",
        "bf16",
        {"student": [1.0, 1.5, 2.0], "segmentation": [2.0, 2.0, 2.0]},
        {"student": [7.1], "segmentation": [0.5]},
    )
    first, second = summarize([slow, fast], Recipe(student_steps=10, segmentation_steps=30))
    assert first["student"] == {
        "seconds_per_step": 3.0,
        "lowest": 2.0,
        "highest": 4.0,
        "times_faster": 1.0,
        "losses": [7.0],
    }
    assert first["projected_minutes"] == pytest.approx((10 * 3 + 30 * 8) / 60)
    assert first["times_faster"] == 1.0
    assert second["student"]["times_faster"] == 2.0
    assert second["segmentation"]["times_faster"] == 4.0
    assert second["times_faster"] == pytest.approx((10 * 3 + 30 * 8) / (10 * 1.5 + 30 * 2))


def test_contenders_take_turns_and_train_the_same(category: Path) -> None:
    turns: list[tuple[int, int, str]] = []
    literal, lean = measure_training(
        category,
        SMALL,
        contenders=("literal", "lean-full"),
        steps=1,
        rounds=1,
        bank=open_bank(None, SMALL, "cpu"),
        options=OPTIONS,
        report=lambda *turn: turns.append(turn),
    )
    assert turns == [(i + 1, 4, ("literal", "lean-full")[i % 2]) for i in range(4)]
    for phase in ("student", "segmentation"):
        assert len(literal.seconds[phase]) == len(lean.seconds[phase]) == 1
        assert min(literal.seconds[phase] + lean.seconds[phase]) > 0
        assert np.allclose(literal.losses[phase], lean.losses[phase], rtol=0.05)
    assert literal.losses["student"] != literal.losses["segmentation"]


def test_what_cannot_compete_is_refused(category: Path) -> None:
    bank = open_bank(None, SMALL, "cpu")
    with pytest.raises(TrainingError, match="quick: expected one of literal, lean-full"):
        measure_training(category, SMALL, bank=bank, options=OPTIONS, contenders=("quick",))
    for steps in (0, 11):
        with pytest.raises(TrainingError, match=f"steps: {steps}, expected 1 to 10"):
            measure_training(category, SMALL, bank=bank, options=OPTIONS, steps=steps)


def test_the_command_prints_a_row_for_each(category: Path, tmp_path: Path) -> None:
    output = tmp_path / "speed.json"
    call = [
        "training", "--category", category.name, "--data", str(category.parent),
        "--teacher", "random", "--size", "64", "--batch-size", "2", "--steps", "1",
        "--rounds", "1", "--device", "cpu", "--workers", "0", "--output", str(output),
    ]  # fmt: skip
    result = CliRunner().invoke(bench, call)
    assert result.exit_code == 0, result.output
    rows = json.loads(output.read_text())["rows"]
    assert [row["contender"] for row in rows] == list(CONTENDERS)[:3]
    assert [line.split()[0] for line in result.stdout.splitlines()[2:5]] == list(CONTENDERS)[:3]
    assert rows[1]["precision"] == "fp32"


def test_an_unknown_category_is_one_line(category: Path, tmp_path: Path) -> None:
    call = ["training", "--category", "nut", "--data", str(category.parent), "--output", "x.json"]
    result = CliRunner().invoke(bench, call)
    assert result.exit_code == 1
    assert "no category 'nut'" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("allowed", [True, False])
def test_float32_on_a_gpu_is_called_what_it_is(allowed: bool, monkeypatch) -> None:
    """torch lets a GPU's convolutions use TF32 unless it is told not to."""
    import torch

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    gpu = SimpleNamespace(name="fp32", device=torch.device("cuda"))
    assert computed_in(gpu) == ("tf32" if allowed else "fp32")
    assert computed_in(Precision("fp32", torch.device("cpu"))) == "fp32"
    assert computed_in(SimpleNamespace(name="bf16", device=torch.device("cuda"))) == "bf16"
