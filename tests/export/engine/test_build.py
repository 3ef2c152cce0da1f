"""build_engine on a machine with a (fake) GPU and TensorRT: order, proof, gate, whole files."""

from dataclasses import replace

import pytest

from destseg_deploy.errors import ExportError, ParityError, SpecError
from destseg_deploy.spec import ModelSpec, OutputSpec, QuantizationRecord, spec_path
from destseg_deploy.thresholds import by_hand
from destseg_export.engine import build as to_engine
from destseg_export.engine.build import build_engine
from destseg_export.engine.builder import check_options
from destseg_export.engine.options import BuildOptions
from destseg_export.engine.site import Site, open_site
from destseg_export.parity import BUDGETS
from destseg_export.studies.builds import measure_build
from tests.export.engine.cases import GpuMachine, Off, keeps_nothing, tiny_graph, write_model
from tests.fakes.device import FakeDevice
from tests.fakes.tensorrt_builder import BuilderFlag, MemoryPoolType
from tests.unchanged import unchanged


@pytest.fixture
def machine(monkeypatch) -> GpuMachine:
    return GpuMachine(monkeypatch)


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "model")


@pytest.fixture
def engine(tmp_path):
    return tmp_path / "out/cable-fp16.engine"


def test_an_engine_is_built_proved_and_written(machine, model, engine):
    said, shares = [], []
    spec = build_engine(
        model, engine, report=said.append, progress=lambda stage, share: shares.append(share)
    )
    assert ModelSpec.read(engine) == spec
    spec.check_artifact(engine)
    files = [engine, spec_path(engine), engine.with_name("tensorrt.timing")]
    assert sorted(engine.parent.iterdir()) == sorted(files)
    source = ModelSpec.read(model)
    assert (spec.kind, spec.precision, spec.input) == ("engine", "fp16", source.input)
    assert spec.tools["tensorrt"] == "11.4.0.106"
    record = spec.engine
    assert (record.builder, record.gpu, record.targets) == (
        "tensorrt", machine.device.name, ("sm_90",)
    )  # fmt: skip
    assert (record.onnx, record.onnx_sha256) == (model.name, source.artifact.sha256)
    assert (record.convolutions, record.half_convolutions) == (2, 2)
    assert record.precision_source == "engine"
    assert record.flags == ()
    assert said[0] == "building with TensorRT 11.4.0.106 for sm_90"
    assert "2 of 2 convolutions are half, read from the engine" in said
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert machine.device.closed
    assert machine.device.live == []


def test_the_builder_is_asked_for_what_the_spec_says(machine, model, engine):
    build_engine(model, engine, options=BuildOptions(workspace_mib=512, refit=True))
    (config,) = machine.library.configs
    assert config.profiles == [("image", (1, 64, 64, 3), (2, 64, 64, 3), (4, 64, 64, 3))]
    assert config.pools == {MemoryPoolType.WORKSPACE: 512 << 20}
    assert config.flags == {BuilderFlag.REFIT}
    assert ModelSpec.read(engine).engine.flags == ("refit", "workspace=512MiB")


def test_tf32_only_where_it_is_asked_for(machine, model, engine):
    build_engine(model, engine, options=BuildOptions(tf32=True))
    (config,) = machine.library.configs
    assert config.flags == {BuilderFlag.TF32}
    assert ModelSpec.read(engine).engine.flags == ("tf32",)
    assert config.pools == {}


def test_the_gate_runs_the_engine_itself(machine, model, engine):
    spec = build_engine(model, engine)
    ((path, device),) = machine.opened
    assert (path.name, device) == (engine.name, "cuda:0")
    assert path.parent.parent == engine.parent
    assert path.parent != engine.parent  # not under its final name yet
    assert spec.parity.compared == engine.name
    assert spec.parity.map_max_abs == 0
    assert spec.parity.control > 0.01
    assert spec.parity.budget.anomaly_map == BUDGETS["fp16"].anomaly_map


def test_the_gate_leaves_nothing(machine, model, engine):
    machine.answers = Off
    with pytest.raises(ParityError, match=r"cable-fp16\.engine: differs from PyTorch"):
        build_engine(model, engine)
    assert sorted(path.name for path in engine.parent.iterdir()) == ["tensorrt.timing"]


def test_a_refused_engine_keeps_the_older_one(machine, model, engine):
    build_engine(model, engine)
    machine.answers = Off
    (engine.parent / "tensorrt.timing").unlink()
    kept = {path: path.read_bytes() for path in engine.parent.iterdir()}
    with pytest.raises(ParityError):
        build_engine(model, engine, options=BuildOptions(rebuild=True))
    (engine.parent / "tensorrt.timing").unlink()
    assert {path: path.read_bytes() for path in engine.parent.iterdir()} == kept


# --- proof of precision


def test_a_float_graph_that_says_half_is_refused(machine, tmp_path, engine):
    liar = write_model(tmp_path / "liar", "fp16", graph=tiny_graph(half=False))
    with unchanged(tmp_path), pytest.raises(ExportError, match="says fp16, but only 0 of 2"):
        build_engine(liar, engine)
    assert machine.library.configs == []  # not even built


def test_a_half_graph_that_says_float_is_refused(machine, tmp_path, engine):
    liar = write_model(tmp_path / "liar", "fp32", graph=tiny_graph(half=True))
    with unchanged(tmp_path), pytest.raises(ExportError, match="says fp32, but 2 of 2"):
        build_engine(liar, engine)


def test_an_engine_that_is_not_what_its_graph_was_is_refused(machine, model, engine, tmp_path):
    machine.library.half_word = "Float"
    with pytest.raises(ExportError, match=r"0 of 2 convolutions are \(read from the engine\)"):
        build_engine(model, engine)
    assert not engine.exists()
    assert not spec_path(engine).exists()


def test_an_engine_that_tells_no_convolutions_is_proved_by_its_network(machine, model, engine):
    machine.library.layer_type = "kgen"
    record = build_engine(model, engine).engine
    assert (record.half_convolutions, record.precision_source) == (2, "network")


# --- what is there already


def test_the_same_engine_is_not_built_twice(machine, model, engine):
    first = build_engine(model, engine)
    said = []
    with unchanged(engine.parent):
        assert build_engine(model, engine, report=said.append) == first
    (line,) = said
    assert line == (
        f"{engine}: already built from cable-fp16.onnx for sm_90 by TensorRT 11.4.0.106; "
        "--rebuild builds it anew"
    )
    assert len(machine.library.configs) == 1


@pytest.mark.parametrize("change", ["rebuild", "option", "machine", "damage"])
def test_another_engine_is_built(change, machine, model, engine):
    build_engine(model, engine)
    options = {}
    if change == "rebuild":
        options["rebuild"] = True
    elif change == "option":
        options["refit"] = True
    elif change == "machine":
        machine.device.name = "another GPU"
    else:
        engine.write_bytes(engine.read_bytes()[:-1])
    spec = build_engine(model, engine, options=BuildOptions(**options))
    assert len(machine.library.configs) == 2
    spec.check_artifact(engine)


def test_a_kept_engine_takes_over_the_threshold(machine, model, engine):
    build_engine(model, engine)
    replace(ModelSpec.read(model), threshold=by_hand(0.25)).write(model)
    spec = build_engine(model, engine)
    assert len(machine.library.configs) == 1
    assert spec.threshold.score == 0.25
    assert ModelSpec.read(engine) == spec
    spec.check_artifact(engine)


def test_the_second_build_reuses_the_timings(machine, model, engine, tmp_path):
    cache = tmp_path / "kept.timing"
    said = []
    build_engine(model, engine, options=BuildOptions(timing_cache=cache))
    build_engine(
        model, engine, options=BuildOptions(timing_cache=cache, rebuild=True), report=said.append
    )
    assert f"timing cache {cache}: 11 bytes reused" in said
    assert not (engine.parent / "tensorrt.timing").exists()


# --- refusals


def test_a_score_of_too_many_pixels_is_refused_before_a_build(machine, tmp_path, engine):
    site = Site("tensorrt", machine.library, ("sm_90",), machine.device)
    model = write_model(tmp_path / "model", output=OutputSpec(64, 64, 3840))
    check_options(ModelSpec.read(model), site, BuildOptions())
    write_model(tmp_path / "model", output=OutputSpec(64, 64, 3841))
    with unchanged(tmp_path), pytest.raises(ExportError, match=r"the 3841 largest.*3840 at most"):
        build_engine(model, engine)
    assert machine.library.configs == []


def test_bf16_is_refused_for_gpus_without_it(machine, tmp_path, engine):
    model = write_model(tmp_path / "model", "bf16", graph=tiny_graph(half=True))
    machine.device.sm = "sm_75"
    with unchanged(tmp_path), pytest.raises(ExportError, match="bf16, and GPUs of sm_75 have none"):
        build_engine(model, engine)
    machine.device.sm = "sm_80"  # goes on, and finds that the graph is fp16
    with pytest.raises(ExportError, match="says bf16, but only 0 of 2"):
        build_engine(model, engine)


def test_an_operator_tensorrt_lacks_is_named(machine, tmp_path, engine):
    model = write_model(tmp_path / "model", graph=tiny_graph(half=True, extra="NonZero"))
    with unchanged(tmp_path), pytest.raises(ExportError) as refusal:
        build_engine(model, engine)
    line = str(refusal.value)
    assert line.startswith("cable-fp16.onnx: TensorRT cannot read it: node find (NonZero): no plug")
    assert "compute that part on the host" in line


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"fail": "out of memory"}, "TensorRT 11.4.0.106 cannot build it for sm_90: out of memory"),
        ({"refused": "profile"}, "does not take batches of 1:2:4 at 64x64 pixels .no such input"),
        ({"refused": "engine"}, "cannot open the engine that it built: magicTag is wrong"),
    ],
)
def test_a_failing_builder_is_quoted(fault, words, machine, model, engine):
    vars(machine.library).update(fault)
    with pytest.raises(ExportError, match=words):
        build_engine(model, engine)
    assert not engine.exists()
    assert machine.device.closed


def test_an_interrupt_in_the_progress_stops_the_build(machine, model, engine, tmp_path):
    def interrupt(stage, share):
        raise KeyboardInterrupt

    with unchanged(tmp_path), pytest.raises(KeyboardInterrupt):
        build_engine(model, engine, progress=interrupt)


def test_a_damaged_or_other_source_is_refused(machine, model, engine, tmp_path):
    with unchanged(tmp_path), pytest.raises(SpecError, match="no spec"):
        build_engine(model.with_name("none.onnx"), engine)
    replace(ModelSpec.read(model), kind="checkpoint").write(model)
    with unchanged(tmp_path), pytest.raises(ExportError, match="says checkpoint, expected onnx"):
        build_engine(model, engine)
    write_model(model.parent)
    model.write_bytes(model.read_bytes()[:-1])
    with unchanged(tmp_path), pytest.raises(SpecError, match="damaged or the pair was mixed up"):
        build_engine(model, engine)


def test_a_file_that_was_quantised_for_cpus_is_refused(machine, model, engine, tmp_path):
    spec = ModelSpec.read(model)
    replace(spec, quantization=QuantizationRecord("x", "u8", ())).write(model)
    with unchanged(tmp_path), pytest.raises(ExportError, match="quantize --for tensorrt"):
        build_engine(model, engine)
    replace(spec, quantization=QuantizationRecord("x", "s8", ())).write(model)
    build_engine(model, engine)


def test_the_spec_of_the_model_is_never_overwritten(machine, model, tmp_path, monkeypatch):
    monkeypatch.setattr(to_engine, "spec_path", lambda path: path.with_suffix(".json"))
    with unchanged(tmp_path), pytest.raises(ExportError, match="would replace the one of cable"):
        build_engine(model, model.with_suffix(".engine"))


def test_the_checkpoint_must_be_the_very_one(machine, model, engine, tmp_path):
    other = tmp_path / "other.safetensors"
    other.write_text("weights of screw")
    with pytest.raises(ExportError, match=r"is not what cable-fp16\.onnx was exported from"):
        build_engine(model, engine, checkpoint=other)
    moved = model.with_name("cable.safetensors").rename(tmp_path / "moved.safetensors")
    with pytest.raises(ExportError, match=r"cable\.safetensors: no such file.*--checkpoint"):
        build_engine(model, engine)
    assert machine.library.configs == []
    build_engine(model, engine, checkpoint=moved)


def test_a_builder_that_does_not_start_says_so(monkeypatch, model, engine):
    machine = GpuMachine(monkeypatch, FakeDevice(sm="sm_90"))

    def start(logger):
        raise TypeError("pybind11::init(): factory function returned nullptr")

    machine.library.Builder = start
    with pytest.raises(ExportError, match=r"TensorRT 11\.4\.0\.106 does not start: pybind11"):
        build_engine(model, engine)


@pytest.mark.parametrize("stage", ["parse", "build", "open", "count", "progress"])
def test_an_error_keeps_nothing_of_tensorrts(stage, machine, tmp_path, engine):
    """Freed later, by the collector, it waits for a lock that the next builder's maker holds."""
    extra = "NonZero" if stage == "parse" else ""
    model = write_model(tmp_path / "m", graph=tiny_graph(half=True, extra=extra))
    library = machine.library
    if stage == "build":
        library.fail = "no reason"
    elif stage == "open":
        library.refused = "engine"
    elif stage == "count":
        library.half_word = "Float"

    def progress(name, share):
        if stage == "progress":
            raise ExportError("stopped")

    with keeps_nothing(library), pytest.raises(ExportError) as kept:
        build_engine(model, engine, progress=progress)
    assert kept.value.__traceback__ is not None


def test_a_build_that_is_measured_keeps_nothing_either(machine, model):
    machine.library.fail = "no reason"
    with open_site() as site, keeps_nothing(machine.library):
        with pytest.raises(ExportError, match="no reason") as kept:
            measure_build(model, ModelSpec.read(model), site)
        assert kept.value.__traceback__ is not None
