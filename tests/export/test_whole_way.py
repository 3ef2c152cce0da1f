"""export_all: which artifacts come of which wish, and what is skipped is said."""

import pytest

from destseg_deploy.errors import BackendError, ExportError, ParityError
from destseg_deploy.spec import BatchRange, ModelSpec
from destseg_export import to_engine, to_onnx, whole_way
from destseg_export.verify import Budget
from destseg_export.whole_way import EngineChoice, Limits, Made, Skipped, export_all
from tests.export.engine_cases import GpuMachine, write_model


@pytest.fixture
def exported(tmp_path, monkeypatch) -> list[tuple]:
    """Replace the tracing: tiny models. Records what was asked for."""
    asked = []

    def export_onnx(checkpoint, path, *, category, precision, **options):
        asked.append((path.name, precision, options))
        return ModelSpec.read(write_model(path.parent, precision, category=category or "cable"))

    monkeypatch.setattr(to_onnx, "export_onnx", export_onnx)
    return asked


@pytest.fixture
def here(monkeypatch) -> GpuMachine:
    return GpuMachine(monkeypatch)


@pytest.fixture
def nothing_here(monkeypatch) -> None:
    def open_site(builder, targets, *, device):
        raise BackendError("no GPU to build for.")

    monkeypatch.setattr(whole_way, "open_site", open_site)


def _run(folder, **wish) -> list:
    return list(export_all(folder / "cable.safetensors", folder, **wish))


def _names(made: list) -> list[str]:
    return [item.path.name if isinstance(item, Made) else item.what for item in made]


@pytest.mark.parametrize(
    ("wish", "names"),
    [
        ({}, ["cable-fp32.onnx", "cable-fp16.onnx", "cable-fp16.engine"]),
        ({"form": "onnx"}, ["cable-fp32.onnx"]),
        ({"form": "engine"}, ["cable-fp16.onnx", "cable-fp16.engine"]),
        ({"precision": "fp16"}, ["cable-fp16.onnx", "cable-fp16.engine"]),
        ({"precision": "fp32"}, ["cable-fp32.onnx", "cable-fp32.engine"]),
        ({"precision": "fp16", "form": "onnx"}, ["cable-fp16.onnx"]),
        ({"precision": "fp32", "form": "engine"}, ["cable-fp32.onnx", "cable-fp32.engine"]),
    ],
)
def test_each_wish_on_a_machine_with_a_gpu(wish, names, here, exported, tmp_path):
    made = _run(tmp_path, **wish)
    assert _names(made) == names
    for item in made:
        assert ModelSpec.read(item.path) == item.spec
        item.spec.check_artifact(item.path)


@pytest.mark.parametrize(
    ("wish", "names"),
    [
        ({}, ["cable-fp32.onnx", "engine"]),
        ({"precision": "fp16"}, ["cable-fp16.onnx", "engine"]),
        ({"form": "onnx"}, ["cable-fp32.onnx"]),
    ],
)
def test_without_a_gpu_the_engine_is_skipped_with_the_reason(
    wish, names, nothing_here, exported, tmp_path
):
    made = _run(tmp_path, **wish)
    assert _names(made) == names
    if names[-1] == "engine":
        assert made[-1] == Skipped("engine", "no GPU to build for.")


@pytest.mark.parametrize(
    "wish",
    [
        {"form": "engine"},
        {"engine": EngineChoice(targets=("sm_86",))},
        {"engine": EngineChoice(builder="tensorrt")},
    ],
)
def test_an_engine_that_was_asked_for_is_not_skipped(wish, nothing_here, exported, tmp_path):
    with pytest.raises(BackendError, match="no GPU to build for"):
        _run(tmp_path, **wish)
    assert exported == []  # nothing was traced in vain


def test_options_reach_both_stages(here, exported, tmp_path, monkeypatch):
    asked = {}
    build = to_engine.build_engine

    def build_engine(onnx, output, **options):
        asked.update(options)
        return build(onnx, output, **options)

    monkeypatch.setattr(to_engine, "build_engine", build_engine)
    choice = EngineChoice(workspace_mib=64, refit=True, tf32=True, rebuild=True)
    _run(
        tmp_path, engine=choice, limits=Limits(0.5, 0.25), batch=BatchRange(4, 4, 4), opset=21
    )  # fmt: skip
    for name, precision, options in exported:
        assert precision in name
        assert options["budget"] == Budget(0.5, 0.25)
        assert (options["batch"], options["opset"]) == (BatchRange(4, 4, 4), 21)
    assert asked["budget"] == Budget(0.5, 0.25)
    assert asked["checkpoint"] == tmp_path / "cable.safetensors"
    flags = [asked[name] for name in ("workspace_mib", "refit", "tf32", "rebuild")]
    assert flags == [64, True, True, True]


def test_each_precision_has_its_own_budget(here, exported, tmp_path):
    _run(tmp_path)
    assert [options["budget"] for _, _, options in exported] == [
        Budget.of("fp32"), Budget.of("fp16")
    ]  # fmt: skip


def test_an_engine_that_fails_is_an_error_and_the_models_stay(
    here, exported, tmp_path, monkeypatch
):
    def build_engine(*paths, **options):
        raise ParityError("differs")

    monkeypatch.setattr(to_engine, "build_engine", build_engine)
    steps = export_all(tmp_path / "cable.safetensors", tmp_path)
    assert _names([next(steps), next(steps)]) == ["cable-fp32.onnx", "cable-fp16.onnx"]
    with pytest.raises(ParityError):
        next(steps)


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(ExportError, match="format 'plan': expected one of auto, onnx, engine"):
        _run(tmp_path, form="plan")
