"""Means, spreads and averages; schedules; and what the tables say."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from destseg_bench.accuracy.paper import paper_table
from destseg_bench.accuracy.paper_tables import accuracy_lines, summarize
from destseg_bench.accuracy.schedules import schedule_lines
from destseg_bench.accuracy.spread import Statistic, of, over_categories, over_seeds, statistic
from destseg_deploy.training.recipe import PRESETS, Recipe, make_recipe
from tests.bench.accuracy.run_cases import measured

# --- numbers


def test_a_statistic_has_the_sample_deviation() -> None:
    assert statistic([0.9, 0.7]) == Statistic(pytest.approx(0.8), pytest.approx(0.1414214), 2)
    assert statistic([0.9]) == Statistic(0.9, None, 1)
    assert str(statistic([0.9, 0.7])) == "80.0 ± 14.1"
    assert str(statistic([0.9])) == "90.0"


def test_seeds_are_averaged_within_their_category() -> None:
    found = [measured("cable", 0, 0.8), measured("cable", 1, 1.0), measured("bottle", 0, 0.1)]
    assert over_seeds(found, "cable", of("image_auroc")) == statistic([0.8, 1.0])
    assert over_seeds(found, "screw", of("image_auroc")) is None


def test_the_average_is_taken_seed_by_seed() -> None:
    found = [
        measured("cable", 0, 0.8),
        measured("cable", 1, 0.6),
        measured("bottle", 0, 1.0),
        measured("bottle", 1, 0.9),
    ]
    average = over_categories(found, ("bottle", "cable"), of("image_auroc"))
    assert average is not None
    assert average.value == statistic([0.9, 0.75])
    assert (average.categories, average.seeds) == (("bottle", "cable"), (0, 1))


def test_the_average_leaves_out_what_lacks_a_seed_or_may_not_count() -> None:
    found = [measured("cable", s, 0.8) for s in (0, 1)] + [measured("bottle", 0, 0.2)]
    other = [measured("nut", s, 0.1) for s in (0, 1, 2)]
    average = over_categories(found + other, ("bottle", "cable"), of("image_auroc"))
    assert average is not None
    assert average.categories == ("cable",)
    assert average.value.mean == pytest.approx(0.8)
    split = [measured("cable", 0, 0.8), measured("bottle", 1, 0.2)]
    assert over_categories(split, ("bottle", "cable"), of("image_auroc")) is None


def test_without_masks_there_are_no_pixel_metrics() -> None:
    found = [measured("cable", 0, 0.8, masks=False), measured("bottle", 0, 0.5)]
    assert found[0].value("pro") is None
    summary = summarize(found)
    assert summary["categories"]["cable"]["pixel_ap"] is None
    assert summary["average"]["pixel_ap"]["categories"] == ("bottle",)
    assert summary["average"]["image_auroc"]["categories"] == ("bottle", "cable")


# --- tables


def line_of(lines: list[str], start: str) -> list[str]:
    """Return the cells of the first line that starts so."""
    line = next(line for line in lines if line.startswith(start))
    return [cell for cell in line.split("  ") if cell.strip()]


def test_the_table_has_ours_beside_the_paper_s_and_missing_ones() -> None:
    found = [measured("cable", 0, 0.95), measured("cable", 1, 0.97), measured("nut", 0, 0.5)]
    lines = [" ".join(line.split()) for line in accuracy_lines(found)]
    image, pro = (i for i, line in enumerate(lines) if line.startswith("Table S"))
    assert lines[image + 1] == (
        "category seeds ours DeSTSeg (paper) US STPM CutPaste DRAEM DSR PatchCore"
    )
    assert "cable 2 96.0 ± 1.4 97.8 ± 0.5 86.2 93.0 80.6 91.8 93.8 99.6" in lines[image:pro]
    assert "screw – missing 93.6 ± 2.6 54.9 89.4 86.3 93.9 96.2 97.2" in lines[image:pro]  # noqa: RUF001 - the table's dash
    assert "nut 1 50.0 – – – – – – –" in lines[image:pro]  # noqa: RUF001 - the table's dash
    assert sum("missing" in line for line in lines[image:pro]) == 14
    assert "cable 2 67.2 ± 1.0 86.4 ± 1.8 84.3 75.8 94.7" in lines[pro:]
    assert "average of 1 2 67.2 ± 1.0 86.4 84.3 75.8 94.7" in lines[pro:]
    assert sum("is over cable: not the paper's of all 15" in line for line in lines) == 2
    assert "the paper's average of 15 – 75.8 ± 0.8 76.4 ± 1.0 –" in lines  # noqa: RUF001 - the table's dash


def test_the_printed_average_stands_beside_all_15_alone() -> None:
    found = [measured(name, 0, 0.9) for name in paper_table("S5").categories]
    lines = accuracy_lines(found)
    assert line_of(lines, "average of 15")[3].strip() == "98.6 ± 0.4"
    assert not any("not the paper's of all" in line for line in lines)
    fewer = accuracy_lines(found[1:])
    assert line_of(fewer, "average of 14")[3].strip() == "98.5"
    assert any("not the paper's of all 15" in line for line in fewer)


def test_what_the_average_lacks_is_said() -> None:
    found = [measured("cable", 0, 0.9), measured("cable", 1, 0.9), measured("screw", 0, 0.9)]
    assert "not in the average, since a seed of it is missing: screw" in accuracy_lines(found)
    bare = accuracy_lines([measured("cable", 0, 0.9, masks=False)])
    assert any(line.startswith("cable") and "no masks" in line for line in bare)


def test_only_the_paper_s_schedule_is_called_so() -> None:
    assert schedule_lines([measured("cable", 0, 0.9)]) == [
        "schedule: paper, 1000 + 4000 steps of 32 at 256 px, decay none, holdout 0",
        "trained with: dtd/images textures, torchvision IMAGENET1K_V1 teacher, fp32 on cpu",
    ]
    short = make_recipe(student_steps=1000, segmentation_steps=450, batch_size=8, gamma=2.0)
    one = measured(
        "cable", 0, 0.9, recipe=short, textures="procedural", teacher={"source": "random"}
    )
    assert schedule_lines([one]) == [
        "schedule: custom, 1000 + 450 steps of 8 at 256 px, decay none, gamma 2, holdout 0; "
        "the paper's: 1000 + 4000 steps of 32 at 256 px, gamma 4",
        "trained with: procedural textures (the paper's: DTD), random teacher (the paper's: "
        "ImageNet), fp32 on cpu",
    ]
    still = measured("bottle", 0, 0.9, recipe=Recipe(rotation="none", holdout=0.1))
    assert schedule_lines([still])[0].endswith(
        "rotation none, holdout 0.1; the paper's: 1000 + 4000 steps of 32 at 256 px, "
        "rotation full, holdout 0"
    )


def test_each_schedule_is_named_where_there_are_several() -> None:
    found = [
        measured("cable", 0, 0.9),
        measured("cable", 1, 0.9),
        measured("nut", 0, 0.9),
        measured("bottle", 0, 0.9, recipe=PRESETS["quick"]),
    ]
    first, second, third = schedule_lines(found)
    assert first.startswith("schedule: paper")
    assert first.endswith("[cable, nut]")
    assert second.startswith("schedule: quick, 80 + 115 steps of 3 at 256 px, ")
    assert second.endswith("[bottle]")
    assert third.startswith("trained with")
    assert "[" not in third
