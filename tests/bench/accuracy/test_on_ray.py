"""destseg-bench accuracy on a real Ray, on this machine: make test-ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="the extra ray is not installed: make test-ray")
pytest.importorskip("torch")

from destseg_deploy.data.sample.category import write_sample
from tests.trained_files import trained_files

ROOT = Path(__file__).resolve().parents[3]


def accuracy(place: Path, out: str, *more: str) -> str:
    """Train and measure two seeds; return what is printed."""
    words = [
        *(sys.executable, "-m", "destseg_bench", "accuracy", "--data", "data"),
        *("--category", "cable", "--seeds", "0,1", "--size", "64", "--batch-size", "2"),
        *("--steps", "1,1", "--teacher", "random", "--threads", "1", "--device", "cpu"),
        *("--train-into", out, "--output", f"{out}.json", *more),
    ]
    paths = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}"}
    done = subprocess.run(words, cwd=place, env=paths, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


def measured(path: Path) -> dict[str, Any]:
    """Return the results without the duration of the training and what the command was."""
    kept: dict[str, Any] = json.loads(path.read_text())
    del kept["environment"]
    for one in kept["runs"]:
        assert one.pop("seconds") >= 0
    return kept


def test_a_cluster_measures_what_one_process_measures(tmp_path: Path) -> None:
    write_sample(tmp_path / "data", size=64, train=6, good=3, per_defect=1)
    here, on_ray = accuracy(tmp_path, "here"), accuracy(tmp_path, "ray", "--on", "ray")
    assert on_ray == here
    results = measured(tmp_path / "ray.json")
    assert [one["seed"] for one in results["runs"]] == [0, 1]
    assert results["complete"] is True
    assert results == measured(tmp_path / "here.json")
    assert trained_files(tmp_path / "ray") == trained_files(tmp_path / "here")
    for folder in ("ray", "here"):
        for path in (tmp_path / folder).glob("*.safetensors"):
            path.unlink()  # 140 MB each
