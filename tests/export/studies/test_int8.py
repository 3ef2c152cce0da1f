"""The study of INT8: its variants, and its command up to the table of the report."""

import json

import onnx
import pytest
from click.testing import CliRunner

from destseg_bench.report.tables import tables_of
from destseg_deploy.files import sha256
from destseg_export.cli.studies import study_int8_command
from destseg_export.fusions.apply import FOR_INT8, fuse
from destseg_export.int8 import judge, measured
from destseg_export.int8.measured import Measured
from destseg_export.int8.qdq import find_layers
from destseg_export.studies import int8 as int8_study


@pytest.fixture
def few(monkeypatch):
    """Few images calibrate, and no layer is run alone."""
    monkeypatch.setattr(judge, "LEAST_CALIBRATION", 4)
    monkeypatch.setattr(
        measured, "rank_layers", lambda proto, layers, *rest: dict.fromkeys(layers, 1.0)
    )


def test_each_share_is_tried_with_biases_as_they_were_and_corrected(onnx_artifact):
    proto, _ = fuse(onnx.load(onnx_artifact), FOR_INT8)
    layers = find_layers(proto, ("segmentation_net",))
    found = Measured(proto, "u8", {}, {}, dict.fromkeys(layers, 1.0))
    variants = int8_study.list_variants(found)
    assert [one.corrected for one in variants] == [False, True] * (len(variants) // 2)
    assert (variants[0].in_float32, variants[0].share) == (0, 0.0)
    assert [one.share for one in variants] == sorted(one.share for one in variants)
    assert max(one.share for one in variants) <= max(int8_study.IN_FLOAT32)
    for one in variants:
        assert found.ranked[one.in_float32 :] == list(one.in_int8)
        left = found.ranked[: one.in_float32]
        assert one.share == pytest.approx(
            sum(found.macs[layer] for layer in left) / sum(found.macs.values())
        )


def test_the_command_writes_what_the_report_shows(
    few, onnx_artifact, category, tmp_path, monkeypatch
):
    monkeypatch.setattr(int8_study, "IN_FLOAT32", (0.0, 0.9))
    output = tmp_path / "study.json"
    call = [onnx_artifact, "--good", category / "train" / "good", "--labelled", category]
    call += ["--images", 8, "--part", "segmentation_net", "--output", output]
    result = CliRunner().invoke(study_int8_command, list(map(str, call)))
    assert result.exit_code == 0, result.output
    written = json.loads(output.read_text())
    exact, plain, corrected, rest_plain, rest_corrected = written["rows"]
    assert written["artifact"] == sha256(onnx_artifact)
    assert exact["float32_share"] == 1.0
    assert "score_rms" not in exact
    assert [row.get("biases") for row in written["rows"]] == [
        None, *["as they were", "corrected"] * 2
    ]  # fmt: skip
    assert plain["in_float32"] == 0 < rest_plain["in_float32"] < exact["in_float32"]
    assert plain["map_mean_abs"] > 3 * rest_plain["map_mean_abs"] > 0
    assert corrected["map_mean_abs"] < plain["map_mean_abs"]
    assert rest_corrected["score_rms"] != rest_plain["score_rms"]
    for row in (plain, corrected):
        assert 0 < row["score_rms"] <= row["score_max_abs"]
        assert row["map_mean_abs"] < row["map_max_abs"]
    lines = result.stdout.splitlines()
    assert len(lines) == 1 + len(written["rows"])
    (table,) = tables_of(written, "study.json")
    assert len(table.rows) == len(written["rows"])
    assert table.rows[0][2] != "corrected" == table.rows[2][2]
