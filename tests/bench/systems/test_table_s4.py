"""Table S4: what is measured, said, written and refused."""

import json
import sys

import pytest
import torch
from click.testing import CliRunner

from destseg_bench.cli import bench
from destseg_bench.report.speed_tables import table_s4
from destseg_bench.systems.table_s4 import paper_row
from destseg_bench.table import NOTHING


@pytest.fixture(autouse=True)
def torch_settings():
    """The command sets threads and TF32 for its process, which here is that of other tests."""
    threads, flags = torch.get_num_threads(), torch.backends.cuda.matmul.allow_tf32
    yield
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = flags


def run(*arguments):
    return CliRunner().invoke(bench, [str(argument) for argument in arguments])


def timing(median):
    return {"median": median, "q1": median, "q3": median, "p90": median, "count": 3}


WHERE = {"device": "cpu", "threads": 1, "category": "cable", "normal_images": 6}
MACHINE = {"environment": {"cpu": "EPYC", "cores": 2, "gpu": None}}
PARTS = ("decode", "prepare", "copy in", "network", "answer", "copy out", "model")


def system(name, minutes, ms, weights="w.pth"):
    return {
        "name": name,
        "weights": weights,
        "parameters_counted": 1.0,
        "gmacs_counted": 2.0,
        "training": {"projected": True, "minutes": minutes, "stages": []},
        "inference": {
            "1": {"wall": {**dict.fromkeys(PARTS, timing(ms)), "end to end": timing(ms + 1)}}
        },
        "paper": paper_row(name),
    }


def test_ratios_are_to_the_reference_and_beside_the_paper_s():
    systems = {
        "stpm": system("STPM", 50, 10, weights="random"),
        "patchcore": system("PatchCore", 5, 60),
        "destseg-reference": system("DeSTSeg, as the reference", 100, 40),
        "dsr": {"skipped": "no weights"},
        "cutpaste": {**system("CutPaste", 1, 1), "training": None, "inference": {}},
    }
    table, stages = table_s4({**WHERE, **MACHINE, "systems": systems})
    stpm, patchcore, reference, cutpaste = table.rows
    assert len(table.heads) == len(stpm)
    assert table.notes[-1] == "dsr skipped: no weights"
    assert [row[-2:] for row in stages.rows] == [
        ["11.00", "11.00"],
        ["61.00", "61.00"],
        ["41.00", "41.00"],
    ]
    assert stpm == [
        *("STPM, random weights", "1.0", "2.0"),
        *("50.0", "0.50x", "15.4", "0.30x"),
        *("10.0", "0.25x", "3.1", "0.33x", "11.0"),
    ]
    assert patchcore[5:7] == [NOTHING, NOTHING]
    assert patchcore[9:11] == ["> 11.3", "> 1.20x"]
    assert reference[3:7] == ["100.0", "1.00x", "51.2", "1.00x"]
    assert cutpaste[3:] == [NOTHING] * 9


def test_the_paper_s_numbers_come_with_their_row():
    assert paper_row("DRAEM") == {"training_minutes": "158.3", "inference_ms": "22.2"}
    assert paper_row("DeSTSeg") == paper_row("DeSTSeg, as the reference")
    assert paper_row("CutPaste") is None


@pytest.fixture
def small_batch(monkeypatch):
    """Four images a step, so that one does not take seconds."""
    monkeypatch.setattr("destseg_bench.systems.stpm.BATCH", 4)


@pytest.mark.usefixtures("small_batch")
def test_one_command_measures_prints_and_writes(tmp_path, category, checkpoint):
    output = tmp_path / "s4.json"
    done = run(
        *("table-s4", "--system", "stpm", "--system", "patchcore-resnet18"),
        *("--category", category.name, "--data", category.parent),
        *("--batch", "1,2", "--rounds", 2, "--warmup", 1, "--training-rounds", 1),
        *("--artifact", checkpoint, "--device", "cpu", "--threads", 1, "--output", output),
    )
    assert done.exit_code == 0, done.output
    result = json.loads(output.read_text())
    assert result["complete"] is True
    assert (result["threads"], result["tf32"], result["schedule"]) == (1, False, "paper")
    stpm = result["systems"]["stpm"]
    assert stpm["training"]["projected"] is True
    (stage,) = stpm["training"]["stages"]
    assert stpm["training"]["minutes"] == pytest.approx(
        stage["steps"] * stage["seconds_per_step"] / 60
    )
    assert set(stpm["inference"]) == {"1", "2"}
    assert "events" not in stpm["inference"]["1"]
    assert {row["batch"] for row in result["artifacts"]} == {1, 2}
    assert "STPM, random weights" in done.output
    assert "15.4" in done.output
    assert f"Latency on {result['environment']['cpu']}" in done.output


def test_an_interrupted_run_leaves_a_valid_file_that_says_so(tmp_path, category, monkeypatch):
    output = tmp_path / "s4.json"

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("destseg_bench.systems.table_s4.time_training", interrupted)
    done = run(
        *("table-s4", "--system", "stpm", "--category", category.name, "--data", category.parent),
        *("--batch", "1", "--rounds", 1, "--warmup", 1, "--device", "cpu", "--output", output),
    )
    assert done.exit_code != 0
    result = json.loads(output.read_text())
    assert result["complete"] is False
    assert result["systems"]["stpm"]["training"] is None
    assert result["systems"]["stpm"]["inference"]["1"]["wall"]["model"]["median"] > 0


def test_a_system_that_cannot_be_opened_is_named_with_the_reason(tmp_path, category, monkeypatch):
    from destseg_deploy.errors import WeightsError

    def refuse(task):
        raise WeightsError("no weights at hand")

    monkeypatch.setattr("destseg_bench.systems.dsr.system.Dsr", refuse)
    done = run(
        *("table-s4", "--system", "stpm", "--system", "dsr", "--quick"),
        *("--category", category.name, "--data", category.parent, "--device", "cpu"),
    )
    assert done.exit_code == 0, done.output
    assert "dsr skipped: no weights at hand" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--system", "padim"], "system 'padim': expected one of"),
        (["--system", "stpm", "--system", "stpm"], "given twice"),
        (["--weights", "resnet18"], "expected NAME=FILE"),
        (["--weights", "resnet18=nowhere.pth"], "nowhere.pth: no such file"),
        (["--category", "cable"], "Give both --category and --data"),
        (["--category", "cable", "--data", "nowhere"], "nowhere"),
        (["--batch", "0"], "at least 1"),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    done = run("table-s4", *arguments)
    assert done.exit_code != 0
    assert message in done.output
    assert "Traceback" not in done.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_gpu_that_is_not_there_is_refused():
    done = run("table-s4", "--device", "cuda")
    assert done.exit_code == 1
    assert "sees no CUDA GPU" in done.output


def test_without_options_it_draws_a_category(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "destseg_bench.systems.table_s4.measure_table",
        lambda names, *a, **k: asked.append(names) or {"stpm": system("STPM", 1, 1)},
    )
    module = sys.modules["destseg_bench.cli.table_s4"]  # the package has a command of that name
    monkeypatch.setattr(module, "SAMPLE_TRAIN", 1)
    done = run("table-s4")
    assert done.exit_code == 0, done.output
    assert asked == [("stpm", "draem", "patchcore", "destseg-reference", "destseg")]


@pytest.mark.usefixtures("small_batch")
def test_trained_systems_are_scored_and_written(tmp_path, category, monkeypatch):
    monkeypatch.setattr("destseg_bench.systems.stpm.QUICK_STEPS", 2)
    output = tmp_path / "systems.json"
    done = run(
        *("systems", "--system", "stpm", "--category", category.name, "--data", category.parent),
        *("--random-weights", "--device", "cpu", "--output", output),
    )
    assert done.exit_code == 0, done.output
    row = json.loads(output.read_text())["systems"]["stpm"]
    assert row["losses"]["student"]["steps"] == 2
    assert 0 <= row["metrics"]["image AUROC"] <= 1
    assert "quick schedule" in done.output


def test_nothing_measured_is_an_error_with_the_reasons(tmp_path, category, monkeypatch):
    from destseg_deploy.errors import WeightsError

    def refuse(task):
        raise WeightsError("no weights at hand")

    monkeypatch.setattr("destseg_bench.systems.stpm.Stpm", refuse)
    where = ("--system", "stpm", "--category", category.name, "--data", category.parent)
    for command in (("table-s4", "--quick"), ("systems",)):
        done = run(*command, *where, "--device", "cpu")
        assert done.exit_code == 1
        assert "nothing was measured. stpm: no weights at hand" in done.output
