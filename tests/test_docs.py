"""The READMEs do what they say: commands parse, Python runs, targets exist, numbers are true."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from destseg_bench.cli import bench
from destseg_deploy.cli.evaluate import evaluate
from destseg_deploy.cli.predict import predict
from destseg_deploy.cli.sample import sample
from destseg_deploy.cli.threshold import threshold
from destseg_deploy.cli.train import train
from destseg_export.cli import export

ROOT = Path(__file__).resolve().parents[1]
PAGES = {path: path.read_text() for path in (ROOT / "README.md", ROOT / "benchmarks/README.md")}
README = "\n".join(PAGES.values())
COMMANDS = {
    "destseg-train": train,
    "destseg-evaluate": evaluate,
    "destseg-predict": predict,
    "destseg-threshold": threshold,
    "destseg-sample": sample,
    "destseg-export": export,
    "destseg-bench": bench,
}


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def _command_lines() -> list[str]:
    lines = [line.split("#")[0].strip() for block in _blocks("sh") for line in block.splitlines()]
    inline = re.findall(r"`(destseg-\w+ [^`]+)`", README)
    return [line for line in (*lines, *inline) if line.startswith("destseg-")]


def test_the_python_example_runs(onnx_artifact, tmp_path, monkeypatch, frames):
    (tmp_path / "artifacts").mkdir()
    for suffix in (".onnx", ".json"):
        source = onnx_artifact.with_suffix(suffix)
        (tmp_path / "artifacts" / source.name).symlink_to(source)
    monkeypatch.chdir(tmp_path)
    (example,) = _blocks("python")
    scope = {"frames": frames}
    exec(compile(example, "README.md", "exec"), scope)
    prediction = scope["prediction"]
    assert prediction.score.dtype == np.float32
    assert prediction.anomaly_map.shape == (3, 64, 64)


def test_there_are_commands_to_check():
    assert len(_command_lines()) >= 6


@pytest.mark.parametrize("line", _command_lines())
def test_commands_of_the_readme_parse(line):
    """Parsed for real, with files that need not exist."""
    name, *words = shlex.split(line)
    command = COMMANDS[name]
    if words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    command.make_context(name, [word.replace("FILE", "x.onnx") for word in words])


def test_the_check_would_see_a_wrong_option():
    from click import NoSuchOption

    with pytest.raises(NoSuchOption):
        train.make_context("destseg-train", ["--categry", "cable"])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name):
    command = COMMANDS[name]
    for sub in getattr(command, "commands", {"": command}).values():
        for option in sub.params:
            assert option.param_type_name == "argument" or option.help, f"{name} {option.name}"
    answer = CliRunner().invoke(command, ["-h"])
    assert answer.exit_code == 0
    assert answer.output.startswith("Usage: ")


def test_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"\bmake ([\w-]+)", README)) - {"demo", "it"} | {"demo"}:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_the_spec_table_names_every_entry():
    from dataclasses import fields

    from destseg_deploy.spec import ModelSpec

    rows = "".join(line for line in README.splitlines() if line.startswith("| `"))
    for field in fields(ModelSpec):
        assert field.name == "format" or f"`{field.name}`" in rows, field.name


def test_every_markdown_link_to_a_file_leads_somewhere():
    for page, text in PAGES.items():
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("name", ["screw-256-cpu", "screw-1024-cpu"])
def test_numbers_of_the_readme_are_the_measured_ones(name):
    result = json.loads((ROOT / "benchmarks/results" / f"{name}.json").read_text())
    for row in result["rows"]:
        pixel = row["pixel"]
        rates = (row["image_auroc"], *(pixel[key] for key in ("auroc", "ap", "pro", "iap")))
        differences = (row["score_max_abs"], row["map_max_abs"])
        cells = [f"{rate:.4f}" for rate in rates] + [f"{value:.1e}" for value in differences]
        assert " | ".join(cells) in README


@pytest.mark.parametrize("name", ["screw", "magnetic_tile"])
def test_accuracy_of_the_readme_is_the_measured_one(name):
    path = ROOT / f"benchmarks/results/{name}-accuracy-cpu.json"
    (run,) = json.loads(path.read_text())["runs"]
    names = ("image_auroc", "pixel_auroc", "pixel_ap", "pro", "iap", "iap_at_90")
    assert " | ".join(f"{100 * run['metrics'][metric]:.1f}" for metric in names) in README
