"""The paper's schedule to the letter: networks, optimisers, learning rates."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from torch.optim import SGD

from destseg_deploy.recipe import PRESETS, Recipe
from destseg_deploy.training import schedule
from destseg_deploy.training.schedule import Phase, make_optimizer, phases, rate_factor
from tests.deploy.training_cases import TINY, fit, make_net

STUDENT, SEGMENTATION = phases(Recipe())


class Rates(SGD):
    """Writes down every step's learning rates."""

    log: ClassVar[list[tuple[float, ...]]] = []

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no closure here
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
    assert PRESETS["paper"] == Recipe()
    assert (STUDENT, SEGMENTATION) == (
        Phase("student", 0, 1000),
        Phase("segmentation", 1000, 5000),
    )
    assert Recipe().batch_size == 32
    assert Recipe().gamma == 4


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
