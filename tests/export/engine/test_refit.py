"""refit_file: refused without a GPU what cannot fit, compared before it is named, rolled back."""

import json
import shutil
from dataclasses import replace

import pytest

from destseg_deploy.errors import BackendError, DestsegError, ExportError, ParityError, SpecError
from destseg_deploy.spec import ModelSpec, spec_path
from destseg_deploy.thresholds import by_hand
from destseg_export.engine import refit as refitting
from destseg_export.engine.build import build_engine
from destseg_export.engine.options import BuildOptions
from destseg_export.engine.refit import check_weights, refit_file
from destseg_export.parity import Verification
from destseg_export.to_onnx import OnnxOptions
from tests.export.engine.cases import GpuMachine, Off, keeps_nothing, tiny_graph, write_model
from tests.fakes.device import FakeDevice
from tests.unchanged import unchanged


@pytest.fixture
def machine(monkeypatch) -> GpuMachine:
    return GpuMachine(monkeypatch)


@pytest.fixture
def engine(machine, tmp_path):
    """A refittable engine of cable, its ONNX file beside it."""
    path = tmp_path / "cable-fp16.engine"
    model = write_model(tmp_path / "model")
    build_engine(model, path, options=BuildOptions(refit=True))
    shutil.copy(model, tmp_path)
    return path


@pytest.fixture
def screw(tmp_path):
    """Another category's model."""
    graph = tiny_graph(half=True, seed=1, name="of screw")
    return write_model(
        tmp_path / "screw", category="screw", graph=graph, threshold=by_hand(0.25)
    )  # fmt: skip


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out/screw-fp16.engine"


def test_the_new_engine_is_the_other_category(machine, engine, screw, output):
    before = ModelSpec.read(engine)
    said = []
    with unchanged(engine.parent / "screw"):
        spec = refit_file(engine, screw, output, report=said.append)
    assert ModelSpec.read(output) == spec
    spec.check_artifact(output)
    assert sorted(output.parent.iterdir()) == [output, spec_path(output)]
    assert json.loads(output.read_bytes()[5:])["name"] == "of screw"
    source = ModelSpec.read(screw)
    assert (spec.category, spec.checkpoint) == ("screw", source.checkpoint)
    assert spec.threshold.score == 0.25
    assert spec.input == before.input
    assert spec.parity.compared == output.name
    assert machine.opened[-1][0].name == output.name
    assert said[0] == "replacing the weights of cable-fp16.engine by those of screw-fp16.onnx"
    assert ModelSpec.read(engine) == before
    before.check_artifact(engine)
    assert machine.device.closed
    assert machine.device.live == []


def test_its_record_is_that_of_an_engine_built_from_those_weights(engine, screw, output):
    swapped = refit_file(engine, screw, output).engine
    other = output.with_name("other.engine")
    built = build_engine(screw, other, options=BuildOptions(refit=True)).engine
    assert replace(swapped, build_seconds=0) == replace(built, build_seconds=0)


def test_an_engine_that_cannot_be_refitted_again_says_so(machine, engine, screw, output):
    machine.library.stays_refittable = False
    record = refit_file(engine, screw, output).engine
    assert not record.refittable
    with pytest.raises(ExportError, match=r"not refittable\. Build one that is.*--refittable"):
        refit_file(output, screw, output.with_name("again.engine"))


def test_the_gate_leaves_nothing(machine, engine, screw, output, tmp_path):
    machine.answers = Off
    with unchanged(tmp_path), pytest.raises(ParityError, match=r"screw-fp16\.engine: differs"):
        refit_file(engine, screw, output)


def test_a_checkpoint_is_exported_with_the_engines_contract(engine, screw, output, monkeypatch):
    asked = {}

    def export(checkpoint, path, **options):
        asked.update(options, checkpoint=checkpoint)
        return ModelSpec.read(write_model(path.parent, category="screw"))

    monkeypatch.setattr(refitting, "export_onnx", export)
    checkpoint = screw.with_name("screw.safetensors")
    spec = refit_file(engine, checkpoint, output)
    contract = ModelSpec.read(engine)
    assert asked.pop("report") is not None
    assert asked == {
        "checkpoint": checkpoint, "verification": Verification(), "options": OnnxOptions(
            input_size=contract.size, map_size=contract.map_size, batch=contract.input.batch,
            precision="fp16", top_k=contract.output.top_k,
        ),
    }  # fmt: skip
    assert (output.parent / "screw-fp16.onnx").is_file()
    assert spec.engine.onnx == "screw-fp16.onnx"


# --- refused without a GPU


def _no_gpu(monkeypatch) -> None:
    def open_device(device):
        raise BackendError("no CUDA driver here.")

    monkeypatch.setattr(refitting, "open_device", open_device)


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (tiny_graph(half=True, weight="c.weight"), "b.weight is missing, c.weight is unknown"),
        (tiny_graph(half=True, channels=5), "a.weight is float16 5x3x3x3, not float16 4x3x3x3"),
        (tiny_graph(half=True, extra="NonZero"), "its nodes differ"),
    ],
    ids=["name", "shape", "nodes"],
)
def test_weights_that_cannot_fit_are_named(graph, words, engine, tmp_path, output, monkeypatch):
    _no_gpu(monkeypatch)
    other = write_model(tmp_path / "other", category="screw", graph=graph)
    with unchanged(tmp_path), pytest.raises(ExportError) as refusal:
        refit_file(engine, other, output)
    assert f"is not the one that cable-fp16.engine was built from ({words}" in str(refusal.value)
    (tmp_path / "cable-fp16.onnx").unlink()  # without it, nothing can be named
    with pytest.raises(ExportError, match=r"was built from\. Export it with the same options"):
        refit_file(engine, other, output)


def test_weights_that_fit_pass_without_a_gpu(engine, screw, output, monkeypatch, tmp_path):
    _no_gpu(monkeypatch)
    content, spec = check_weights(screw, engine, ModelSpec.read(engine))
    assert content == screw.read_bytes()
    assert spec.category == "screw"
    with unchanged(tmp_path), pytest.raises(BackendError, match="no CUDA driver here"):
        refit_file(engine, screw, output)


def test_another_contract_is_refused(engine, tmp_path, output, monkeypatch):
    _no_gpu(monkeypatch)
    other = write_model(tmp_path / "other", "fp32", category="screw")
    with unchanged(tmp_path), pytest.raises(SpecError, match="precision is fp32, the engine"):
        refit_file(engine, other, output)


def test_an_engine_without_a_known_architecture_is_left_to_tensorrt(engine, screw, output):
    spec = ModelSpec.read(engine)
    replace(spec, engine=replace(spec.engine, architecture=None)).write(engine)
    refit_file(engine, screw, output)


# --- refused on the GPU


def test_a_foreign_engine_is_refused_before_it_is_opened(machine, engine, screw, output, tmp_path):
    machine.device = FakeDevice(sm="sm_89")
    opened = machine.library.engines
    with unchanged(tmp_path), pytest.raises(SpecError, match="this machine has sm_89"):
        refit_file(engine, screw, output)
    assert machine.library.engines == opened
    assert machine.device.closed


def test_weights_that_tensorrt_misses_are_refused(machine, engine, screw, output, tmp_path):
    machine.library.missing_weights = ["b.weight"]
    with unchanged(tmp_path), pytest.raises(BackendError, match=r"1 missing: b\.weight"):
        refit_file(engine, screw, output)
    assert machine.device.closed


def test_a_damaged_engine_is_refused(engine, screw, output, tmp_path):
    engine.write_bytes(engine.read_bytes()[:-1])
    with unchanged(tmp_path), pytest.raises(SpecError, match="damaged or the pair was mixed up"):
        refit_file(engine, screw, output)


def test_an_engine_tensorrt_cannot_open_is_refused(machine, engine, screw, output, tmp_path):
    machine.library.refused = "engine"
    with unchanged(tmp_path), pytest.raises(ExportError, match=r"cannot open.*magicTag"):
        refit_file(engine, screw, output)


@pytest.mark.parametrize("stage", ["weights", "open"])
def test_an_error_keeps_nothing_of_tensorrts(stage, machine, engine, screw, output):
    """See ``tracebacks``."""
    if stage == "weights":
        machine.library.missing_weights = ["b.weight"]
    else:
        machine.library.refused = "engine"
    with keeps_nothing(machine.library), pytest.raises(DestsegError) as kept:
        refit_file(engine, screw, output)
    assert kept.value.__traceback__ is not None
