"""The pages do what they say: commands parse, targets and links exist, numbers are true."""

import configparser
import json
import re
import shlex

import pytest
from click.testing import CliRunner

from destseg_deploy.cli.train import train
from tests.house.pages import (
    COMMANDS,
    PAGES,
    ROOT,
    TEXT,
    blocks,
    command_lines,
    resolve,
    shell_lines,
)

OTHERS = {
    "make": "test_targets_exist",
    "pip": "test_installations_name_extras_and_files_that_exist",
    "cmake": "tests/cpp builds and installs the library",
    "pytest tests": "make test",
    "ruff check .": "make lint",
    "ruff format --check .": "make lint",
    "mypy": "make types",
    "export PYTHONPATH=": "needs a GPU machine; tests/bench/test_gpu.py",
    "places=": "as above",
    "python3 -m destseg_bench gpu": "as above",
    "export DESTSEG_": "as cmake",
    "build-inspection/inspect_one": "as cmake",
    "cpack": "tests/cpp/test_package.py",
    "mcs": "tests/cpp/test_cpp_project.py",
    "LD_LIBRARY_PATH=build-inspection/destseg mono": "as mcs",
    "python3 -m venv .venv": "make install",
    ". .venv/bin/activate": "as above",
    "sha256sum": "not ours",
    "minisign": "not ours, and not installed",
    "py -3 -m venv": "Windows",
    ".venv/Scripts/Activate.ps1": "Windows",
    "Set-ExecutionPolicy": "Windows",
    "Invoke-Item": "Windows",
    "Copy-Item": "Windows",
    "build-inspection/Release/inspect_one": "Windows",
    "nuget pack": "not ours, and not installed",
    "dotnet pack": "as nuget; cpp/README.md tells what was tried by hand",
}
"""Beginnings of lines that are no commands of ours -> where they are checked, or why nowhere."""


def test_there_are_commands_to_check():
    assert len(command_lines()) >= 60
    assert len(command_lines((ROOT / "README.md").read_text())) >= 7


@pytest.mark.parametrize("line", command_lines())
def test_commands_parse(line, tmp_path, monkeypatch):
    """Parsed for real, with files that need not exist; a command may be mentioned by its name."""
    (settings,) = blocks("toml")
    (tmp_path / "destseg.toml").write_text(settings)
    monkeypatch.chdir(tmp_path)
    name, command, words = resolve(line)
    if words or line in shell_lines():
        command.make_context(name, [word.replace("FILE", "x.onnx") for word in words])
    assert len(name.split()) == len(line.split()) - len(words), "no such command"


def test_the_check_would_see_a_wrong_option():
    from click import NoSuchOption

    with pytest.raises(NoSuchOption):
        train.make_context("destseg-train", ["--categry", "cable"])


def test_every_other_line_is_known():
    ours = set(command_lines())
    rest = [line for line in shell_lines() if line not in ours]
    assert [line for line in rest if not line.replace("'", "").startswith(tuple(OTHERS))] == []


def test_installations_name_extras_and_files_that_exist():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    told = re.findall(r"pip install [^`\n]+", TEXT)
    assert len(told) >= 10
    named = re.findall(r"(?:\.|destseg-deploy)\[([\w,]+)\]", " ".join(told))
    pending = {"page"} - set(config["options.extras_require"])
    assert {extra for one in named for extra in one.split(",")} <= {
        *config["options.extras_require"],
        *pending,
    }
    for file in re.findall(r" -[cr] ([\w.-]+)", " ".join(told)):
        assert (ROOT / file).is_file(), file


def test_windows_runs_the_demo_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text().replace("$(BIN)/", "").replace(" > /dev/null", "")
    (body,) = re.findall(r"^demo: .*\n((?:\t.*\n)+)", makefile, flags=re.MULTILINE)
    demo = re.findall(r"^\t(destseg.*?)(?: \$\(if .*)?$", body, flags=re.MULTILINE)
    assert len(demo) >= 6
    for page in ("windows.md", "tutorial.md"):
        lines = command_lines((ROOT / "docs" / page).read_text())
        told = [line for line in lines if "demo/" in line]
        assert list(map(_plain, told)) == list(map(_plain, demo)), page


def _plain(line: str) -> str:
    """Return a line without what differs between the two ways to name a command."""
    line = re.sub(r"^destseg-", "destseg ", line).replace(
        "destseg export inspect", "destseg inspect"
    )
    return shlex.join(shlex.split(line))


def test_powershell_is_told_what_powershell_knows():
    (code,) = {"\n".join(blocks("powershell"))}
    assert "&&" not in code, "Windows PowerShell 5 has no &&"
    assert not re.search(r"\w/\w", code), "paths are written with \\"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name):
    command = COMMANDS[name]
    for sub in getattr(command, "commands", {"": command}).values():
        for option in sub.params:
            assert option.param_type_name == "argument" or option.help, f"{name} {option.name}"
    answer = CliRunner().invoke(command, ["-h"])
    assert answer.exit_code == 0
    assert answer.output.startswith("Usage: ")


def test_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    inline = re.findall(r"`(make [^`]+)`", TEXT)
    lines = [line for line in (*shell_lines(), *inline) if line.startswith("make ")]
    words = {word for line in lines for word in shlex.split(line)[1:]}
    targets = {word for word in words if re.fullmatch(r"[a-z-]+", word)}
    assert {"demo", "test", "docs", "gpu"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_the_spec_table_names_every_entry():
    from dataclasses import fields

    from destseg_deploy.spec import ModelSpec

    rows = "".join(line for line in TEXT.splitlines() if line.startswith("| `"))
    for field in fields(ModelSpec):
        assert field.name == "format" or f"`{field.name}`" in rows, field.name


def test_every_markdown_link_to_a_file_leads_somewhere():
    for path, text in PAGES.items():
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize("name", ["screw-256-cpu", "screw-1024-cpu"])
def test_numbers_of_the_readme_are_the_measured_ones(name):
    result = json.loads((ROOT / "benchmarks/results" / f"{name}.json").read_text())
    for row in result["rows"]:
        pixel = row["pixel"]
        rates = (row["image_auroc"], *(pixel[key] for key in ("auroc", "ap", "pro", "iap")))
        differences = (row["score_max_abs"], row["map_max_abs"])
        cells = [f"{rate:.4f}" for rate in rates] + [f"{value:.1e}" for value in differences]
        assert " | ".join(cells) in TEXT


@pytest.mark.parametrize("name", ["screw", "magnetic_tile"])
def test_accuracy_of_the_readme_is_the_measured_one(name):
    path = ROOT / f"benchmarks/results/{name}-accuracy-cpu.json"
    (run,) = json.loads(path.read_text())["runs"]
    names = ("image_auroc", "pixel_auroc", "pixel_ap", "pro", "iap", "iap_at_90")
    assert " | ".join(f"{100 * run['metrics'][metric]:.1f}" for metric in names) in TEXT


def test_times_of_the_pages_are_the_measured_ones():
    result = json.loads((ROOT / "benchmarks/results/screw-cpu.json").read_text())
    rows = {row["name"]: row for row in result["latency"] if row["batch"] == 1}
    names = {
        "PyTorch": "pytorch, fp32",
        "ONNX Runtime": "onnxruntime, plain",
        "ONNX Runtime, fused": "onnxruntime, fused",
        "OpenVINO, fused": "openvino, fused",
        "OpenVINO in bf16, fused": "openvino-bf16, fused",
        "ONNX Runtime, INT8": "onnxruntime, screw-int8",
        "OpenVINO, INT8": "openvino, screw-int8",
    }
    page = (ROOT / "docs/cpu.md").read_text()
    for told, name in names.items():
        row = rows[name]
        assert f"| {told} | {row['median']:.0f} | {row['times_faster']:.1f} |" in page
    readme = (ROOT / "README.md").read_text()
    for name in ("pytorch, fp32", "onnxruntime, plain", "openvino, screw-int8"):
        assert f"{rows[name]['median']:.0f} ms" in " ".join(readme.split())
    accuracy = result["accuracy"]
    for name in ("pytorch, fp32", "openvino, screw-int8"):
        assert f"{100 * accuracy[name]['image AUROC']:.1f} %" in readme
