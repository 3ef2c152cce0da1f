"""What each fusion is worth: pairs of rounds, the interval of their median, the command."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from destseg_bench.speed.fusions import (
    cut_from_each_end,
    list_variants,
    paired_ratio,
    time_fusions,
)
from destseg_deploy.errors import DataError, ExportError
from destseg_deploy.spec import FileRecord, FusionRecord, ModelSpec, ParityRecord
from tests.bench.calls import succeed


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 10, 30, 101])
def test_the_interval_is_the_sign_tests(count):
    cut = cut_from_each_end(count)
    assert binom.cdf(cut, count, 0.5) <= 0.025 or cut == 0
    assert binom.cdf(cut + 1, count, 0.5) > 0.025 or cut == (count - 1) // 2


FUSION = FusionRecord((), ParityRecord("x", "images", 2, 0.0, 0.0, 0.5), 2, 1)


def test_the_interval_holds_the_median_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        shared = rng.lognormal(0, 0.5, 20)  # what the machine does to both in a round
        ratio = paired_ratio(1.1 * shared * rng.lognormal(0, 0.1, 20), shared)
        hits += ratio.low <= 1.1 <= ratio.high
    assert 940 <= hits <= 990


def test_rounds_are_compared_in_pairs():
    slow_machine = [1.0, 10.0, 100.0]
    ratio = paired_ratio([2.0, 20.0, 200.0], slow_machine)
    assert (ratio.low, ratio.median, ratio.high) == (2.0, 2.0, 2.0)


def test_a_folder_without_variants_is_refused(tmp_path):
    (tmp_path / "fused.onnx").touch()
    with pytest.raises(DataError, match="fuse PLAIN --each FOLDER"):
        list_variants(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"fusion": FusionRecord((), ParityRecord("x", "images", 2, 0.0, 0.0, 0.5), 2, 1)},
            "a fused graph, expected the fp32 export",
        ),
        ({"precision": "int8"}, "int8, expected the fp32 export"),
        ({"checkpoint": FileRecord("other.safetensors", "0" * 64)}, "of another checkpoint"),
    ],
)
def test_files_that_differ_by_more_than_fusions_are_refused(onnx_artifact, tmp_path, change, words):
    spec = ModelSpec.read(onnx_artifact)
    for name in ("fused", "without-stems", "plain"):
        path = tmp_path / f"{name}.onnx"
        path.touch()
        replace(spec, **change if name == "plain" else {}).write(path)
    frames = np.zeros((1, *spec.size, 3), np.uint8)
    with pytest.raises(DataError, match=words):
        time_fusions(tmp_path / "plain.onnx", tmp_path, frames, "onnxruntime", rounds=1)


def test_each_fusion_is_left_out_and_timed(onnx_artifact, category, tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    pytest.importorskip("onnx")
    from destseg_export.fusions import apply as fuse_variants

    monkeypatch.setattr(fuse_variants, "DEFAULT", ("pooled-branch", "duplicates"))
    told: list[str] = []
    images = sorted(category.glob("test/good/*"))  # fewer than would be drawn without
    written = fuse_variants.write_variants(
        onnx_artifact, tmp_path, images=images, report=told.append
    )
    assert [path.name for path in written] == ["fused.onnx", "without-pooled-branch.onnx"]
    assert any(line.startswith("duplicates: changes nothing") for line in told)
    with pytest.raises(ExportError, match="fused already"):
        fuse_variants.write_variants(tmp_path / "fused.onnx", tmp_path / "again")
    assert not (tmp_path / "again").exists()
    output = tmp_path / "rewrites.json"
    words = ["rewrites", onnx_artifact, tmp_path, "--images", category / "test", "--rounds", "2"]
    lines = succeed(*words, "--output", output).output.splitlines()
    names = ["fused", "plain", "without pooled-branch"]
    assert [line.split("  ")[0] for line in lines[2:5]] == names
    result = json.loads(output.read_text())
    assert result["complete"]
    rows = {(row["contender"], row["back_end"]): row for row in result["rows"]}
    assert len(rows) == 3 * 2
    for back_end in ("onnxruntime", "openvino"):
        costs = [rows[name, back_end]["gmac"] for name in names]
        assert costs[0] < costs[1] == costs[2]
        assert rows["fused", back_end]["ratio"]["median"] == 1.0
        assert f"{back_end} 95 %" in lines[1]
