"""Recipes: the paper's numbers, and that nothing else goes by its name."""

from dataclasses import replace

import pytest

from destseg_deploy.data.synthesis import PAPER_ROTATIONS
from destseg_deploy.errors import TrainingError
from destseg_deploy.recipe import PRESETS, Recipe, make_recipe


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 100}, "size is 100, expected a multiple of 32, from 64"),
        ({"size": 32}, "size is 32, expected"),
        ({"batch_size": 1}, "batch_size is 1, expected at least 2"),
        ({"student_steps": 0}, "steps is 0, expected at least 1"),
        ({"segmentation_steps": -5}, "steps is -5, expected at least 1"),
        ({"holdout": 1.0}, r"holdout is 1\.0, expected a share"),
        ({"holdout": -0.1}, r"holdout is -0\.1, expected a share"),
        ({"rotation": "half"}, "rotation is half, expected none, slight, full"),
    ],
)
def test_values_that_cannot_be_trained_with_are_refused(
    change: dict[str, object], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        make_recipe("quick", **change)


@pytest.mark.parametrize(
    "change", [{"student_steps": 999}, {"batch_size": 16}, {"size": 128}, {"decay": "cosine"}]
)
def test_a_changed_schedule_is_not_called_the_papers(change: dict[str, object]) -> None:
    assert make_recipe("paper", **change).name == "custom"


def test_seed_rotation_and_holdout_leave_the_schedule_the_papers() -> None:
    assert make_recipe("paper", seed=7, rotation="full", holdout=0.1).name == "paper"


def test_the_rotation_is_the_categorys_unless_given() -> None:
    for category, rotation in PAPER_ROTATIONS.items():
        assert Recipe().for_category(category).rotation == rotation
    assert Recipe().for_category("gearbox").rotation == "slight"
    assert Recipe(rotation="none").for_category("screw").rotation == "none"
