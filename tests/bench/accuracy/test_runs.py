"""Runs: which are planned or found, how they are trained and measured, and the file of results."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")

from destseg_bench.accuracy import measure
from destseg_bench.accuracy.measure import measure_run, measure_runs, refuse_twins
from destseg_bench.accuracy.paper_tables import summarize
from destseg_bench.accuracy.runs import Run, paper_folders, plan_runs, take_runs
from destseg_deploy.errors import DataError, SpecError, TrainingError
from destseg_deploy.spec import ModelSpec, TrainingRecord
from destseg_deploy.training.recipe import make_recipe
from tests.bench.accuracy.run_cases import measured, place_checkpoint

SMALL = make_recipe(size=64, batch_size=2, student_steps=10, segmentation_steps=20)


@pytest.fixture
def data(category: Path, tmp_path: Path) -> Path:
    """Three categories, links to the sample; one is not the paper's."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("cable", "bottle", "nut"):
        (folder / name).symlink_to(category)
    return folder


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
    for recipe in ({}, {"size": 64}, {"seed": 0, "speed": 9}):
        replace(spec, training=TrainingRecord(recipe=recipe)).write(path)
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


# --- measuring them


def test_a_run_is_measured_as_destseg_evaluate_does(
    checkpoint: Path, category: Path, data: Path, tmp_path: Path
) -> None:
    from destseg_deploy.evaluation.test_set import compute_metrics, score_test_set
    from destseg_deploy.loading import load

    path = tmp_path / "bottle.safetensors"
    place_checkpoint(checkpoint, path, "bottle", SMALL)
    one = measure_run(Run(data / "bottle", path, SMALL), "cpu", lambda *report: None)
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

    def train(run: Run, *rest: object) -> None:
        if done:
            kept = json.loads(output.read_text())
            assert (kept["complete"], len(kept["runs"]), kept["runs_planned"]) == (False, 1, 2)
            raise TrainingError("the student loss is nan")
        done.append(run.name)

    monkeypatch.setattr(
        measure, "measure_run", lambda run, *rest: measured(run.category.name, run.seed, 0.75)
    )
    planned = plan_runs([data / "bottle"], [0, 1], tmp_path, SMALL)
    with pytest.raises(TrainingError):
        measure_runs(planned, summarize, trainer=train, output=output)
    kept = json.loads(output.read_text())
    assert (kept["complete"], kept["runs"][0]["seed"]) == (False, 0)
    assert [path.name for path in output.parent.iterdir()] == ["accuracy.json"]
    assert len(measure_runs(planned, summarize, output=output)) == 2
    kept = json.loads(output.read_text())
    assert kept["complete"] is True
    assert kept["summary"]["categories"]["bottle"]["pro"]["mean"] == pytest.approx(0.75 * 0.7)
    assert kept["summary"]["average"]["pro"]["std"] == 0
    assert {"command", "cpu", "versions"} <= set(kept["environment"])


def test_a_category_without_tests_is_refused_before_any_training(tmp_path: Path) -> None:
    (tmp_path / "cable/train/good").mkdir(parents=True)
    planned = plan_runs([tmp_path / "cable"], [0], tmp_path, SMALL)
    with pytest.raises(DataError, match="no test folder"):
        measure_runs(planned, summarize, trainer=lambda *run: pytest.fail("trained"))
