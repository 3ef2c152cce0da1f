"""study_builds: one row for each build, and the command that writes them."""

import json

import onnx
import pytest
from click.testing import CliRunner

from destseg_deploy.errors import BackendError
from destseg_deploy.runtime.trt.library import load_library
from destseg_export.cli import export
from destseg_export.studies import builds as build_study
from tests.export.engine.cases import tiny_graph


@pytest.fixture
def traced(monkeypatch) -> list:
    """Replace the tracing and the conversion, which other tests do; the builds are real."""
    try:
        load_library("tensorrt-rtx")
    except BackendError as error:
        pytest.skip(f"{error} (make builders)")
    asked = []

    def trace(model, spec, opset):
        asked.append((spec.size, opset))
        return tiny_graph()

    monkeypatch.setattr(build_study, "trace", trace)
    monkeypatch.setattr(build_study, "to_half", lambda proto, kind: (tiny_graph(half=True), None))
    return asked


def test_each_graph_is_built_for_each_target_and_for_all(traced, checkpoint, monkeypatch):
    monkeypatch.setattr(build_study, "SIZES", (None,))
    monkeypatch.setattr(build_study, "PRECISIONS", ("fp32", "fp16"))
    told = []
    result = build_study.study_builds(
        checkpoint, ["sm86", "8.9"], report=lambda done, total, text: told.append((done, total))
    )
    assert traced == [((64, 64), 18)]  # once for both
    rows = [(row["precision"], row["targets"], row["half_convolutions"]) for row in result["rows"]]
    groups = [["sm_86"], ["sm_89"], ["sm_86", "sm_89"]]
    assert rows == [("fp32", g, 0) for g in groups] + [("fp16", g, 2) for g in groups]
    for row in result["rows"]:
        assert row["engine_bytes"] > 1000
        assert row["build_seconds"] > 0
        assert row["unmatched_weights"] == []
    assert told[0] == (0, 6)
    assert told[-1] == (6, 6)


def test_the_command_writes_the_rows_with_what_they_were_measured_on(
    traced, checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setattr(build_study, "SIZES", (None,))
    monkeypatch.setattr(build_study, "PRECISIONS", ("fp16",))
    output = tmp_path / "builds.json"
    call = ["study-builds", str(checkpoint), "--target", "sm86", "--output", str(output)]
    done = CliRunner().invoke(export, call)
    assert done.exit_code == 0, done.output
    result = json.loads(output.read_text())
    (row,) = result["rows"]
    assert (row["precision"], row["targets"], row["input"]) == ("fp16", ["sm_86"], [64, 64])
    assert result["builder"].startswith("TensorRT-RTX ")
    assert result["environment"]["versions"]["onnx"] == onnx.__version__
    head, _, line = done.stdout.splitlines()
    assert head == f"{result['builder']}, batch 1:8:32"
    assert line.split()[:3] == ["64x64", "fp16", "sm_86"]
    assert line.split()[-1] == "2/2"


def test_a_build_that_is_refused_is_a_row_too(traced, checkpoint, monkeypatch):
    monkeypatch.setattr(build_study, "SIZES", (None,))
    monkeypatch.setattr(build_study, "PRECISIONS", ("bf16",))
    result = build_study.study_builds(checkpoint, ["sm75"])
    (row,) = result["rows"]
    assert "GPUs of sm_75 have none" in row["refused"]
    done = CliRunner().invoke(export, ["study-builds", str(checkpoint), "--target", "sm75"])
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == f"64x64      bf16      sm_75 NG: {row['refused']}"


def test_a_target_that_cannot_be_read_is_misuse(checkpoint):
    done = CliRunner().invoke(export, ["study-builds", str(checkpoint), "--target", "ampere"])
    assert done.exit_code == 2
    assert "expected a compute capability such as sm86 or 8.6" in done.stderr
