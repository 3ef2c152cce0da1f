"""The tables of results: on a page with a figure, and in the READMEs."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from destseg_bench.cli import bench
from destseg_bench.report.pages import END, fill_tables
from destseg_bench.report.tables import kind_of, tables_of
from destseg_bench.results import read_result
from destseg_bench.table import Table, column
from destseg_deploy.errors import DataError
from tests.bench.calls import refuse, succeed

ROOT = Path(__file__).resolve().parents[3]
STAGES = ("decode", "prepare", "copy in", "network", "answer", "copy out")
RESULTS = ROOT / "benchmarks/results"
FILES = sorted(RESULTS.glob("*.json"))
STOPPED = {"h200-latency": "after batch 1: the GPU was lent for minutes"}
"""Results of a run that was stopped, and why; the page says so below the table."""


@pytest.mark.parametrize(("page", "least"), [("benchmarks/README.md", 10)])
def test_the_readmes_tables_are_those_of_the_results(page, least):
    """When this fails: destseg-bench report benchmarks/results --readme PAGE."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text.count("<!-- results: ") >= least
    assert fill_tables(text, RESULTS) == text


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_committed_result_is_complete_and_has_tables(path):
    result = read_result(path)
    assert result.get("complete", True) == (path.stem not in STOPPED)
    assert result["environment"]["command"]
    assert not re.search(r'(^|[\s"])/(work|tmp|root|home)/', path.read_text("utf-8"))
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


def test_a_table_is_markdown_or_aligned_text():
    columns = (column("name", "name"), column("ms", "ms", 1), column("x", "x", optional=True))
    measured = [{"name": "a|b", "ms": 10.04}, {"name": "long name", "ms": None, "x": 2}]
    table = Table.of("t", columns, measured, ("note",))
    assert "| a\\|b | 10.0 | – |" in table.markdown(), "what would end a cell is escaped"  # noqa: RUF001 - dash
    assert table.text().splitlines() == [
        "t",
        "name         ms  x",
        "a|b        10.0  –",  # noqa: RUF001 - the table's dash
        "long name     –  2",  # noqa: RUF001 - the table's dash
        "note",
    ]
    for row, words in (({"name": "a"}, "'ms' is missing"), ({"ms": "x", "name": "a"}, "'x' is no")):
        with pytest.raises(ValueError, match=f"row 1, ms: {words}"):
            Table.of("t", columns, [row])


def test_unknown_and_cut_results_are_refused():
    with pytest.raises(DataError, match="no table for it"):
        tables_of({"environment": {}, "kind": "weather"}, "x.json")
    with pytest.raises(DataError, match="not all of a training result"):
        tables_of({"environment": {}, "rows": [{"contender": "a"}]}, "x.json")
    assert kind_of({"environment": {}}) is None


def write_results(folder):
    """Write Table S4 and accuracies, as small as can be drawn."""
    timing = {"median": 5.0, "p90": 6.0}
    wall = dict.fromkeys((*STAGES, "model", "end to end"), timing)
    environment = {"command": "c", "time": "t", "commit": "k", "cpu": "p", "cores": 2, "gpu": None}
    head = {"environment": environment, "device": "cpu", "category": "cable", "schedule": "quick"}
    stpm = {"name": "STPM", "weights": "w", "paper": None}
    counted = {"parameters_counted": 1.0, "gmacs_counted": 1.0, "training": None}
    inference = {"1": {"wall": wall}}
    s4 = {
        **{**head, "kind": "table-s4", "threads": 2, "normal_images": 3, "complete": False},
        "systems": {
            "stpm": {**stpm, **counted, "inference": inference},
            "dsr": {"skipped": "no weights"},
        },
    }
    trained = {**stpm, "metrics": {"image AUROC": 0.9}, "minutes": 1.0, "paper": "95.5"}
    systems = {**head, "kind": "systems", "systems": {"stpm": trained}}
    for name, result in (("s4", s4), ("systems", systems)):
        (folder / f"{name}.json").write_text(json.dumps(result))


def test_the_page_has_tables_machine_command_and_a_figure(tmp_path):
    pytest.importorskip("matplotlib")
    from PIL import Image

    write_results(tmp_path)
    succeed("report", tmp_path, "--output", tmp_path / "out")
    text = (tmp_path / "out/report.md").read_text()
    for expected in ("`c`", "Not complete", "dsr skipped: no weights", "| STPM |", "95.5", "90.0"):
        assert expected in text
    with Image.open(tmp_path / "out/speed-and-accuracy.png") as image:
        assert image.width > 600


def leaves(found, path=()):
    """Yield the way to each entry; of a list, to those of its first one."""
    entries = found.items() if isinstance(found, dict) else list(enumerate(found))[:1]
    for key, value in entries:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from leaves(value, (*path, key))


@pytest.mark.parametrize("name", ["s4", "systems"])
@pytest.mark.parametrize(
    "value", [None, "x", [], {}, 0, 10**400, "\ud800", ...], ids=lambda value: ascii(value)[:9]
)
def test_whatever_is_damaged_is_one_line_with_the_file(tmp_path, name, value):
    """Some damage can be shown, such as another name; none of it may be a traceback."""
    pytest.importorskip("matplotlib")
    write_results(tmp_path)
    path, refused = tmp_path / f"{name}.json", 0
    whole = path.read_text()
    for *way, last in leaves(json.loads(whole)):
        found = entry = json.loads(whole)
        for key in way:
            entry = entry[key]
        entry[last] = value
        if value is ...:
            del entry[last]
        path.write_text(json.dumps(found))
        done = CliRunner().invoke(bench, ["report", str(tmp_path), "--output", str(tmp_path / "o")])
        assert isinstance(done.exception, SystemExit | None), (last, done.exception)
        assert done.exit_code == 0 or f"{name}.json: " in done.stderr, (last, done.stderr)
        assert done.exit_code == 0 or done.stderr.count("\n") == 1
        refused += done.exit_code
    assert refused > 0


@pytest.mark.parametrize(
    ("words", "message", "status"),
    [
        (["none", "--output", "out"], "not there", 1),
        ([".", "--output", "out"], "no result files", 1),
        (["."], "Give either --output", 2),
        ([".", "--readme", "none.md"], "no such file", 1),
        ([FILES[0], "--readme", ROOT / "README.md"], "takes one folder", 2),
    ],
)
def test_bad_calls_are_refused(tmp_path, monkeypatch, words, message, status):
    monkeypatch.chdir(tmp_path)
    refuse(message, "report", *words, status=status)
    assert not (tmp_path / "out").exists()
