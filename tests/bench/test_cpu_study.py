"""The CPU study on the small network: rows for every setup, and what a failing process says."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from destseg_bench import cold_start
from destseg_bench.cpu_setups import Setup, list_setups, open_setup
from destseg_bench.cpu_study import judge_setups, time_setups
from destseg_deploy.errors import BackendError

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def setups(checkpoint, onnx_artifact):
    return [
        Setup(checkpoint, "pytorch", "fp32"),
        Setup(onnx_artifact, "onnxruntime", "plain"),
        Setup(onnx_artifact, "openvino", "plain"),
    ]


def test_every_file_meets_every_back_end(tmp_path):
    files = [tmp_path / name for name in ("a.safetensors", "a-plain.onnx", "a.onnx", "a-int8.onnx")]
    names = [s.name for s in list_setups(*files[:3], files[3:], compiled=True)]
    assert names[:2] == ["pytorch, fp32", "compiled, fp32"]
    assert len(names) == len(set(names)) == 2 + 3 * 3
    assert "openvino-bf16, a-int8" in names
    assert "compiled, fp32" not in [s.name for s in list_setups(*files[:3], [], compiled=False)]


def test_setups_are_timed_side_by_side_and_judged(setups, category):
    rows = time_setups(setups, category, rounds={1: 1, 2: 1}, warmup=1, threads=1)
    assert [(row["name"], row["batch"]) for row in rows] == [
        (setup.name, batch) for batch in (1, 2) for setup in setups
    ]
    assert rows[0]["times_faster"] == 1.0
    assert all(row["median"] > 0 for row in rows)
    found = judge_setups(setups, category, threads=1)
    assert list(found) == [setup.name for setup in setups]
    for name in ("pixel AP", "image AUROC", "PRO@0.3", "IAP"):
        values = [metrics[name] for metrics in found.values()]
        assert max(values) - min(values) < 0.02, "the same network"
    assert 0 < found[setups[0].name]["pixel AP"] < 1


def test_a_fresh_process_is_measured(onnx_artifact):
    found = cold_start.measure_cold_start("onnxruntime", onnx_artifact, starts=1)
    assert 0 < found["open_seconds"] < found["seconds"]
    assert found["resident_mib"] > 100


def test_a_process_that_fails_says_why(tmp_path):
    with pytest.raises(BackendError, match=r"fresh process failed: .*SpecError"):
        cold_start.measure_cold_start("onnxruntime", tmp_path / "x.onnx", starts=1)


def test_an_unknown_back_end_is_refused(onnx_artifact):
    with pytest.raises(BackendError, match="compiled: no runtime"):
        open_setup(Setup(onnx_artifact, "compiled", ""))


def test_the_command_writes_a_row_for_each_setup(
    checkpoint, onnx_artifact, category, tmp_path, monkeypatch
):
    from destseg_bench import cpu_study
    from destseg_bench.cli.cpu import cpu

    def timed(setups, data, *, rounds, threads, report):
        row = {"median": 10.0, "times_faster": 2.0}
        return [{"name": s.name, "batch": n, **row} for n in rounds for s in setups[1:]] + [
            {"name": setups[0].name, "batch": n, "skipped": "no memory"} for n in rounds
        ]

    metrics = {"pixel AP": 0.5, "image AUROC": 0.6, "PRO@0.3": 0.7, "IAP": 0.8}
    monkeypatch.setattr(cpu_study, "time_setups", timed)
    monkeypatch.setattr(cpu_study, "start_setups", lambda setups: {})
    monkeypatch.setattr(
        cpu_study, "judge_setups", lambda setups, *a, **k: {s.name: metrics for s in setups}
    )
    files = ("--checkpoint", checkpoint, "--plain", onnx_artifact, "--fused", onnx_artifact)
    output = tmp_path / "cpu.json"
    arguments = [*map(str, files), "--data", str(category), "--output", str(output)]
    result = CliRunner().invoke(cpu, arguments)
    assert result.exit_code == 0, result.output
    written = json.loads(output.read_text())
    head = {"kind", "environment", "data", "threads"}
    assert set(written) == head | {"latency", "start", "accuracy"}
    assert "openvino-bf16, fused" in result.stdout
    assert "1.2" in result.stdout, "10 ms at 8 images are 1.2 an image"
    assert "0.5000" in result.stdout


def test_a_child_s_memory_is_not_its_parent_s():
    """``getrusage`` would tell the size of this process, blown up first."""
    ballast = np.ones(100 << 20, np.uint8)
    code = (
        "from destseg_bench.cold_start import largest_resident_mib as largest; first = largest();"
        "block = bytearray(b'x' * (60 << 20)); print(first, largest())"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    first, after = map(float, told.stdout.split())
    assert len(ballast) == 100 << 20
    assert first < 95
    assert after - first > 50


@pytest.mark.parametrize("back_end", ["onnxruntime", "openvino"])
def test_a_cold_start_loads_no_torch_that_its_back_end_does_not_need(onnx_artifact, back_end):
    code = (
        "import sys; from pathlib import Path; from destseg_bench.cold_start import _first_answer;"
        f"_first_answer({back_end!r}, Path({str(onnx_artifact)!r})); print('torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert told.stdout.strip() == "False"
