"""Tiled artifacts: exported, read, fused, in half, and refused where they cannot be."""

from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx

from destseg_deploy.errors import ExportError, ShapeError, SpecError
from destseg_deploy.evaluation.metrics import top_k_mean
from destseg_deploy.loading import load
from destseg_deploy.models.weights import load_checkpoint
from destseg_deploy.options import OpenVinoOptions
from destseg_deploy.spec import (
    BatchRange,
    FileRecord,
    ModelSpec,
    RegionSpec,
    TilingSpec,
)
from destseg_export.cli import inspect
from destseg_export.cutting import Cut, remark_scale
from destseg_export.fusions.apply import fuse
from destseg_export.graph.edit import open_model
from destseg_export.graph.macs import count_macs
from destseg_export.graph.run import open_session
from destseg_export.half.convert import to_half
from destseg_export.int8.calibrate import measure_ranges
from destseg_export.int8.qdq import find_layers, quantize_layers, tensors_around
from destseg_export.int8.quantize import quantize_artifact
from destseg_export.parity import measure_parity, open_reference
from destseg_export.to_onnx import OnnxOptions, served_spec


@pytest.fixture(scope="module")
def shown() -> np.ndarray:
    """Two frames of the artifact's size."""
    noise = np.random.default_rng(0).integers(0, 256, (2, 90, 108, 3))
    return (noise * np.array([0.4, 1.0])[:, None, None, None]).astype(np.uint8)


@pytest.fixture(scope="module")
def answers(tiled_artifact, shown):
    with load(tiled_artifact) as predictor:
        return predictor(shown)


def apart(a, b) -> float:
    return float(np.abs(a.anomaly_map - b.anomaly_map).max())


def test_the_spec_says_how_frames_are_cut(tiled_artifact):
    spec = ModelSpec.read(tiled_artifact)
    assert spec.tiling == TilingSpec(0.9, 16)
    assert (spec.size, spec.network_size, spec.map_size) == ((90, 108), (64, 64), (81, 97))
    assert (spec.tiles, spec.input.batch) == (4, BatchRange(1, 1, 1))
    assert spec.output.top_k == 6
    assert spec.parity is not None
    spec.check_artifact(tiled_artifact)
    with pytest.raises(SpecError, match="says of itself that its tiling is"):
        replace(spec, tiling=TilingSpec(0.9, 17)).check_artifact(tiled_artifact)


def test_outside_of_the_region_is_0_and_the_answers_are_pytorchs(
    tiled_artifact, checkpoint, shown, answers
):
    model, trained = load_checkpoint(checkpoint)
    spec = ModelSpec.read(tiled_artifact)
    inside = spec.region.mask_at(spec.size, spec.map_size)
    assert 0 < (~inside).sum() < inside.size / 4
    assert (answers.anomaly_map[:, ~inside] == 0).all()
    assert (answers.anomaly_map[:, inside] > 0).all()
    with open_reference(model, trained, spec) as reference:
        assert apart(reference(shown), answers) < 1e-4
    # Control: another scale is not the same model.
    other = replace(spec, tiling=TilingSpec(0.89, 16), output=replace(spec.output, height=80))
    other = replace(other, output=replace(other.output, width=96))
    with open_reference(model, trained, other) as reference:
        assert np.abs(reference(shown).score - answers.score).max() > 1e-4


@pytest.mark.parametrize("cut", [True, False])
def test_pytorch_scores_as_many_pixels_as_the_artifact(tiled_artifact, checkpoint, cut):
    """Else an export with another T than the training's would be refused."""
    model, trained = load_checkpoint(checkpoint)
    spec = ModelSpec.read(tiled_artifact) if cut else served_spec(trained)
    frames = np.random.default_rng(3).integers(0, 256, (2, *spec.size, 3), np.uint8)
    for top_k in (1, 9):
        wanted = replace(spec, output=replace(spec.output, top_k=top_k))
        with open_reference(model, trained, wanted) as reference:
            found = reference(frames)
        np.testing.assert_allclose(found.score, top_k_mean(found.anomaly_map, top_k), atol=1e-6)
        other = top_k_mean(found.anomaly_map, trained.output.top_k)
        assert np.abs(found.score - other).min() > 1e-5, "control: the training's T"


def test_inspect_names_tiles_and_region(tiled_artifact):
    said = CliRunner().invoke(inspect, [str(tiled_artifact)]).output
    assert "tiles       2x2 of a frame scaled by 0.9 to 81x97, overlap 16\n" in said
    assert "region      0,3,100,87 in pixels of the frame\n" in said


def test_frames_of_another_size_are_refused(tiled_artifact, shown):
    with load(tiled_artifact) as predictor, pytest.raises(ShapeError, match="exported for 108x90"):
        predictor(shown[:, :80])


def test_openvino_gives_the_same(tiled_artifact, shown, answers):
    pytest.importorskip("openvino")
    with load(tiled_artifact, backend="openvino", options=OpenVinoOptions()) as predictor:
        assert apart(predictor(shown), answers) < 1e-3
    assert apart(answers, replace(answers, anomaly_map=answers.anomaly_map[::-1])) > 0.01  # control


def test_fusions_and_half_take_the_graph(tiled_artifact, shown, answers):
    proto = onnx.load(tiled_artifact)
    fused, report = fuse(proto, ("normalization", "stems", "products"))
    assert {one.name: bool(one.changed) for one in report} == {
        "normalization": False,
        "stems": True,
        "products": True,
    }
    assert "tiles are cut out of it" in report[0].refused[0].reason
    half, made = to_half(proto, "fp16")
    assert (made.convolutions, made.half_convolutions) == (66, 63)
    names = ["anomaly_map", "score"]
    for graph, limit in ((fused, 1e-4), (half, 0.05)):
        found = open_session(graph, names)(shown[:1])[0]
        assert np.abs(found - answers.anomaly_map[:1]).max() < limit
        assert np.abs(found - answers.anomaly_map[1:]).max() > limit  # control


def test_work_is_counted_for_all_tiles(tiled_artifact, onnx_artifact):
    tiled, whole = (count_macs(open_model(onnx.load(p))) for p in (tiled_artifact, onnx_artifact))
    assert 4 * whole < tiled < 4.1 * whole


def test_int8_says_why_it_takes_no_groups_of_tiles(tiled_artifact, category, tmp_path):
    spec = ModelSpec.read(tiled_artifact)
    path = tmp_path / "cable-fp32.onnx"
    proto = onnx.load(tiled_artifact)
    del proto.metadata_props[:]  # which say that all tiles are taken at once
    onnx.save_model(proto, path)
    grouped = replace(spec.tiling, tile_batch=2)
    replace(spec, tiling=grouped, artifact=FileRecord.of(path)).write(path)
    with pytest.raises(ExportError, match=r"runs 2 tiles at a time.*Export without --tile-batch"):
        quantize_artifact(path, tmp_path / "cable-int8.onnx", category)


def test_int8_takes_tiles(tiled_artifact, shown, answers):
    proto = onnx.load(tiled_artifact)
    layers = find_layers(proto, ["segmentation_net"])[:3]
    ranges = measure_ranges(proto, tensors_around(proto, layers), shown)
    quantized = quantize_layers(proto, layers, ranges, "u8")
    found = open_session(quantized, ["anomaly_map", "score"])(shown[:1])[0]
    moved, other = (np.abs(found - answers.anomaly_map[i]).mean() for i in (0, 1))
    assert 0 < moved < other / 2


# --- what is asked for


@pytest.fixture(scope="module")
def trained(checkpoint) -> ModelSpec:
    return ModelSpec.read(checkpoint)


def test_what_was_trained_is_the_default(trained):
    frame = replace(trained, input=replace(trained.input, height=200, width=300))
    tiled = replace(frame, tiling=TilingSpec(0.5, 8, 3), region=RegionSpec(1, 2, 180, 190))
    spec = served_spec(tiled)
    assert (spec.size, spec.tiling, spec.region) == (tiled.size, tiled.tiling, tiled.region)
    assert spec.map_size == spec.working_size == (100, 150)
    assert Cut.of_spec(spec) == Cut(0.5, 8, 3, spec.region)
    said: list[str] = []
    remark_scale(tiled, spec, said.append)
    assert said == []
    other = served_spec(tiled, OnnxOptions(cut=Cut(0.75)))
    remark_scale(tiled, other, said.append)
    assert other.tiling == TilingSpec(0.75, 8, 3)
    assert said[0].startswith("scale 0.75 is not 0.5")


def test_a_quarter_of_a_tile_overlaps_unless_told_otherwise(trained):
    spec = served_spec(trained, OnnxOptions(input_size=(200, 300), cut=Cut(0.5)))
    assert spec.tiling == TilingSpec(0.5, 16)


REFUSED = [
    (OnnxOptions(cut=Cut(0.5)), "--scale 0.5: the size of the frames is not known"),
    (OnnxOptions(cut=Cut(region=RegionSpec(0, 0, 9, 9))), "--roi 0,0,9,9: the size of the frames"),
    (OnnxOptions(input_size=(90, 90), cut=Cut(overlap=8)), "--overlap 8: without tiles"),
    (OnnxOptions(input_size=(90, 90), cut=Cut(tile_batch=8)), "--tile-batch 8: without tiles"),
    (
        OnnxOptions(input_size=(90, 90), cut=Cut(0.5)),
        "a frame is 45x45 pixels at scale 0.5, smaller than a tile",
    ),
]


@pytest.mark.parametrize(("options", "words"), REFUSED, ids=lambda value: str(value)[-40:])
def test_what_cannot_be_cut_is_refused_in_a_line(trained, options, words):
    with pytest.raises((ExportError, SpecError), match=words):
        served_spec(trained, options)


def test_the_region_of_other_frames_is_not_taken_over(trained):
    framed = replace(trained, input=replace(trained.input, height=200, width=300))
    framed = replace(framed, region=RegionSpec(0, 0, 150, 150))
    with pytest.raises(ExportError, match="belongs to frames of 200x300"):
        served_spec(framed, OnnxOptions(input_size=(100, 100)))


def test_a_mask_is_read_at_the_frames_size(trained, tmp_path):
    inside = np.zeros((200, 300), bool)
    inside[50:150, 40:280] = True
    inside[60:90, 60:90] = False
    Image.fromarray(inside).save(tmp_path / "roi.png")
    options = OnnxOptions(input_size=(200, 300), cut=Cut(region=tmp_path / "roi.png"))
    region = served_spec(trained, options).region
    assert (region.mask_at((200, 300), (200, 300)) == inside).all()


def test_a_comparison_looks_only_at_what_is_inspected(answers):
    """A map that is 0 outside of a small region moves nowhere else, and need not."""
    inside = np.zeros(answers.anomaly_map.shape[1:], bool)
    inside[:30, :30] = True
    masked = replace(answers, anomaly_map=answers.anomaly_map * inside)
    assert measure_parity(masked, masked, inside).seen_regions == 1
    assert measure_parity(masked, masked).seen_regions < 0.5  # control
    spoiled = replace(masked, anomaly_map=masked.anomaly_map + 0.5 * ~inside)
    assert measure_parity(masked, spoiled, inside).map_max_abs == 0.5
