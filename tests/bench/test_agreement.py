"""Artifacts that agree, and one that does not."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from destseg_bench.agreement import measure_agreement
from destseg_bench.cli import bench
from destseg_deploy.models.weights import load_checkpoint, save_checkpoint


def test_the_same_model_agrees_with_itself(checkpoint, onnx_artifact, category):
    torch_row, ort_row = measure_agreement([checkpoint, onnx_artifact], category)
    assert (torch_row["score_max_abs"], torch_row["map_max_abs"]) == (0, 0)
    assert 0 < ort_row["map_max_abs"] < 1e-4
    assert ort_row["image_auroc"] == pytest.approx(torch_row["image_auroc"], abs=1e-6)
    assert 0 < torch_row["pixel"]["ap"] < 1


def test_another_model_does_not_agree(checkpoint, category, tmp_path):
    model, spec = load_checkpoint(checkpoint)
    model.segmentation_net.head[4].bias.data += 0.5
    other = tmp_path / "other.safetensors"
    save_checkpoint(model, replace(spec, category="other"), other)
    _, row = measure_agreement([checkpoint, other], category)
    assert row["score_max_abs"] > 1e-2
    assert row["map_max_abs"] > 1e-2


def test_the_command_prints_a_table_and_writes_json(checkpoint, onnx_artifact, category, tmp_path):
    output = tmp_path / "results" / "agreement.json"
    words = ["agreement", str(checkpoint), str(onnx_artifact), "--data", str(category)]
    answer = CliRunner().invoke(bench, [*words, "--output", str(output)])
    assert answer.exit_code == 0, answer.output
    assert [Path(line.split()[0]).name for line in answer.output.splitlines()] == [
        "artifact",
        "cable.safetensors",
        "cable-fp32.onnx",
    ]
    result = json.loads(output.read_text())
    assert len(result["rows"]) == 2
    assert result["trained"]["teacher"] == {"source": "random"}
    assert {"command", "cpu", "versions", "time", "commit"} <= set(result["environment"])


def test_a_missing_artifact_is_one_line(category, tmp_path):
    words = ["agreement", str(tmp_path / "no.onnx"), "--data", str(category)]
    answer = CliRunner().invoke(bench, words)
    assert answer.exit_code == 1
    assert answer.output.startswith("Error: ")
    assert len(answer.output.splitlines()) == 1
