"""The measurement of the C ABI's overhead: its artifact, its statistics, a short run."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from destseg_deploy.loading import load
from tests.cpp.library import CPP, run

SCRIPT = CPP / "test/measure_overhead.py"


@pytest.fixture(scope="module")
def tool() -> dict:
    pytest.importorskip("onnx")
    return runpy.run_path(str(SCRIPT))


def test_the_copying_artifact_copies(tool, tmp_path):
    path = tool["write_copying"](tmp_path, 32)
    frame = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    with load(path) as predictor:
        found = predictor(frame)
    third = frame.reshape(3, 32, 32)[0].astype(np.float32) / np.float32(255)
    assert np.array_equal(found.anomaly_map[0], third)
    assert found.score[0] == third.max()


def test_the_error_of_a_median_is_not_that_of_its_outliers(tool):
    error = tool["standard_error_of_median"]
    values = np.random.default_rng(0).normal(0, 1, 10_000)
    assert error(values) == pytest.approx(1.2533 / 100, rel=0.2)
    slow = np.concatenate([values, np.full(50, 1e6)])
    assert error(slow) == pytest.approx(error(values), rel=0.2)
    assert np.std(slow) / 100 > 100 * error(slow)  # what the mean's formula would say


def test_a_short_run_measures_every_contender(tool, library, prefix, onnx_artifact, tmp_path):
    for backend in tool["BACKENDS"]:
        library.need(backend)
    program = prefix.parent / "build/test/destseg_overhead"
    counts = ["--calls", 3, "--copying-calls", 40, "--rounds", 2, "--copying-size", 64]
    output = tmp_path / "overhead.json"
    done = run(sys.executable, SCRIPT, program, onnx_artifact, *counts, "--output", output)
    assert done.stdout.count("ABI ") == 4
    rows = json.loads(output.read_text())["rows"]
    assert [(Path(row["artifact"]).stem, row["backend"], row["calls"]) for row in rows] == [
        ("copies-64", "onnxruntime", 40),
        ("copies-64", "openvino", 40),
        (onnx_artifact.stem, "onnxruntime", 3),
        (onnx_artifact.stem, "openvino", 3),
    ]
    for row in rows:
        times = {name: values["p50"] for name, values in row["milliseconds"].items()}
        assert set(times) == {"bare", "bare-again", "abi", "abi-null"}
        assert 0 < times["abi-null"] < times["bare"]
