"""Means, spreads and averages; which checkpoints are taken; what the file and the tables say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from destseg_bench import accuracy, runs, train_runs
from destseg_bench.accuracy import measure_accuracy, summarize
from destseg_bench.paper import paper_categories
from destseg_bench.runs import Run, measure_run, paper_folders, refuse_twins, take_runs
from destseg_bench.schedules import schedule_lines
from destseg_bench.statistic import Statistic, of, over_categories, over_seeds, statistic
from destseg_bench.tables import accuracy_lines
from destseg_bench.train_runs import make_trainer, plan_runs
from destseg_deploy.errors import DataError, SpecError, TrainingError
from destseg_deploy.recipe import PRESETS, Recipe, make_recipe
from destseg_deploy.spec import ModelSpec
from tests.bench.run_cases import measured, place_checkpoint

SMALL = make_recipe(size=64, batch_size=2, student_steps=10, segmentation_steps=20)


@pytest.fixture
def data(category: Path, tmp_path: Path) -> Path:
    """Three categories, links to the sample; one is not the paper's."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("cable", "bottle", "nut"):
        (folder / name).symlink_to(category)
    return folder


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


# --- which runs


def test_files_are_named_as_destseg_train_names_them(data: Path, tmp_path: Path) -> None:
    folders = [data / "cable", data / "bottle"]
    one = plan_runs(folders, [7], tmp_path, SMALL)
    assert [run.checkpoint.name for run in one] == ["cable.safetensors", "bottle.safetensors"]
    several = plan_runs(folders[:1], [0, 3], tmp_path, SMALL)
    assert [run.name for run in several] == ["cable-seed0", "cable-seed3"]
    assert [run.seed for run in several] == [0, 3]
    assert {run.recipe.rotation for run in several} == {"slight"}


def test_the_paper_s_categories_are_found(data: Path, tmp_path: Path) -> None:
    assert paper_folders(data) == [data / "bottle", data / "cable"]
    assert data / "nut" in paper_folders(data, ["all"])
    with pytest.raises(DataError, match="none of the paper's categories"):
        paper_folders(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no category 'bolt'"):
        paper_folders(data, ["bolt"])


def test_checkpoints_are_taken_by_category_and_seed(
    checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    folder, notes = tmp_path / "art", []
    for name, seed in (("cable", 1), ("bottle", 0), ("cable", 0)):
        path = folder / f"{name}-{seed}.safetensors"
        place_checkpoint(checkpoint, path, name, replace(SMALL, seed=seed))
    (folder / "resnet18.safetensors").write_bytes(b"a teacher")
    found = take_runs(folder, data, notify=notes.append)
    assert [(r.category.name, r.seed) for r in found] == [("bottle", 0), ("cable", 0), ("cable", 1)]
    assert found[1].recipe == replace(SMALL, rotation="slight")
    assert len(notes) == 1
    assert "resnet18.safetensors: left out" in notes[0]
    chosen = take_runs(folder, data, categories=["cable"], seeds=[1])
    assert [run.checkpoint.name for run in chosen] == ["cable-1.safetensors"]
    for how, said in (
        ({"categories": ["screw"]}, "no checkpoint of category screw. Found: bottle, cable"),
        ({"seeds": [5]}, "no checkpoint of seed 5. Found: 0, 1"),
        ({"categories": ["bottle"], "seeds": [1]}, "of these categories with these seeds"),
    ):
        with pytest.raises(DataError, match=said):
            take_runs(folder, data, **how)


def test_what_cannot_be_taken_is_refused(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "art"
    with pytest.raises(DataError, match="no such folder"):
        take_runs(folder, data)
    folder.mkdir()
    with pytest.raises(DataError, match="no checkpoint in it"):
        take_runs(folder, data)
    path = folder / "cable.safetensors"
    spec = place_checkpoint(checkpoint, path, "cable", SMALL)
    for record in ({}, {"recipe": {"size": 64}}, {"recipe": {"seed": 0, "speed": 9}}):
        replace(spec, training=record).write(path)
        with pytest.raises(SpecError, match=r"cable\.json: its training has no recipe"):
            take_runs(folder, data)
    replace(spec, category="screw").write(path)
    with pytest.raises(DataError, match="no category 'screw'"):
        take_runs(folder, data)


def test_two_checkpoints_of_one_category_and_seed_are_refused(data: Path) -> None:
    first = Run(data / "cable", Path("a.safetensors"), SMALL)
    refuse_twins([first, replace(first, recipe=replace(SMALL, seed=1))])
    with pytest.raises(DataError, match=r"b\.safetensors: category cable and seed 0, as a\.saf"):
        refuse_twins([first, replace(first, checkpoint=Path("b.safetensors"))])


# --- doing them


def test_the_trainer_gets_bank_seed_and_options(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(train_runs, "train_job", lambda *a, **k: seen.append((*a, k)))
    trainer = make_trainer(SMALL, device="cpu", tensorboard=tmp_path / "tb", workers=3)
    run = replace(plan_runs([data / "cable"], [5], tmp_path, SMALL)[0], group="gamma-1")
    trainer(run, report=print, notify=print)
    (job, recipe, bank, options), = seen  # fmt: skip
    assert (job.category, job.seed, job.output) == (data / "cable", 5, run.checkpoint)
    assert recipe == replace(SMALL, seed=5, rotation="slight")
    assert bank.textures.size == (64, 64)
    assert options == {
        "device": "cpu",
        "tensorboard": tmp_path / "tb/gamma-1",
        "report": print,
        "notify": print,
        "workers": 3,
    }


def test_a_run_is_measured_as_destseg_evaluate_does(
    checkpoint: Path, category: Path, data: Path, tmp_path: Path
) -> None:
    from destseg_deploy.evaluation import compute_metrics, score_test_set
    from destseg_deploy.predictor import load

    path = tmp_path / "bottle.safetensors"
    place_checkpoint(checkpoint, path, "bottle", SMALL)
    one = measure_run(Run(data / "bottle", path, SMALL))
    with load(checkpoint) as predictor:
        expected = compute_metrics(score_test_set(predictor, category))
    assert one.evaluation == expected
    assert one.value("pixel_ap") == expected.pixel.ap
    assert one.value("iap_at_90") == expected.pixel.iap_at_recall
    assert [row.t for row in one.sweep] == [20, 50, 100, 200]
    kept = one.to_dict()
    assert kept["checkpoint"] == ModelSpec.read(checkpoint).checkpoint.sha256
    assert kept["textures"] == "dtd/images"
    assert kept["losses"] == {"student": 2.0, "segmentation": 0.5}
    assert "/home" not in json.dumps(kept)
    assert "/home" not in json.dumps(measured("cable", 0, 0.5).to_dict())


def test_the_file_is_whole_after_every_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, done = tmp_path / "results/accuracy.json", []

    def train(run: Run, **options: Any) -> None:
        if done:
            kept = json.loads(output.read_text())
            assert (kept["complete"], len(kept["runs"]), kept["runs_planned"]) == (False, 1, 2)
            raise TrainingError("the student loss is nan")
        done.append(run.name)

    fake = lambda run, device, progress: measured(run.category.name, run.seed, 0.75)  # noqa: E731
    monkeypatch.setattr(runs, "measure_run", fake)
    planned = plan_runs([data / "bottle"], [0, 1], tmp_path, SMALL)
    with pytest.raises(TrainingError):
        measure_accuracy(planned, trainer=train, output=output)
    kept = json.loads(output.read_text())
    assert (kept["complete"], kept["runs"][0]["seed"]) == (False, 0)
    assert [path.name for path in output.parent.iterdir()] == ["accuracy.json"]
    assert len(measure_accuracy(planned, output=output)) == 2
    kept = json.loads(output.read_text())
    assert kept["complete"] is True
    assert kept["summary"]["categories"]["bottle"]["pro"]["mean"] == pytest.approx(0.75 * 0.7)
    assert kept["summary"]["average"]["pro"]["std"] == 0
    assert {"command", "cpu", "versions"} <= set(kept["environment"])


def test_a_category_without_tests_is_refused_before_any_training(tmp_path: Path) -> None:
    (tmp_path / "cable/train/good").mkdir(parents=True)
    planned = plan_runs([tmp_path / "cable"], [0], tmp_path, SMALL)
    with pytest.raises(DataError, match="no test folder"):
        measure_accuracy(planned, trainer=lambda run, **options: pytest.fail("trained"))


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
    assert "screw – missing 93.6 ± 2.6 54.9 89.4 86.3 93.9 96.2 97.2" in lines[image:pro]  # noqa: RUF001
    assert "nut 1 50.0 – – – – – – –" in lines[image:pro]  # noqa: RUF001
    assert sum("missing" in line for line in lines[image:pro]) == 14
    assert "cable 2 67.2 ± 1.0 86.4 ± 1.8 84.3 75.8 94.7" in lines[pro:]
    assert "average of 1 2 67.2 ± 1.0 86.4 84.3 75.8 94.7" in lines[pro:]
    assert sum("is over cable: not the paper's of all 15" in line for line in lines) == 2
    assert "the paper's average of 15 – 75.8 ± 0.8 76.4 ± 1.0 –" in lines  # noqa: RUF001


def test_the_printed_average_stands_beside_all_15_alone() -> None:
    found = [measured(name, 0, 0.9) for name in paper_categories()]
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
    assert second.startswith("schedule: quick, 100 + 160 steps of 8 at 128 px, head_lr 0.05, ")
    assert second.endswith("[bottle]")
    assert third.startswith("trained with")
    assert "[" not in third


def test_the_accuracy_module_summarizes_by_default() -> None:
    assert accuracy.summarize([])["average"]["image_auroc"] is None
