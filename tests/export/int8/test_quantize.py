"""fp32 artifact to int8 artifact, on the small random network."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from destseg_deploy.errors import DataError, ExportError, SpecError
from destseg_deploy.loading import load
from destseg_deploy.spec import FusionRecord, ModelSpec, ParityRecord
from destseg_deploy.testing import fake_spec
from destseg_export.fusions.apply import FOR_INT8, fuse
from destseg_export.int8 import judge, measured, quantize
from destseg_export.int8.budget import rank_layers
from destseg_export.int8.calibrate import measure_ranges
from destseg_export.int8.networks import NETWORKS
from destseg_export.int8.qdq import Range, find_layers, quantize_layers, tensors_around
from destseg_export.int8.quantize import (
    Int8Options,
    quantize_artifact,
    read_labelled,
    read_source,
)
from tests.unchanged import unchanged


@pytest.fixture(scope="module")
def int8(onnx_artifact, category, tmp_path_factory):
    """Quantised with a budget that anything meets: what a random network loses says nothing.

    Only its segmentation network: 8 bit in a random teacher moves the maps beyond recognition.
    """
    path = tmp_path_factory.mktemp("int8") / "cable-int8.onnx"
    patch = pytest.MonkeyPatch()
    patch.setattr(measured, "rank_layers", lambda proto, layers, *rest: dict.fromkeys(layers, 0.0))
    # Its images are few and a random network guesses: both are refused; see test_judge.
    patch.setattr(judge, "LEAST_CALIBRATION", 4)
    patch.setattr(quantize, "split", lambda images: (images, images))
    patch.setattr(quantize, "check_reference", lambda answers: None)
    patch.setattr(quantize, "check_kept", lambda before, after, max_drop: 1.0)
    patch.setattr(judge, "MAP_LIMIT", 2.0)
    patch.setattr(judge, "SCORE_LIMIT", 2.0)
    quantize_artifact(
        onnx_artifact,
        path,
        category / "train" / "good",
        labelled=category,
        options=Int8Options(parts=("segmentation_net",), max_drop=100, images=4),
    )
    patch.undo()
    return path


def test_it_answers_like_the_fp32_artifact(onnx_artifact, int8, frames):
    with load(onnx_artifact) as plain, load(int8) as quantized:
        wanted, found = plain(frames), quantized(frames)
    close = np.corrcoef(wanted.anomaly_map.ravel(), found.anomaly_map.ravel())[0, 1]
    other = np.roll(found.anomaly_map, 1, axis=0)
    assert close > 0.9
    assert np.corrcoef(wanted.anomaly_map.ravel(), other.ravel())[0, 1] < close - 0.1, "control"
    assert np.abs(wanted.anomaly_map - found.anomaly_map).max() > 1e-4, "it is int8"


def test_the_layer_that_moves_the_maps_most_ranks_first(onnx_artifact, frames):
    proto, _ = fuse(onnx.load(onnx_artifact), FOR_INT8)
    layers = find_layers(proto, ("segmentation_net",))[-3:]
    ranges = measure_ranges(proto, tensors_around(proto, layers), frames)
    spoiled = next(n.input[0] for n in proto.graph.node if n.name == layers[1])
    ranges[spoiled] = Range(0.0, ranges[spoiled].high / 100)  # what it reads is cut off
    told = []
    moved = rank_layers(
        proto,
        layers,
        lambda kept: quantize_layers(proto, kept, ranges, "u8"),
        frames,
        ["anomaly_map", "score"],
        lambda *step: told.append(step),
    )
    assert next(iter(moved)) == layers[1]
    assert set(moved) == set(layers)
    assert told == [(i, 3, layer) for i, layer in enumerate(layers, 1)]


def test_openvino_reads_the_same_file(int8, frames):
    pytest.importorskip("openvino")
    from destseg_deploy.options import OpenVinoOptions
    from destseg_deploy.runtime.openvino_runtime import OpenVinoRuntime

    with load(int8) as ort:
        wanted = ort(frames)
    runtime = OpenVinoRuntime(int8, options=OpenVinoOptions(threads=1))
    found = runtime.infer(frames)
    runtime.close()
    assert np.corrcoef(wanted.anomaly_map.ravel(), found.anomaly_map.ravel())[0, 1] > 0.98


def test_the_spec_says_what_was_done(int8):
    spec = ModelSpec.read(int8)
    assert spec.precision == "int8"
    made = spec.quantization
    assert spec.parity is None
    assert None not in (made.fp32, made.int8, made.drop, made.max_drop)
    assert set(made.moved_alone) == {*made.layers, *made.given_back}
    assert spec.threshold.score == 0.5
    assert spec.threshold.rule.startswith("set for fp32: ")
    assert made.scheme == "u8"
    assert made.share_of_macs > 0.6
    model = onnx.load(int8, load_external_data=False)
    contract = json.loads({p.key: p.value for p in model.metadata_props}["destseg"])
    assert contract["precision"] == "int8"
    calibration = json.loads(int8.with_name("cable-int8-calibration.json").read_text())
    assert calibration["normal"] == calibration["synthetic"] == 4
    assert all(each["low"] <= each["high"] for each in calibration["ranges"].values())


def test_each_layer_has_a_corrected_bias_and_the_most_harmful_are_in_float(onnx_artifact, int8):
    layers = ModelSpec.read(int8).quantization.layers
    corrected = {f"{layer}_corrected_bias" for layer in layers}
    names = {t.name for t in onnx.load(int8).graph.initializer}
    assert corrected == {name for name in names if name.endswith("_corrected_bias")}
    proto, _ = fuse(onnx.load(onnx_artifact), FOR_INT8)
    among = find_layers(proto, ("segmentation_net",))
    assert set(layers) < set(among), "a fiftieth of the arithmetic stays in float32"


def test_only_the_part_asked_for_is_in_int8(int8):
    held = [t.name for t in onnx.load(int8).graph.initializer if t.name.endswith("_quantized")]
    assert held
    assert all("segmentation_net" in name for name in held)
    assert not any("head.4" in name for name in held)


def test_all_convolutions_but_the_last_may_be_quantised(onnx_artifact):
    proto, _ = fuse(onnx.load(onnx_artifact), FOR_INT8)
    layers = set(find_layers(proto, Int8Options().parts))
    assert len(layers) > 50
    left = [n for n in proto.graph.node if n.op_type == "Conv" and n.name not in layers]
    assert [node.input[1] for node in left] == ["model.segmentation_net.head.4.weight"]


@pytest.mark.parametrize("part", NETWORKS)
def test_a_part_is_all_the_weights_whose_names_begin_so(onnx_artifact, part):
    proto = onnx.load(onnx_artifact)
    layers = set(find_layers(proto, [part]))
    weights = [node.input[1] for node in proto.graph.node if node.name in layers]
    assert weights
    assert all(name.startswith(f"model.{part}") for name in weights)


def test_an_int8_artifact_is_not_quantised_again(int8, category, tmp_path):
    with pytest.raises(ExportError, match="int8 onnx, expected an fp32"):
        quantize_artifact(int8, tmp_path / "x.onnx", category / "train" / "good")


def test_a_budget_that_cannot_be_met_writes_nothing(onnx_artifact, category, tmp_path, monkeypatch):
    monkeypatch.setattr(judge, "largest_loss", lambda before, after: 10.0)
    monkeypatch.setattr(judge, "MAP_LIMIT", 2.0)
    monkeypatch.setattr(judge, "SCORE_LIMIT", 2.0)
    monkeypatch.setattr(judge, "LEAST_CALIBRATION", 2)
    monkeypatch.setattr(quantize, "split", lambda images: (images, images))
    monkeypatch.setattr(quantize, "check_reference", lambda answers: None)
    monkeypatch.setattr(
        measured, "rank_layers", lambda proto, layers, *rest: dict.fromkeys(layers[:3], 0.0)
    )
    with (
        unchanged(tmp_path),
        pytest.raises(ExportError, match=r"Best found: 10\.00 points and .* with 3 of 3 layers"),
    ):
        quantize_artifact(
            onnx_artifact,
            tmp_path / "made" / "x.onnx",
            category / "train" / "good",
            options=Int8Options(images=2),
        )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"scheme": "s4"}, "scheme 's4': expected u8 or s8"),
        ({"parts": ("student_net.head",)}, "part 'student_net.head'"),
        ({"max_drop": -1}, "max_drop: -1, expected 0 to 100"),
        ({"max_drop": math.nan}, "max_drop: nan, expected 0 to 100"),
        ({"images": -1}, "images: -1, expected 1 to"),
    ],
)
def test_options_out_of_range_are_refused(values, words):
    with pytest.raises(ExportError, match=words):
        Int8Options(**values)


@pytest.mark.parametrize(
    ("fusions", "told"), [(FOR_INT8[:2], 0), ((*FOR_INT8[:2], "shortcuts", "kernels"), 1)]
)
def test_a_source_that_was_fused_for_float32_is_said_to_be_slower(
    tiny_artifact, tmp_path, fusions, told
):
    source = Path(shutil.copy(tiny_artifact, tmp_path))
    alike = ParityRecord("x.onnx", "images", 1, 0.0, 0.0, 1.0)
    made = FusionRecord(tuple(fusions), alike)
    replace(ModelSpec.read(tiny_artifact), fusion=made).write(source)
    lines = []
    read_source(source, Int8Options(), lines.append)
    assert len(lines) == told
    assert all("(shortcuts, kernels), which makes int8 slower" in line for line in lines)


def test_a_defect_whose_mask_vanishes_is_still_one(tmp_path):
    """Its image counted as a good part."""
    for kind, side in (("good", 0), ("tiny", 1), ("big", 90)):
        mask = np.zeros((256, 256), np.uint8)
        mask[10 : 10 + side, 10 : 10 + side] = 255
        for i, name in enumerate((f"d/{kind}", f"d/masks/{kind}")):
            (tmp_path / name).mkdir(parents=True)
            if i == 0 or side:
                Image.fromarray(np.stack([mask] * 3, 2)).save(tmp_path / name / "0.png")
    found = read_labelled(tmp_path / "d", fake_spec())
    assert found.masks.any(axis=(1, 2)).tolist() == [False, True, False]
    assert found.labels.tolist() == [False, True, True]


def test_bad_images_are_refused(onnx_artifact, category, tmp_path):
    with pytest.raises(DataError, match="no images in it"):
        quantize_artifact(onnx_artifact, tmp_path / "x.onnx", tmp_path)
    (tmp_path / "x.onnx").write_bytes(b"")
    with pytest.raises(SpecError):
        quantize_artifact(tmp_path / "x.onnx", tmp_path / "y.onnx", category / "train" / "good")
