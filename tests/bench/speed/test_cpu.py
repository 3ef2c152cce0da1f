"""The CPU study on the small network: rows of every contender, and what a failing process says."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from destseg_bench.speed import cpu as cpu_study
from destseg_bench.speed.cold_start import measure_cold_start
from destseg_bench.speed.contenders import open_artifact
from destseg_bench.speed.cpu import list_cpu_contenders, measure_cpu
from destseg_bench.speed.cpu_rates import Rate
from destseg_bench.speed.torch_contenders import computes_bf16
from destseg_deploy.errors import BackendError
from destseg_deploy.spec import ModelSpec
from tests.bench.calls import succeed

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

METRICS = ("pixel AP", "image AUROC", "PRO@0.3", "IAP")


@contextmanager
def no_progress(label):
    yield lambda done, total, name: None


def run_python(code: str) -> str:
    """Run code in a fresh process that finds what this one finds; return what it prints."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    return done.stdout


RATE = Rate("fp32", "openvino", "3x3", 60.0)


def test_every_file_meets_every_back_end_that_opens_it(onnx_artifact, tmp_path):
    names = ("a.safetensors", "a-plain.onnx", "a-fused.onnx", "a-int8.onnx", "nncf.xml")
    files = [tmp_path / name for name in names]
    for path in files:
        ModelSpec.read(onnx_artifact).write(path)
    found = list_cpu_contenders(*files[:3], files[3:], threads=2, compiled=True)
    assert [one.name for one in found] == [
        "pytorch, fp32",
        *(["pytorch, bf16"] if computes_bf16() else []),
        "compiled, fp32",
        *(f"onnxruntime, {note}" for note in ("plain", "fused", "a-int8")),
        *(f"openvino, {note}" for note in ("plain", "fused", "a-int8", "nncf")),
        *(f"openvino-bf16, {note}" for note in ("plain", "fused", "a-int8", "nncf")),
    ]
    assert {one.threads for one in found} == {2}
    # Their answers are held to the budget of the precision that computes them.
    kinds = {one.name: one.precision for one in found if one.back_end.startswith("openvino")}
    assert kinds["openvino, plain"] == "fp32"
    assert kinds["openvino-bf16, plain"] == "bf16"
    names = [one.name for one in list_cpu_contenders(*files[:3], [])]
    assert "compiled, fp32" not in names


def test_contenders_are_timed_side_by_side_and_scored(
    checkpoint, onnx_artifact, category, monkeypatch
):
    monkeypatch.setattr(cpu_study, "measure_cold_start", lambda *_, starts: {"starts": starts})
    monkeypatch.setattr(cpu_study, "measure_cpu_rates", lambda report: [RATE])
    monkeypatch.setattr(cpu_study, "_least_gmac", lambda contenders: 3.0)
    listed = list_cpu_contenders(checkpoint, onnx_artifact, onnx_artifact, [], threads=1)
    wanted = ("pytorch, fp32", "onnxruntime, plain", "openvino, plain")
    chosen = [one for one in listed if one.name in wanted]
    parts = []
    found = measure_cpu(
        chosen,
        category,
        rounds={1: 1, 2: 1},
        warmup=1,
        progress=no_progress,
        save=lambda found: parts.append(list(found)),
    )
    names = ["latency", "rates", "start", "accuracy"]
    assert parts == [names[: i + 1] for i in range(4)]
    rows, accuracy = found["latency"], found["accuracy"]
    assert [(row["name"], row["batch"]) for row in rows] == [
        (one.name, batch) for batch in (1, 2) for one in chosen
    ]
    assert rows[0]["times_faster"] == 1.0
    assert all(row["median"] > 0 for row in rows)
    for row in rows:  # 3 GMAC an image, and the CPU does 60 a second
        fastest = 1e3 * row["batch"] * 3.0 / row["lowest"]
        assert row["rate_share"] == pytest.approx(fastest / 60)
    assert list(found["start"]) == list(accuracy) == [one.name for one in chosen]
    for name in METRICS:
        values = [metrics[name] for metrics in accuracy.values()]
        assert max(values) - min(values) < 0.02, "the same network"
    assert 0 < accuracy[chosen[0].name]["pixel AP"] < 1


def test_the_command_writes_a_row_for_each_contender(
    checkpoint, onnx_artifact, category, tmp_path, monkeypatch
):
    def timed(contenders, frames, *, batches, **protocol):
        row = {"median": 10.0, "p90": 11.0, "times_faster": 2.0, "batch": batches[0], "lowest": 9.0}
        first, *others = contenders
        skipped = {"name": first.name, "batch": batches[0], "skipped": "no memory"}
        yield [skipped, *({"name": one.name, **row} for one in others)]

    monkeypatch.setattr(cpu_study, "measure_latency", timed)
    monkeypatch.setattr(cpu_study, "measure_cold_start", lambda *_, starts: {"seconds": 1.5})
    monkeypatch.setattr(cpu_study, "measure_cpu_rates", lambda report: [RATE])
    monkeypatch.setattr(cpu_study, "score_each", lambda opens, *_: opens)
    metrics = SimpleNamespace(rows=lambda: dict.fromkeys(METRICS, 0.5).items())
    monkeypatch.setattr(cpu_study, "compute_metrics", lambda test: metrics)
    output = tmp_path / "cpu.json"
    files = ["--checkpoint", checkpoint, "--plain", onnx_artifact, "--fused", onnx_artifact]
    done = succeed("cpu", *files, "--data", category, "--output", output)
    written = json.loads(output.read_text())
    head = {"kind", "environment", "data", "threads"}
    assert set(written) == head | {"latency", "rates", "start", "accuracy"}
    lines = {line.split("  ")[0]: line.split() for line in done.stdout.splitlines()}
    assert lines["openvino-bf16, fused"][2:] == [
        # 10 ms for 8 images are 1.2 an image. Not fused: the arithmetic is not known.
        *("10.0", "11.0", "2.00x", "–", "1.2", "1.4", "2.00x", "–"),  # noqa: RUF001 - the dash
        *("1.50", "–", "0.5000", "0.5000", "0.5000", "0.5000"),  # noqa: RUF001 - the table's dash
    ]


def test_a_fresh_process_is_measured(onnx_artifact):
    found = measure_cold_start("onnxruntime", onnx_artifact, starts=1)
    assert 0 < found["open_seconds"] < found["seconds"]
    assert found["resident_mib"] > 100


def test_a_process_that_fails_says_why(tmp_path):
    with pytest.raises(BackendError, match=r"fresh process failed: .*no such file"):
        measure_cold_start("onnxruntime", tmp_path / "x.onnx", starts=1)


def test_an_unknown_back_end_is_refused(onnx_artifact):
    with pytest.raises(BackendError, match="compiled: no back end"):
        open_artifact(onnx_artifact, "compiled")


def test_the_memory_of_a_child_is_not_that_of_its_parent():
    """``getrusage`` would give the size of this process, made large first."""
    ballast = np.ones(100 << 20, np.uint8)
    first, after = map(
        float,
        run_python(
            "from destseg_bench.speed.cold_start import largest_resident_mib as largest;"
            "first = largest();"
            "block = bytearray(b'x' * (60 << 20)); print(first, largest())"
        ).split(),
    )
    assert len(ballast) == 100 << 20
    assert first < 95
    assert after - first > 50


@pytest.mark.parametrize("back_end", ["onnxruntime", "openvino"])
def test_a_cold_start_loads_no_torch_that_its_back_end_does_not_need(onnx_artifact, back_end):
    told = run_python(
        "import sys; from pathlib import Path;"
        "from destseg_bench.speed.cold_start import first_answer;"
        f"first_answer({back_end!r}, Path({str(onnx_artifact)!r})); print('torch' in sys.modules)"
    )
    assert told.strip() == "False"
