"""Recipes: the paper's numbers, and that nothing else goes by its name."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from torch.optim import SGD

from destseg_deploy.data.synthesis import PAPER_ROTATIONS
from destseg_deploy.errors import TrainingError
from destseg_deploy.spec import TilingSpec
from destseg_deploy.training import loop as schedule
from destseg_deploy.training.loop import make_optimizer
from destseg_deploy.training.recipe import (
    PRESETS,
    Phase,
    Recipe,
    TrainingOptions,
    make_recipe,
    phases,
    rate_factor,
)
from tests.deploy.training.cases import TINY, fit, make_net


def test_the_paper_preset_is_the_papers() -> None:
    assert PRESETS["paper"] == Recipe(
        name="paper",
        size=256,
        batch_size=32,
        student_steps=1000,
        segmentation_steps=4000,
        student_lr=0.4,
        res_lr=0.1,
        head_lr=0.01,
        decay="none",
        momentum=0.9,
        weight_decay=1e-4,
        gamma=4.0,
        rotation=None,
        holdout=0.0,
        seed=0,
    )


def test_the_quick_preset_is_quick_and_gives_a_threshold() -> None:
    quick, paper = PRESETS["quick"], PRESETS["paper"]
    cost = [
        r.size**2 * r.batch_size * (r.student_steps + r.segmentation_steps) for r in (quick, paper)
    ]
    assert cost[0] < cost[1] / 100
    assert quick.holdout > 0


def test_a_recipe_is_a_preset_with_changes() -> None:
    recipe = make_recipe("quick", seed=3, size=None, holdout=0.0)
    assert recipe == replace(PRESETS["quick"], seed=3, holdout=0.0)
    assert make_recipe() == PRESETS["paper"]
    with pytest.raises(TrainingError, match="preset 'fast': expected one of paper, quick"):
        make_recipe("fast")


def test_a_larger_batch_lowers_the_students_rate() -> None:
    """Its loss is summed over the batch; a rate that is given counts."""
    quick = PRESETS["quick"]
    doubled = make_recipe("quick", batch_size=2 * quick.batch_size)
    assert doubled.student_lr == pytest.approx(quick.student_lr / 2)
    assert make_recipe("quick", batch_size=2).student_lr == quick.student_lr
    assert make_recipe("quick", batch_size=99, student_lr=0.3).student_lr == 0.3


def test_a_recipe_without_tiles_is_recorded_as_before_there_were_any() -> None:
    """Its identity must not change, or finished runs would be repeated."""
    plain = set(make_recipe("quick").entries())
    assert plain.isdisjoint({"scale", "overlap", "crops"})
    tiled = make_recipe("quick", scale=0.5)
    assert set(tiled.entries()) - plain == {"scale", "overlap", "crops"}
    assert Recipe(**tiled.entries()) == tiled
    assert Recipe(**make_recipe("quick").entries()) == make_recipe("quick")


def test_tiles_overlap_by_a_quarter_unless_said() -> None:
    assert make_recipe(size=128).tiling is None
    tiled = make_recipe(size=128, scale=0.5)
    assert tiled.tiling == TilingSpec(0.5, 32)
    assert tiled.name == "custom"
    assert replace(tiled, overlap=0).tiling == TilingSpec(0.5, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 100}, "size is 100, expected a multiple of 32, from 64"),
        ({"scale": 0.0}, "scale is 0.0, expected more than 0 and at most 4"),
        ({"scale": 5.0}, "scale is 5.0, expected more than 0"),
        ({"scale": math.nan}, "scale is nan, expected more than 0"),
        ({"overlap": 8}, "overlap is 8, expected 0 to 255, and a scale with it"),
        ({"scale": 0.5, "overlap": 256}, "overlap is 256, expected 0 to 255"),
        ({"crops": "grid"}, "crops is grid, expected anywhere, or a scale with it"),
        ({"scale": 0.5, "crops": "here"}, "crops is here, expected anywhere or grid"),
        ({"size": 32}, "size is 32, expected"),
        ({"size": 4128}, "size is 4128, expected a multiple of 32, from 64 to 4096"),
        ({"student_steps": 10**12}, "steps is 1000000000000, expected at most 10000000"),
        ({"segmentation_steps": 10**12}, "steps is 1000000000000, expected at most 10000000"),
        ({"seed": -1}, "seed is -1, expected 0 or more"),
        ({"seed": 2**64}, "seed is 18446744073709551616, expected 0 or more, below"),
        ({"batch_size": 1}, "batch_size is 1, expected at least 2"),
        ({"student_steps": 0}, "steps is 0, expected at least 1"),
        ({"segmentation_steps": -5}, "steps is -5, expected at least 1"),
        ({"holdout": 1.0}, r"holdout is 1\.0, expected a share"),
        ({"holdout": -0.1}, r"holdout is -0\.1, expected a share"),
        ({"top_k": 0}, "top_k is 0, expected 1 to 65536, the pixels of the network"),
        ({"size": 64, "top_k": 4097}, "top_k is 4097, expected 1 to 4096"),
        ({"rotation": "half"}, "rotation 'half': expected none or slight or full"),
        ({"decay": "linear"}, "decay 'linear': expected none or cosine"),
        ({"batch_size": 2.5}, "batch_size 2.5: got float, expected int"),
        ({"size": "256"}, "size '256': got str, expected int"),
        ({"student_lr": -1.0}, r"student_lr is -1\.0, expected above 0"),
        ({"head_lr": math.inf}, "head_lr is inf, expected above 0"),
        ({"momentum": 5.0}, r"momentum is 5\.0, expected a number in \[0, 1\)"),
        ({"weight_decay": math.nan}, "weight_decay is nan, expected at least 0"),
    ],
)
def test_values_that_cannot_be_trained_with_are_refused(
    change: dict[str, object], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        make_recipe("quick", **change)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"workers": -5}, "workers: -5, expected 0 to 1024"),
        ({"threads": -3}, "threads: -3, expected 0 to 1024"),
        ({"save_every": "x"}, "save_every 'x': got str, expected float"),
        ({"precision": "fp8"}, "precision 'fp8': expected auto or fp32"),
        ({"device": "gpu"}, "device is gpu, expected auto, cpu, cuda or cuda:<index>"),
        ({"false_reject_rate": 1.0}, r"false_reject_rate is 1\.0, expected between 0 and 1"),
    ],
)
def test_options_out_of_range_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        TrainingOptions(**values)


@pytest.mark.parametrize(
    "change", [{"student_steps": 999}, {"batch_size": 16}, {"size": 128}, {"decay": "cosine"}]
)
def test_a_changed_schedule_is_not_called_the_papers(change: dict[str, object]) -> None:
    assert make_recipe("paper", **change).name == "custom"


def test_seed_rotation_holdout_and_score_leave_the_schedule_the_papers() -> None:
    assert make_recipe("paper", seed=7, rotation="full", holdout=0.1, top_k=9).name == "paper"


def test_a_score_of_other_pixels_is_another_run() -> None:
    """It decides the threshold. Unless it is given, a run is the same as of an earlier version."""
    plain, other = make_recipe("quick"), make_recipe("quick", top_k=9)
    assert "top_k" not in plain.entries()
    assert other.entries() == {**plain.entries(), "top_k": 9}
    assert Recipe(**other.entries()) == other


def test_the_rotation_is_the_papers_for_its_categories_unless_given() -> None:
    for category, rotation in PAPER_ROTATIONS.items():
        assert Recipe().for_category(category).rotation == rotation
    assert Recipe().for_category("gearbox").rotation == "none"
    assert PRESETS["quick"].for_category("screw").rotation == "none"
    assert Recipe(rotation="none").for_category("screw").rotation == "none"


# ---------------------------------------------------------------------------- schedule


STUDENT, SEGMENTATION = phases(Recipe())


class Rates(SGD):
    """Writes down every step's learning rates."""

    log: ClassVar[list[tuple[float, ...]]] = []

    def step(self, closure: Any = None) -> None:
        self.log.append(tuple(group["lr"] for group in self.param_groups))
        super().step(closure)


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, ...]]:
    """The learning rates of the steps that are done from here on."""
    log: list[tuple[float, ...]] = []
    monkeypatch.setattr(Rates, "log", log)
    monkeypatch.setattr(schedule, "SGD", Rates)
    return log


def test_the_papers_phases() -> None:
    assert (STUDENT, SEGMENTATION) == (
        Phase("student", 0, 1000),
        Phase("segmentation", 1000, 5000),
    )


def test_optimizers_hold_what_they_train() -> None:
    net = make_net()
    student = make_optimizer(net, Recipe(), STUDENT)
    segmentation = make_optimizer(net, Recipe(), SEGMENTATION)
    assert [g["params"] for g in student.param_groups] == [list(net.student_net.parameters())]
    assert [group["params"] for group in segmentation.param_groups] == [
        list(net.segmentation_net.res.parameters()),
        list(net.segmentation_net.head.parameters()),
    ]
    assert [group["lr"] for group in student.param_groups] == [0.4]
    assert [group["lr"] for group in segmentation.param_groups] == [0.1, 0.01]
    for group in (*student.param_groups, *segmentation.param_groups):
        assert (group["momentum"], group["weight_decay"]) == (0.9, 1e-4)
        assert not group["nesterov"]
        assert not group["dampening"]
        assert not group["maximize"]


def test_optimizers_follow_the_recipe() -> None:
    net = make_net()
    recipe = Recipe(student_lr=3.0, res_lr=2.0, head_lr=1.0, momentum=0.5, weight_decay=0.25)
    groups = [
        *make_optimizer(net, recipe, STUDENT).param_groups,
        *make_optimizer(net, recipe, SEGMENTATION).param_groups,
    ]
    assert [group["lr"] for group in groups] == [3.0, 2.0, 1.0]
    assert {(group["momentum"], group["weight_decay"]) for group in groups} == {(0.5, 0.25)}


def test_rates_are_the_papers_and_constant(rates: list[tuple[float, ...]]) -> None:
    fit(make_net(), replace(TINY, segmentation_steps=3))
    assert rates == [(0.4,)] * 2 + [(0.1, 0.01)] * 3


def test_cosine_goes_down_to_zero_within_each_phase(rates: list[tuple[float, ...]]) -> None:
    fit(make_net(), replace(TINY, segmentation_steps=4, decay="cosine"))
    factors = [1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]
    expected = [(0.4,), (0.2,), *[(0.1 * f, 0.01 * f) for f in factors]]
    assert [len(rates_of_step) for rates_of_step in rates] == [1, 1, 2, 2, 2, 2]
    for found, wanted in zip(rates, expected, strict=True):
        assert found == pytest.approx(wanted)


def test_the_factor_depends_on_the_step_alone() -> None:
    """So that a run continued in the middle has the rates of one that was not interrupted."""
    cosine = replace(Recipe(), decay="cosine")
    assert rate_factor(cosine, SEGMENTATION, 1000) == 1
    assert rate_factor(cosine, SEGMENTATION, 3000) == pytest.approx(0.5)
    assert 0 < rate_factor(cosine, SEGMENTATION, 4999) < 1e-6
    assert rate_factor(Recipe(), SEGMENTATION, 4999) == 1
