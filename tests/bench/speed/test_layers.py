"""The profile holds the whole network, and its groups are what the table calls them."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from destseg_bench.cli.cpu import layers as command
from destseg_bench.speed.cpu_rates import Rate
from destseg_bench.speed.layers import Layer, group_layers, profile_layers
from destseg_deploy.options import OpenVinoOptions, OrtOptions


@pytest.fixture(scope="module")
def arithmetic(onnx_artifact) -> int:
    """The multiply-accumulates of the graph's convolutions, for an image."""
    ir = pytest.importorskip("onnx_ir")
    from destseg_export.graph.edit import nodes
    from destseg_export.graph.macs import macs_of

    return sum(macs_of(node) for node in nodes(ir.load(onnx_artifact), "Conv"))


@pytest.mark.parametrize("options", [OrtOptions(threads=1), OpenVinoOptions(threads=1)], ids=repr)
@pytest.mark.parametrize("batch", [1, 2])
def test_the_convolutions_are_all_there(onnx_artifact, arithmetic, options, batch):
    if isinstance(options, OpenVinoOptions):
        pytest.importorskip("openvino")
    frames = np.random.default_rng(0).integers(0, 256, (batch, 64, 64, 3)).astype(np.uint8)
    found = profile_layers(onnx_artifact, frames, options, runs=2)
    convolutions = [one for one in found if one.macs]
    # OpenVINO runs those of one pixel, of the pooled branch, as products of matrices.
    assert sum(one.macs for one in convolutions) == pytest.approx(batch * arithmetic, rel=2e-3)
    assert {one.precision for one in convolutions} == {"fp32"}
    assert "7x7, 3 to 64, 32x32" in {one.shape for one in convolutions}
    assert {one.group for one in found} >= {"top-T", "norms and means", "reorders and copies"}
    assert all(one.milliseconds >= 0 for one in found)


def test_groups_add_up_and_know_the_machine():
    layers = [
        Layer("Conv", 2.0, "fp32", "3x3, 8 to 8, 4x4", 6_000_000),
        Layer("FusedConv", 1.0, "fp32", "3x3, 8 to 8, 4x4", 3_000_000),
        Layer("TopK", 1.0, "fp32"),
        Layer("Mul", 4.0, "fp32"),
    ]
    rows = group_layers(layers, [Rate("fp32", "a", "x", 6.0)])
    assert [row["name"] for row in rows] == [
        "sums, products, activations",
        "convolution 3x3, 8 to 8, 4x4",
        "top-T",
    ]
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert rows[1]["count"] == 2
    assert rows[1]["gmac_per_second"] == pytest.approx(3)
    assert rows[1]["rate_share"] == pytest.approx(0.5)
    assert "rate_share" not in group_layers(layers)[1]


def test_the_command_prints_and_writes_the_table(onnx_artifact, category, tmp_path):
    output = tmp_path / "layers.json"
    words = [str(onnx_artifact), "--images", str(category / "test"), "--runs", "1"]
    done = CliRunner().invoke(command, [*words, "--output", str(output)])
    assert done.exit_code == 0, done.output
    result = json.loads(output.read_text())
    assert result["rows"][0]["name"].startswith("convolution")
    assert "cable-fp32.onnx in onnxruntime, batch 1" in done.output
    refused = CliRunner().invoke(command, [*words, "--device", "cuda"])
    assert refused.exit_code == 2
    assert "tell the times of layers" in refused.output
