"""Ablations: which recipe belongs to which setting, and what is compared with what."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("torch")

from destseg_bench.accuracy.ablation import (
    ABLATIONS,
    ablation_lines,
    ablation_rows,
    change_recipe,
    plan_ablation,
    sort_runs,
    summarize_ablation,
)
from destseg_bench.accuracy.measure import MeasuredRun
from destseg_bench.accuracy.paper import PaperValue, paper_table
from destseg_bench.accuracy.runs import Run, plan_runs
from destseg_deploy.errors import DataError
from destseg_deploy.evaluation.test_set import TABLE_S1
from destseg_deploy.training.recipe import PRESETS, Recipe
from tests.bench.accuracy.run_cases import measured

PAPER = PRESETS["paper"]
GAMMA, ROTATION = ABLATIONS["s2"], ABLATIONS["s3"]
WITHOUT, WITH = (setting.name for setting in ROTATION.settings)


def of_gamma(gamma: int, category: str, seed: int, value: float) -> MeasuredRun:
    recipe = replace(PAPER, gamma=float(gamma), name="paper" if gamma == 4 else "custom")
    return measured(category, seed, value, recipe=recipe, settings=(str(gamma),))


# --- which runs


def test_each_gamma_is_trained_in_its_folder(tmp_path: Path) -> None:
    plan = partial(plan_runs, [Path("cable"), Path("bottle")], [0, 1], recipe=PAPER)
    runs = plan_ablation(GAMMA, PAPER, tmp_path, plan)
    assert len(runs) == 4 * 2 * 2
    assert [run.recipe.gamma for run in runs[::4]] == [1, 2, 4, 8]
    assert [run.settings for run in runs[::4]] == [("1",), ("2",), ("4",), ("8",)]
    assert runs[5].checkpoint == tmp_path / "gamma-2/cable-seed1.safetensors"
    assert runs[5].name == "gamma-2/cable-seed1"
    assert runs[5].seed == 1
    assert {run.recipe.rotation for run in runs} == {"slight", "full"}


def test_a_changed_recipe_is_custom_and_the_same_one_is_not() -> None:
    names = [change_recipe(PAPER, "gamma", s.value, "bottle").name for s in GAMMA.settings]
    assert names == ["custom", "custom", "paper", "custom"]

    def rotated(category: str) -> list[Recipe]:
        values = [setting.value for setting in ROTATION.settings]
        return [change_recipe(PAPER, "rotation", value, category) for value in values]

    without, with_ = rotated("bottle")
    assert (without.name, without.rotation) == ("custom", "none")
    assert (with_.name, with_.rotation) == ("paper", "full")
    assert rotated("capsule") == [Recipe(rotation="none")] * 2


def test_what_two_settings_share_is_trained_once(tmp_path: Path) -> None:
    plan = partial(plan_runs, [Path("capsule"), Path("bottle")], [0], recipe=PAPER)
    runs = plan_ablation(ROTATION, PAPER, tmp_path, plan)
    found = {run.name: run.settings for run in runs}
    assert found == {
        "rotation-none/capsule": (WITHOUT, WITH),
        "rotation-none/bottle": (WITHOUT,),
        "rotation-paper/bottle": (WITH,),
    }


def test_checkpoints_are_sorted_by_what_they_were_trained_with() -> None:
    def run(category: str, **recipe: object) -> Run:
        made = replace(PAPER, **recipe).for_category(category)
        return Run(Path(category), Path(f"art/{category}.safetensors"), made)

    (found,) = sort_runs(GAMMA, [run("cable", gamma=8.0)])
    assert (found.settings, found.group) == (("8",), "art")
    with pytest.raises(DataError, match=r"trained with gamma 3, Table S2 has 1, 2, 4, 8 for"):
        sort_runs(GAMMA, [run("cable", gamma=3.0)])
    rotated = [run("bottle"), run("bottle", rotation="none"), run("capsule")]
    assert [r.settings for r in sort_runs(ROTATION, rotated)] == [
        (WITH,), (WITHOUT,), (WITHOUT, WITH),
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"rotation slight, Table S3 has none, full for bottle"):
        sort_runs(ROTATION, [run("bottle", rotation="slight")])
    (any_run,) = sort_runs(ABLATIONS["s1"], [run("cable", gamma=3.0)])
    assert any_run.settings == tuple(map(str, TABLE_S1))


# --- what came out


def test_settings_stand_beside_the_paper_s() -> None:
    assert GAMMA.paper(GAMMA.settings[2], "image_auroc") == PaperValue(98.6, 0.4)
    assert GAMMA.paper(GAMMA.settings[0], "pixel_ap") == PaperValue(76.2)
    assert ROTATION.paper(ROTATION.settings[0], "iap") == PaperValue(72.7)
    first = ABLATIONS["s1"]
    assert [str(first.paper(s, "image_auroc")) for s in first.settings] == [
        "98.7", "98.6", "98.6 ± 0.4", "98.5",
    ]  # fmt: skip


def test_every_setting_is_averaged_over_the_same_runs() -> None:
    found = [
        of_gamma(1, "cable", 0, 0.9),
        of_gamma(1, "bottle", 0, 0.1),
        of_gamma(4, "cable", 0, 0.8),
        of_gamma(4, "cable", 1, 0.2),
    ]
    one, two, four, _ = ablation_rows(GAMMA, found)
    assert one.ours["image_auroc"] is not None
    assert one.ours["image_auroc"].value.mean == pytest.approx(0.9)
    assert four.ours["image_auroc"] is not None
    assert four.ours["image_auroc"].value.mean == pytest.approx(0.8)
    assert four.ours["iap"] is not None
    assert four.ours["iap"].value.mean == pytest.approx(0.48)
    assert (one.runs, two.runs, four.runs) == (1, 0, 1)
    assert two.ours["iap"] is None
    lines = ablation_lines(GAMMA, found)
    assert lines[-3] == "ours: average over cable, seed 0"
    assert "compare the settings with each other" in lines[-2]
    assert lines[-1] == "left out: 2 runs of a category or seed that another setting lacks"


def test_the_table_shows_missing_settings_and_the_adopted_one() -> None:
    found = [of_gamma(g, "cable", s, 0.9 + 0.01 * s) for g in (2, 4) for s in (0, 1)]
    lines = [" ".join(line.split()) for line in ablation_lines(GAMMA, found)]
    assert "1 0 missing 98.3 missing 76.2 missing 75.8" in lines
    assert (
        "4 (adopted) 2 90.5 ± 0.7 98.6 ± 0.4 72.4 ± 0.6 75.8 ± 0.8 54.3 ± 0.4 76.4 ± 1.0" in lines
    )
    assert lines[0].startswith("schedule: custom")
    assert lines[0].endswith("gamma 4 [gamma-2]")
    assert lines[1].endswith("[gamma-4]")


def test_a_run_of_two_settings_is_named_by_both() -> None:
    still = Recipe(rotation="none")
    found = [
        measured("capsule", 0, 0.9, settings=(WITHOUT, WITH)),
        measured("cable", 0, 0.8, recipe=still, settings=(WITHOUT,)),
        measured("cable", 0, 0.9, settings=(WITH,)),
    ]
    lines = ablation_lines(ROTATION, found)
    assert lines[0].endswith("[rotation-none, rotation-paper]")
    assert lines[1].endswith("rotation slight [rotation-none]")
    without, with_ = ablation_rows(ROTATION, found)
    assert [row.runs for row in (without, with_)] == [2, 2]
    assert without.ours["image_auroc"] is not None
    assert without.ours["image_auroc"].value.mean == pytest.approx(0.85)


def test_nothing_in_common_is_said() -> None:
    found = [of_gamma(1, "cable", 0, 0.9), of_gamma(2, "cable", 1, 0.9)]
    assert ablation_lines(GAMMA, found)[-1].endswith("nothing to compare")


def test_all_15_categories_need_no_warning() -> None:
    names = paper_table("S5").categories
    found = [of_gamma(g, name, 0, 0.9) for g in (1, 2, 4, 8) for name in names]
    assert not any("with other ones" in line for line in ablation_lines(GAMMA, found))
    assert ablation_rows(GAMMA, found)[0].runs == 15
    fewer = [one for one in found if one.category != "cable"]
    assert any("with other ones" in line for line in ablation_lines(GAMMA, fewer))


def test_t_is_swept_within_each_run() -> None:
    names = tuple(map(str, TABLE_S1))
    found = [measured(name, 0, 0.9, settings=names) for name in ("cable", "nut")]
    rows = ablation_rows(ABLATIONS["s1"], found)
    means = [row.ours["image_auroc"].value.mean for row in rows if row.ours["image_auroc"]]
    assert means == pytest.approx([0.9, 0.89, 0.88, 0.87])
    lines = [" ".join(line.split()) for line in ablation_lines(ABLATIONS["s1"], found)]
    assert "100 (adopted) 2 88.0 98.6 ± 0.4" in lines


def test_the_summary_holds_what_the_table_shows() -> None:
    found = [of_gamma(4, "cable", s, 0.9) for s in (0, 1)]
    summary = summarize_ablation(GAMMA, found)
    assert summary["table"] == "S2"
    first, _, third, _ = summary["settings"]
    assert first["ours"]["iap"] is None
    assert third["ours"]["iap"]["value"] == {"mean": pytest.approx(0.54), "std": 0, "count": 2}
    assert third["ours"]["iap"]["seeds"] == (0, 1)
    assert third["paper"]["iap"] == {"mean": 76.4, "std": 1.0, "bound": False}
    assert summarize_ablation(GAMMA, [])["settings"][0]["ours"]["pixel_ap"] is None
