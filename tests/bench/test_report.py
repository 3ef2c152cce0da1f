"""The report page, its figure, and the README's tables."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from destseg_bench.cli import bench
from destseg_bench.report.readme import END, fill_tables
from destseg_bench.report.table import Table
from destseg_bench.report.tables import kind_of, tables_of
from destseg_bench.result_file import read_result
from destseg_deploy.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("decode", "prepare", "copy in", "network", "answer", "copy out")
RESULTS = ROOT / "benchmarks/results"
FILES = sorted(RESULTS.glob("*.json"))


def run(*arguments):
    return CliRunner().invoke(bench, ["report", *map(str, arguments)])


@pytest.mark.parametrize(("page", "least"), [("README.md", 2), ("benchmarks/README.md", 10)])
def test_the_readmes_tables_are_those_of_the_results(page, least):
    """When this fails: destseg-bench report benchmarks/results --readme PAGE."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text.count("<!-- results: ") >= least
    assert fill_tables(text, RESULTS) == text


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_committed_result_is_complete_and_has_tables(path):
    result = read_result(path)
    assert result.get("complete", True)
    assert result["environment"]["command"]
    for table in tables_of(result, path.name):
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.heads)}
        text = table.markdown()
        assert "None" not in text
        assert "nan" not in text.lower().replace("nand", "")


def test_a_changed_number_shows(tmp_path):
    name = "training-speed-cpu.json"
    text = f"a\n<!-- results: {name} -->\n{END}\nb\n"
    filled = fill_tables(text, RESULTS)
    assert "| lean |" in filled
    assert filled.startswith("a\n")
    assert filled.endswith(f"{END}\nb\n")
    assert fill_tables(filled, RESULTS) == filled
    result = json.loads((RESULTS / name).read_text())
    result["rows"][0]["student"]["seconds_per_step"] *= 2
    (tmp_path / name).write_text(json.dumps(result))
    assert fill_tables(filled, tmp_path) != filled


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- results: x.json -->\n", "an end for each"),
        (f"{END}\n", "an end for each"),
        (f"<!-- results: none.json -->\n{END}", "no such file"),
        (f"<!-- results: training-speed-cpu.json#2 -->\n{END}", "it has 1 tables"),
    ],
)
def test_markers_that_cannot_be_filled_are_refused(text, message):
    with pytest.raises(DataError, match=message):
        fill_tables(text, RESULTS)


def test_a_marker_takes_the_table_of_its_number():
    name = "table-s4-cpu.json"
    tables = [table.markdown() for table in tables_of(read_result(RESULTS / name), name)]
    assert len(set(tables)) == len(tables) >= 2
    for number, table in enumerate(tables, 1):
        text = fill_tables(f"<!-- results: {name}#{number} -->\n{END}", RESULTS)
        assert text == f"<!-- results: {name}#{number} -->\n\n{table}\n{END}"


def test_markdown_escapes_what_would_end_a_cell():
    assert "| a\\|b | 1 |" in Table("t", ("n", "v"), [["a|b", "1"]]).markdown()


def test_unknown_and_cut_results_are_refused():
    with pytest.raises(DataError, match="no table for it"):
        tables_of({"environment": {}, "kind": "weather"}, "x.json")
    with pytest.raises(DataError, match="not all of a training result"):
        tables_of({"environment": {}, "rows": [{"contender": "a"}]}, "x.json")
    assert kind_of({"environment": {}}) is None


def study():
    """A CPU study and Table S4 with accuracies, as small as can be drawn."""
    timing = {"median": 5.0, "p90": 6.0}
    environment = {"command": "c", "time": "t", "commit": "k", "cpu": "p", "cores": 2, "gpu": None}
    s4 = {
        "kind": "table-s4",
        "environment": environment,
        "device": "cpu",
        "threads": 2,
        "category": "cable",
        "normal_images": 3,
        "complete": False,
        "systems": {
            "stpm": {
                "name": "STPM",
                "weights": "w",
                "parameters_counted": 1.0,
                "gmacs_counted": 1.0,
                "paper": None,
                "training": None,
                "inference": {
                    "1": {
                        "wall": dict.fromkeys(
                            (*STAGES, "model", "end to end"),
                            timing,
                        )
                    }
                },
            },
            "dsr": {"skipped": "no weights"},
        },
    }
    systems = {
        "kind": "systems",
        "environment": environment,
        "category": "cable",
        "schedule": "quick",
        "systems": {
            "stpm": {
                "name": "STPM",
                "metrics": {"image AUROC": 0.9},
                "minutes": 1.0,
                "paper": "95.5",
                "weights": "w",
            }
        },
    }
    return s4, systems


def test_the_page_has_tables_machine_command_and_a_figure(tmp_path):
    pytest.importorskip("matplotlib")
    from PIL import Image

    for i, result in enumerate(study()):
        (tmp_path / f"{i}.json").write_text(json.dumps(result))
    done = run(tmp_path, "--output", tmp_path / "out")
    assert done.exit_code == 0, done.output
    text = (tmp_path / "out/report.md").read_text()
    for expected in ("`c`", "Not complete", "dsr: no weights", "| STPM |", "95.5", "90.0"):
        assert expected in text
    with Image.open(tmp_path / "out/speed-and-accuracy.png") as image:
        assert image.width > 600


def test_bad_calls_are_one_line(tmp_path):
    for arguments, message in [
        ([tmp_path / "none", "--output", tmp_path / "out"], "not there"),
        ([tmp_path, "--output", tmp_path / "out"], "no result files"),
        ([tmp_path], "Give either --output"),
        ([RESULTS, "--readme", tmp_path / "none.md"], "no such file"),
        ([FILES[0], "--readme", ROOT / "README.md"], "takes one folder"),
    ]:
        done = run(*arguments)
        assert done.exit_code != 0
        assert message in done.output
        assert "Traceback" not in done.output
    assert not (tmp_path / "out").exists()
