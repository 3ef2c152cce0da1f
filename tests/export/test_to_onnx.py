"""Exported graphs: form, parity, and what happens when one is wrong."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from destseg_deploy.data.resize import resize_image
from destseg_deploy.errors import (
    BackendError,
    ExportError,
    OutputError,
    ParityError,
    ShapeError,
)
from destseg_deploy.files import sha256
from destseg_deploy.loading import load
from destseg_deploy.models.destseg import DeSTSeg
from destseg_deploy.models.inference import PixelResize, served_graph
from destseg_deploy.spec import BatchRange, Budget, ModelSpec, Threshold, TilingSpec, spec_path
from destseg_deploy.spec.contract import ENTRIES
from destseg_deploy.thresholds import set_threshold
from destseg_export import to_onnx
from destseg_export.cutting import Cut, remark_threshold
from destseg_export.half import convert as half
from destseg_export.half.emulate import open_graph
from destseg_export.parity import Verification, answer, check_parity, compare
from destseg_export.to_onnx import OnnxOptions, served_spec
from tests.export.conftest import CAMERA
from tests.export.half.cases import SCALE, SPREAD, scale_student, with_opset
from tests.export.mutants import MUTANTS

BATCH = BatchRange(1, 2, 4)
"""The batches of ``onnx_artifact``."""


@pytest.fixture
def traced(onnx_artifact, monkeypatch):
    """Skip the tracing, which takes 6 s: the graph is the one that was traced already."""

    def trace(model, spec, opset):
        assert spec.precision == "fp32"
        return with_opset(onnx.load(onnx_artifact), opset)

    monkeypatch.setattr(to_onnx, "trace", trace)


def _types(value):
    tensor = value.type.tensor_type
    shape = [d.dim_param or d.dim_value for d in tensor.shape.dim]
    return value.name, onnx.TensorProto.DataType.Name(tensor.elem_type), shape


def test_tensors_are_the_contracts(onnx_artifact):
    graph = onnx.load(onnx_artifact).graph
    batch = _types(graph.input[0])[2][0]
    assert isinstance(batch, str)
    assert _types(graph.input[0]) == ("image", "UINT8", [batch, 64, 64, 3])
    assert [_types(o) for o in graph.output] == [
        ("anomaly_map", "FLOAT", [batch, 64, 64]),
        ("score", "FLOAT", [batch]),
    ]


def test_camera_tensors_are_the_contracts(camera):
    model = onnx.load(camera)
    assert _types(model.graph.input[0]) == ("image", "UINT8", [2, 96, 160, 3])
    assert _types(model.graph.output[0]) == ("anomaly_map", "FLOAT", [2, 96, 160])
    assert model.opset_import[0].version == 23


def test_the_cast_comes_before_anything_else(onnx_artifact):
    """TensorRT neither transposes nor resizes uint8."""
    graph = onnx.load(onnx_artifact, load_external_data=False).graph
    takers = {node.op_type for node in graph.node if "image" in node.input}
    assert takers - {"Shape"} == {"Cast"}


def test_the_teacher_runs_once(onnx_artifact):
    """Teacher 1 + 12 + 2 convolutions, student 20 + 16 + 3, segmentation 4 + 1 + 7."""
    graph = onnx.load(onnx_artifact, load_external_data=False).graph
    assert sum(node.op_type == "Conv" for node in graph.node) == 15 + 39 + 12


def test_metadata_says_what_the_spec_says(onnx_artifact):
    model = onnx.load(onnx_artifact, load_external_data=False)
    contract = json.loads({p.key: p.value for p in model.metadata_props}["destseg"])
    spec = json.loads(ModelSpec.read(onnx_artifact).to_json())
    assert contract == {name: spec[name] for name in ENTRIES}
    assert "threshold" not in contract, "a threshold in the graph could not be changed later"
    assert model.producer_name == "destseg-deploy"


def test_no_path_of_this_machine_is_left_in_the_file(onnx_artifact):
    written = onnx_artifact.read_bytes()
    assert b"inference.py" not in written
    assert str(Path(to_onnx.__file__).parents[2]).encode() not in written
    assert b"name_scopes" in written, "what tells the parts apart stays"


def test_parity_is_recorded(onnx_artifact):
    spec = ModelSpec.read(onnx_artifact)
    assert spec.parity.map_max_abs < 1e-4
    assert spec.parity.control > 1e-3
    assert spec.artifact.sha256 == sha256(onnx_artifact)
    assert spec.threshold is not None


def test_camera_graph_resizes_as_the_host_does(checkpoint, camera):
    """The resize in the graph gives the same bits as on the host; so the answers agree."""
    frames = np.random.default_rng(1).integers(0, 256, (4, 96, 160, 3), dtype=np.uint8)
    with load(checkpoint) as reference, load(camera) as served:
        wanted, found = reference(frames, source_maps=True), served(frames)
        small = np.stack([resize_image(frame, (64, 64)) for frame in frames])
        np.testing.assert_allclose(reference(small).score, wanted.score, atol=5e-5)
    np.testing.assert_allclose(found.score, wanted.score, atol=5e-5)
    np.testing.assert_allclose(found.anomaly_map, wanted.anomaly_map, atol=5e-5)
    assert np.abs(np.roll(found.score, 1) - wanted.score).max() > 1e-2, "control: the wrong image"


@pytest.mark.filterwarnings("ignore")  # the exporter remarks on its own internals
@pytest.mark.parametrize(("height", "width"), [(1024, 1024), (700, 901), (100, 37)])
def test_onnx_runtime_resizes_to_the_same_bits_as_the_host(height, width):
    """Not nearly the same: weights that add exactly leave nothing to rounding."""
    ort = pytest.importorskip("onnxruntime")
    import torch

    image = np.random.default_rng(2).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels = image.astype(np.float32).transpose(2, 0, 1)[None].copy()
    module = PixelResize((height, width), (256, 256)).eval()
    program = torch.onnx.export(module, (torch.from_numpy(pixels),), dynamo=True, verbose=False)
    session = ort.InferenceSession(
        program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {session.get_inputs()[0].name: pixels})
    np.testing.assert_array_equal(found[0].transpose(1, 2, 0), resize_image(image, (256, 256)))


def test_camera_graph_refuses_other_sizes(camera):
    with load(camera) as served, pytest.raises(ShapeError, match="exported for 160x96"):
        served(np.zeros((64, 64, 3), np.uint8))


def test_a_wrong_size_or_batch_raises_in_onnx_runtime_too(onnx_artifact):
    """The graph itself refuses, for hosts that call it without this library."""
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(str(onnx_artifact), providers=["CPUExecutionProvider"])
    with pytest.raises(Exception, match="Got invalid dimensions"):
        session.run(None, {"image": np.zeros((1, 32, 64, 3), np.uint8)})


@pytest.mark.usefixtures("few_drawn")
def test_a_wrong_graph_is_refused_and_leaves_nothing(
    checkpoint, onnx_artifact, few, tmp_path, monkeypatch
):
    """Negative control: swap red and blue in the traced graph; the gate must see it."""

    def swapped(model, spec, opset):
        proto = onnx.load(onnx_artifact)
        first = next(node for node in proto.graph.node if node.op_type == "Cast")
        order = onnx.helper.make_tensor("bgr", onnx.TensorProto.INT64, [3], [2, 1, 0])
        proto.graph.initializer.append(order)
        gather = onnx.helper.make_node("Gather", ["image", "bgr"], ["swapped"], axis=3)
        first.input[0] = "swapped"
        proto.graph.node.insert(0, gather)
        return proto

    target = tmp_path / "cable-fp32.onnx"
    target.write_text("an older export")
    spec_path(target).write_text('{"artifact": {"file": "cable-fp32.onnx"}}')
    monkeypatch.setattr(to_onnx, "trace", swapped)
    with pytest.raises(ParityError, match=r"differs from PyTorch on .* images"):
        to_onnx.export_onnx(
            checkpoint,
            target,
            options=OnnxOptions(batch=BATCH),
            verification=Verification(few),
        )
    assert {path.name for path in tmp_path.iterdir()} == {"cable-fp32.onnx", "cable-fp32.json"}
    assert target.read_text() == "an older export"


def test_one_category_is_not_exported_under_the_name_of_another(checkpoint, tmp_path):
    with pytest.raises(
        ExportError, match=r"trained on '.*', not on 'screw'\. Leave out --category"
    ):
        to_onnx.export_onnx(
            checkpoint, tmp_path / "screw-fp32.onnx", options=OnnxOptions(category="screw")
        )
    assert list(tmp_path.iterdir()) == []


def test_a_name_without_its_suffix_is_refused_before_the_work(checkpoint, tmp_path):
    with pytest.raises(OutputError, match=r"cable: expected a name that ends in \.onnx"):
        to_onnx.export_onnx(checkpoint, tmp_path / "cable")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("few_drawn")
def test_exporting_again_keeps_a_threshold_that_was_set(
    checkpoint, artifact, camera, few, traced, monkeypatch
):
    lines = []

    def export(options):
        return to_onnx.export_onnx(
            checkpoint,
            artifact,
            options=options,
            verification=Verification(few),
            report=lines.append,
        )

    first = ModelSpec.read(artifact)
    set_threshold(artifact, Threshold(0.25, 0.5, "set by hand"))
    again = export(OnnxOptions(batch=BATCH))
    assert again.threshold == ModelSpec.read(artifact).threshold != first.threshold
    assert again.threshold.score == 0.25
    assert any("keeps the threshold 0.250000 (set by hand)" in line for line in lines)
    monkeypatch.setattr(to_onnx, "trace", lambda model, spec, opset: onnx.load(camera))
    other = export(OnnxOptions(**CAMERA))
    assert other.threshold == first.threshold
    assert "drops the threshold 0.250000 (set by hand)" in lines[-1]


@pytest.mark.parametrize("opset", [-1, 0, 11, 17, 24])
def test_an_opset_that_would_not_be_written_is_refused(checkpoint, tmp_path, opset):
    with pytest.raises(ExportError, match=f"opset {opset}: expected 18 to 23"):
        to_onnx.export_onnx(checkpoint, tmp_path / "x.onnx", options=OnnxOptions(opset=opset))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("opset", [18, 21])
def test_an_opset_without_the_precisions_operators_is_refused_before_tracing(opset):
    with pytest.raises(ExportError, match=f"opset {opset}: .* bf16 convolutions from opset 22 on"):
        OnnxOptions(opset=opset, precision="bf16")
    assert OnnxOptions(opset=opset, precision="fp16").opset == opset
    assert OnnxOptions(opset=22, precision="bf16").opset == 22


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"batch": BatchRange(1, 1, 65537)}, "batch: max is 65537, expected 1 to 65536. Change"),
        ({"input_size": (70000, 7)}, "height is 70000, expected 1 to 65536. Change the option"),
    ],
)
def test_what_an_option_asks_for_is_refused_with_the_option(checkpoint, tmp_path, asked, words):
    """ "Restore it or export again" was said of the file that this very export would write."""
    with pytest.raises(ExportError, match=words) as refused:
        to_onnx.export_onnx(checkpoint, tmp_path / "x.onnx", options=OnnxOptions(**asked))
    assert "Restore" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_an_official_checkpoint_exports(full_size):
    """A state dict as the authors publish it needs no spec; it gets the paper's sizes."""
    proto, spec = full_size
    assert (spec.category, spec.size, spec.output.top_k) == ("cable", (256, 256), 100)
    assert _types(proto.graph.input[0])[2][1:] == [256, 256, 3]


# --- half


FP16 = OnnxOptions(batch=BATCH, precision="fp16")


@pytest.fixture
def loose(few, few_drawn) -> Verification:
    return Verification(few, SPREAD.anomaly_map, SPREAD.score)


@pytest.mark.parametrize(
    ("precision", "opset", "budget"), [("fp16", 18, SPREAD), ("bf16", 22, Budget(0.4, 0.1, 0.05))]
)
def test_a_half_export_is_compared_as_a_gpu_rounds_it(
    checkpoint, traced, few, tmp_path, frames, precision, opset, budget
):
    path = tmp_path / f"cable-{precision}.onnx"
    said = []
    spec = to_onnx.export_onnx(
        checkpoint,
        path,
        options=OnnxOptions(batch=BATCH, precision=precision),
        verification=Verification(few, budget.anomaly_map, budget.score),
        report=said.append,
    )
    assert spec == ModelSpec.read(path)
    spec.check_artifact(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{path.stem}.json", path.name]
    assert spec.precision == precision
    parity = spec.parity
    assert parity.rounding == f"emulated {precision}"
    assert (spec.half.half_convolutions, spec.half.convolutions) == (63, 66)
    assert 1e-3 < parity.map_max_abs <= budget.anomaly_map
    assert 0 < parity.map_mean_abs <= budget.map_mean
    assert 1 < spec.half.largest_activation <= 65504 / 8
    model = onnx.load(path)
    assert model.opset_import[0].version == opset
    contract = json.loads({p.key: p.value for p in model.metadata_props}["destseg"])
    assert contract["precision"] == precision
    names = {t.name for t in model.graph.initializer} | {
        name for node in model.graph.node for name in node.output
    }
    assert spec.half.largest_tensor in names
    assert any(line.startswith(f"63 of 66 convolutions in {precision}") for line in said)
    if precision in to_onnx.RUN_BY_CPU:
        with load(path) as served:
            assert np.isfinite(served(frames).anomaly_map).all()
    else:
        assert any("bf16 runs on NVIDIA GPUs" in line for line in said)
        with pytest.raises(BackendError, match=r"has no bf16 convolution.*NVIDIA GPU"):
            load(path)


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (2.0**4, "reaches .* an eighth of fp16's 65504"),
        (2.0**10, "weights are beyond fp16's 65504"),
    ],
)
def test_what_half_cannot_hold_is_refused_and_leaves_nothing(
    checkpoint, onnx_artifact, loose, tmp_path, monkeypatch, factor, words
):
    large = scale_student(onnx.load(onnx_artifact), SCALE * factor)
    monkeypatch.setattr(to_onnx, "trace", lambda model, spec, opset: large)
    with pytest.raises(ExportError, match=f"{words}.*--precision bf16"):
        to_onnx.export_onnx(
            checkpoint, tmp_path / "out/cable-fp16.onnx", options=FP16, verification=loose
        )
    assert list(tmp_path.iterdir()) == []


def test_a_half_graph_beyond_its_budget_leaves_nothing(
    checkpoint, onnx_artifact, loose, tmp_path, monkeypatch
):
    """The export itself without one island: the gate is really in the way."""
    large = scale_student(onnx.load(onnx_artifact), SCALE)
    kept = [part for part in half.ISLANDS if part != "norm"]
    monkeypatch.setattr(to_onnx, "trace", lambda model, spec, opset: large)
    monkeypatch.setattr(to_onnx, "to_half", lambda p, kind: half.to_half(p, kind, islands=kept))
    with pytest.raises(ParityError, match=r"differs from PyTorch on .* images"):
        to_onnx.export_onnx(
            checkpoint, tmp_path / "cable-fp16.onnx", options=FP16, verification=loose
        )
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_graph_is_refused_before_half_hides_it(
    checkpoint, onnx_artifact, loose, tmp_path, monkeypatch
):
    """The graph is compared in fp32, where a layer times 1.02 is seen by far."""
    wrong = onnx.load(onnx_artifact)
    MUTANTS["layer 0.55 x 1.02"](wrong)
    monkeypatch.setattr(to_onnx, "trace", lambda model, spec, opset: wrong)
    target = tmp_path / "cable-fp16.onnx"
    with pytest.raises(ParityError, match=r"cable-fp16\.onnx in fp32: differs from PyTorch"):
        to_onnx.export_onnx(checkpoint, target, options=FP16, verification=loose)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("mutant", "error", "words"),
    [
        ("layer 0.55 x 1.02", ExportError, "half values are not the nearest"),
        ("a pixel", ParityError, r"cable-fp16\.onnx in fp32: differs from PyTorch"),
    ],
)
def test_a_wrong_conversion_is_refused_though_half_would_hide_it(
    checkpoint, onnx_artifact, loose, tmp_path, monkeypatch, mutant, error, words
):
    proto, made = half.to_half(onnx.load(onnx_artifact), "fp16")
    MUTANTS[mutant](proto)
    monkeypatch.setattr(to_onnx, "to_half", lambda traced, precision: (proto, made))
    monkeypatch.setattr(to_onnx, "trace", lambda model, spec, opset: onnx.load(onnx_artifact))
    with pytest.raises(error, match=words):
        to_onnx.export_onnx(
            checkpoint, tmp_path / "cable-fp16.onnx", options=FP16, verification=loose
        )
    assert list(tmp_path.iterdir()) == []


TILES = Cut(0.5, 16)


@pytest.mark.parametrize(
    ("trained_on", "options", "reason"),
    [
        (None, OnnxOptions(), None),
        (None, OnnxOptions(top_k=6), None),
        (None, OnnxOptions(input_size=(200, 300)), None),
        (None, OnnxOptions(top_k=3), "the score is the mean of 3 pixels, and was of 6 in training"),
        (
            None,
            OnnxOptions(input_size=(200, 300), cut=TILES),
            "frames are cut into tiles, and were not in training",
        ),
        (0.5, OnnxOptions(), None),
        (0.5, OnnxOptions(cut=Cut(overlap=8)), None),
        (0.5, OnnxOptions(cut=Cut(0.75)), "frames are scaled by 0.75, and were by 0.5 in training"),
    ],
)
def test_other_scores_leave_the_threshold_out(checkpoint, trained_on, options, reason):
    """The checkpoint's was set for its own scores: here every frame could be NG, or none."""
    trained = ModelSpec.read(checkpoint)
    assert trained.threshold is not None
    if trained_on is not None:
        frame = replace(trained.input, height=200, width=300)
        trained = replace(trained, input=frame, tiling=TilingSpec(trained_on, 16))
    spec, said = served_spec(trained, options), []
    remark_threshold(trained, spec, said.append)
    assert spec.threshold == (None if reason else trained.threshold)
    assert len(said) == (reason is not None)
    assert all(line.startswith(reason) for line in said)
    assert served_graph(DeSTSeg(), spec).top_k == spec.output.top_k == (options.top_k or 6)


@pytest.mark.parametrize("top_k", [0, -1, 64 * 64 + 1])
def test_a_score_of_impossible_pixels_is_refused(checkpoint, tmp_path, top_k):
    with pytest.raises(
        ExportError, match=rf"^top_k {top_k}: expected 1 to 4096, the pixels of the"
    ):
        to_onnx.export_onnx(checkpoint, tmp_path / "x.onnx", options=OnnxOptions(top_k=top_k))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["int8", "half"])
def test_an_unknown_precision_is_refused(precision):
    with pytest.raises(ExportError, match=f"precision '{precision}': expected one of fp32, fp16"):
        OnnxOptions(precision=precision)


def test_a_camera_graph_in_half_resizes_in_fp32(checkpoint, camera):
    """Static batch, opset 23, resize in the graph. Grey levels in half are no longer exact."""
    frames = list(np.random.default_rng(1).integers(0, 256, (6, 96, 160, 3), dtype=np.uint8))
    proto, spec = onnx.load(camera), ModelSpec.read(camera)
    without = [part for part in half.ISLANDS if part != "pixels"]
    found = {}
    for name, islands in (("all", half.ISLANDS), ("without pixels", without)):
        graph, _ = half.to_half(proto, "fp16", islands=tuple(islands))
        with load(checkpoint) as reference, open_graph(graph, spec) as candidate:
            found[name] = compare(answer(reference, frames), candidate, frames)
    check_parity(found["all"], SPREAD, "all")
    assert found["without pixels"].map_mean_abs > 2 * found["all"].map_mean_abs
    with pytest.raises(ParityError, match="differs from PyTorch"):
        check_parity(found["without pixels"], SPREAD, "without pixels")
