"""The study of half: its rows, its command, and what it says of a network that overflows."""

import json

import onnx
import pytest
from click.testing import CliRunner

from destseg_deploy.files import sha256
from destseg_export.cli.studies import study_half_command
from destseg_export.half.convert import ISLANDS
from destseg_export.studies import half as half_study
from tests.export.half.cases import SCALE, scale_student, with_opset


@pytest.fixture
def large_student(onnx_artifact, monkeypatch):
    """The traced graph with a student whose sum of squares passes fp16's range; same answers."""
    large = scale_student(onnx.load(onnx_artifact), SCALE)
    monkeypatch.setattr(half_study, "trace", lambda model, spec, opset: with_opset(large, opset))


def test_each_island_is_removed_once():
    variants = half_study.list_variants()
    removed = [v for v in variants if len(v.islands) == len(ISLANDS) - 1]
    assert [v.name for v in removed] == [f"fp16 without {part}" for part in ISLANDS]
    for variant, part in zip(removed, ISLANDS, strict=True):
        assert set(ISLANDS) - set(variant.islands) == {part}
    assert [v.name for v in variants if not v.emulated] == ["fp16, no islands, not emulated"]


def test_the_command_writes_what_was_measured(checkpoint, category, large_student, tmp_path):
    """All of it on tiny images, with the variants that tell most."""
    output = tmp_path / "study.json"
    told = {"fp16", "fp16, no islands", "fp16, no islands, not emulated"}
    chosen = [v for v in half_study.list_variants() if v.name in told]
    assert len(chosen) == len(told)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(half_study, "list_variants", lambda: chosen)
        call = [str(checkpoint), "--data", str(category), "--output", str(output)]
        result = CliRunner().invoke(study_half_command, [*call, "--threads", "1"])
    assert result.exit_code == 0, result.output
    written = json.loads(output.read_text())
    rows = {row["variant"]: row for row in written["rows"]}
    assert list(rows) == ["PyTorch fp32", *(v.name for v in chosen)]
    assert written["checkpoint"] == sha256(checkpoint)
    assert written["environment"]["versions"]["onnxruntime"]
    assert rows["fp16"]["pixel_ap"] == pytest.approx(rows["PyTorch fp32"]["pixel_ap"], abs=0.02)
    assert rows["fp16"]["coarse_map"] < 0.05
    wrong, blind = rows["fp16, no islands"], rows["fp16, no islands, not emulated"]
    assert "differs from PyTorch" in wrong["refused"]
    assert wrong["map_mean_abs"] > 10 * blind["map_mean_abs"]
    assert wrong["coarse_map"] > 0.5
    assert written["activations"]["sum_of_squares"] > 65504
    assert written["activations"]["pooled_sum"] > 0
    assert len(written["activations"]["largest"]) == half_study.LISTED
    lines = result.stdout.splitlines()
    assert len(lines) == 1 + len(rows)
    assert lines[1].endswith("reference")
    assert lines[1 + list(rows).index("fp16, no islands")].endswith("NG")


def test_the_size_of_the_images_is_taken_for_a_resize_in_the_graph(
    checkpoint, category, monkeypatch, tmp_path
):
    seen = {}

    def record(checkpoint, category, *, input_size, **options):
        seen["size"] = input_size
        return {"rows": [], "activations": {}}

    monkeypatch.setattr(half_study, "study_half", record)
    call = [str(checkpoint), "--data", str(category), "--in-graph"]
    assert CliRunner().invoke(study_half_command, call).exit_code == 0
    assert seen == {"size": (64, 64)}


def test_a_folder_that_is_no_category_is_refused(checkpoint, tmp_path):
    call = [str(checkpoint), "--data", str(tmp_path), "--in-graph"]
    result = CliRunner().invoke(study_half_command, call)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {tmp_path}")
    assert len(result.stderr.splitlines()) == 1
