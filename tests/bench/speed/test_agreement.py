"""Artifacts that agree, and one that does not."""

import json
from dataclasses import replace

import pytest

from destseg_bench.speed import agreement
from destseg_bench.speed.agreement import measure_agreement
from destseg_bench.speed.contenders import list_runtimes, open_runtime
from destseg_deploy.errors import BackendError
from destseg_deploy.models.weights import load_checkpoint, save_checkpoint
from tests.bench.calls import refuse, succeed


def test_the_same_model_agrees_with_itself(checkpoint, onnx_artifact, category, tmp_path):
    output = tmp_path / "results" / "agreement.json"
    words = ["agreement", checkpoint, onnx_artifact, "--data", category, "--output", output]
    title, heads, *lines = succeed(*words).output.splitlines()
    assert "cable" in title
    assert heads.split()[0] == "artifact"
    assert [line.split()[0] for line in lines[:2]] == ["cable.safetensors", "cable-fp32.onnx"]
    result = json.loads(output.read_text())
    torch_row, ort_row = result["rows"]
    assert (torch_row["score_max_abs"], torch_row["map_max_abs"]) == (0, 0)
    assert 0 < ort_row["map_max_abs"] < 1e-4
    assert ort_row["image_auroc"] == pytest.approx(torch_row["image_auroc"], abs=1e-6)
    assert 0 < torch_row["pixel"]["ap"] < 1
    assert result["trained"]["teacher"] == {"source": "random"}
    assert {"command", "cpu", "versions", "time", "commit"} <= set(result["environment"])


def test_another_model_does_not_agree(checkpoint, category, tmp_path):
    model, spec = load_checkpoint(checkpoint)
    model.segmentation_net.head[4].bias.data += 0.5
    other = tmp_path / "other.safetensors"
    save_checkpoint(model, replace(spec, category="other"), other)
    seen: list[tuple[int, int, str]] = []
    saved: list[int] = []
    _, row = measure_agreement(
        list_runtimes([checkpoint, other], device="cpu"),
        category,
        report=lambda *step: seen.append(step),
        save=lambda rows: saved.append(len(rows)),
    )
    assert row["score_max_abs"] > 1e-2
    assert row["map_max_abs"] > 1e-2
    total = seen[0][1]
    assert [done for done, _, _ in seen] == list(range(1, total + 1)), "over both artifacts"
    assert saved == [1, 2], "one by one"


def test_why_scores_must_differ_is_said(checkpoint, category, tmp_path):
    """The reader would look for a fault of the export."""
    model, spec = load_checkpoint(checkpoint)
    fewer = tmp_path / "fewer.safetensors"
    save_checkpoint(model, replace(spec, output=replace(spec.output, top_k=2)), fewer)
    output = tmp_path / "agreement.json"
    done = succeed("agreement", checkpoint, fewer, "--data", category, "--output", output).output
    first, second = json.loads(output.read_text())["rows"]
    assert "other_scores" not in first
    assert second["map_max_abs"] == 0 < second["score_max_abs"]
    words = "the score is the mean of 2 pixels, and was of 6 in cable.safetensors"
    assert second["other_scores"] == words
    assert f"fewer.safetensors: {words}." in done


def test_a_missing_artifact_is_one_line(category, tmp_path):
    refuse("no.onnx", "agreement", tmp_path / "no.onnx", "--data", category)


def _failing(name, error):
    """Return what opens every contender but one, which fails with an error."""

    def opened(one):
        if one.artifact.name == name:
            raise error
        return open_runtime(one)

    return opened


@pytest.mark.parametrize(
    ("number", "error"),
    [(0, BackendError("no kernel for bf16")), (1, RuntimeError("CUDA out of\nmemory"))],
)
def test_one_that_fails_costs_its_own_row(
    checkpoint, onnx_artifact, category, tmp_path, monkeypatch, error, number
):
    """Also the first: then the next one is what the others are compared with."""
    artifacts = [checkpoint, onnx_artifact]
    broken = artifacts[number]
    monkeypatch.setattr(agreement, "open_runtime", _failing(broken.name, error))
    output = tmp_path / "agreement.json"
    done = succeed("agreement", *artifacts, "--data", category, "--output", output).output
    rows = json.loads(output.read_text())["rows"]
    assert rows[number]["skipped"] == " ".join(str(error).split())
    assert "image_auroc" not in rows[number]
    assert rows[1 - number]["map_max_abs"] == 0
    assert f"{broken.name} skipped: {' '.join(str(error).split())}" in done
    assert ("to PyTorch" in done) == (number == 1)


def test_all_that_fail_are_an_error(checkpoint, category, monkeypatch):
    monkeypatch.setattr(agreement, "open_runtime", _failing(checkpoint.name, BackendError("no")))
    refuse("cable.safetensors: no", "agreement", checkpoint, "--data", category)


def test_half_competes_with_its_own_row(checkpoint):
    names = [one.name for one in list_runtimes([checkpoint], device="cpu", half="bf16")]
    assert names == ["cable.safetensors", "cable.safetensors, PyTorch bf16"]


def test_files_of_one_name_are_told_apart_by_their_folders(checkpoint, tmp_path):
    other = tmp_path / checkpoint.name
    for source in (checkpoint, checkpoint.with_suffix(".json")):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    names = [one.name for one in list_runtimes([checkpoint, other], device="cpu")]
    assert names == [checkpoint.as_posix(), other.as_posix()]
    assert [one.name for one in list_runtimes([other], device="cpu")] == [other.name]
