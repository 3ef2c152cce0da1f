"""export_all: which artifacts come of which wish, and what is skipped is said."""

import pytest

from destseg_deploy.errors import BackendError, ExportError, ParityError
from destseg_deploy.spec import ModelSpec
from destseg_export import pipeline as whole_way
from destseg_export import to_onnx
from destseg_export.engine import build as to_engine
from destseg_export.engine.options import BuildOptions
from destseg_export.engine.site import NoGpuError
from destseg_export.parity import Verification
from destseg_export.pipeline import Made, Skipped, export_all
from destseg_export.to_onnx import OnnxOptions
from tests.export.engine.cases import GpuMachine, write_model


@pytest.fixture
def exported(tmp_path, monkeypatch) -> list[tuple]:
    """Replace the tracing: tiny models. Records what was asked for."""
    asked = []

    def export_onnx(checkpoint, path, *, options, verification, report):
        asked.append((path.name, options.precision, verification))
        name = options.category or "cable"
        return ModelSpec.read(write_model(path.parent, options.precision, category=name))

    monkeypatch.setattr(to_onnx, "export_onnx", export_onnx)
    return asked


@pytest.fixture
def here(monkeypatch) -> GpuMachine:
    return GpuMachine(monkeypatch)


@pytest.fixture
def nothing_here(monkeypatch) -> None:
    def open_site(builder, targets, *, device):
        raise NoGpuError("no GPU to build for.")

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
        ({"onnx": OnnxOptions(precision="fp16")}, ["cable-fp16.onnx", "cable-fp16.engine"]),
        ({"onnx": OnnxOptions(precision="fp32")}, ["cable-fp32.onnx", "cable-fp32.engine"]),
        ({"onnx": OnnxOptions(precision="fp16"), "form": "onnx"}, ["cable-fp16.onnx"]),
        (
            {"onnx": OnnxOptions(precision="fp32"), "form": "engine"},
            ["cable-fp32.onnx", "cable-fp32.engine"],
        ),
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
        ({"onnx": OnnxOptions(precision="fp16")}, ["cable-fp16.onnx", "engine"]),
        ({"form": "onnx"}, ["cable-fp32.onnx"]),
    ],
)
def test_without_a_gpu_the_engine_is_skipped_with_the_reason(
    wish, names, nothing_here, exported, tmp_path
):
    made = _run(tmp_path, **wish)
    assert _names(made) == names
    if names[-1] == "engine":
        assert made[-1] == Skipped(
            "engine", "no NVIDIA GPU here, so no engine was built", "no GPU to build for."
        )


def test_a_gpu_without_tensorrt_is_another_reason(exported, tmp_path, monkeypatch):
    def open_site(builder, targets, *, device):
        raise BackendError("tensorrt is not usable here.")

    monkeypatch.setattr(whole_way, "open_site", open_site)
    reason = "no TensorRT for this GPU here, so no engine was built"
    assert _run(tmp_path)[-1] == Skipped("engine", reason, "tensorrt is not usable here.")


@pytest.mark.parametrize(
    "wish",
    [
        {"form": "engine"},
        {"engine": BuildOptions(targets=("sm_86",))},
        {"engine": BuildOptions(builder="tensorrt")},
    ],
)
def test_an_engine_that_was_asked_for_is_not_skipped(wish, nothing_here, exported, tmp_path):
    with pytest.raises(BackendError, match="no GPU to build for"):
        _run(tmp_path, **wish)
    assert exported == []  # nothing was traced in vain


def test_all_are_verified_in_the_same_way(here, exported, tmp_path):
    """The budget follows from the precision; see ``Verification.budget``."""
    verification = Verification(score=0.5)
    made = _run(tmp_path, verification=verification)
    assert [verified for _, _, verified in exported] == [verification] * 2
    assert made[-1].spec.parity.budget == verification.budget("fp16")


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


@pytest.mark.parametrize("category", ["", ".", "../x", "a/b"])
def test_a_category_is_the_name_of_one_folder(category, exported, tmp_path):
    with pytest.raises(ExportError, match="expected the name of one folder"):
        _run(tmp_path, onnx=OnnxOptions(category=category))
    assert exported == []
