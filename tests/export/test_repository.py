"""Model repositories: what servers read, and that they never see half a model."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from destseg_deploy.errors import ExportError, OutputError
from destseg_deploy.locks import locked
from destseg_deploy.spec import (
    BatchRange,
    EngineRecord,
    FileRecord,
    InputSpec,
    ModelSpec,
    OutputSpec,
    RegionSpec,
    Threshold,
)
from destseg_deploy.testing import fake_spec
from destseg_export import repository as module
from destseg_export.repository import write_repository
from destseg_export.serving import Serving
from destseg_export.triton import Word, pbtxt
from tests.unchanged import unchanged

BATCH = BatchRange(1, 2, 8)
ENGINE = EngineRecord(
    "k", "tensorrt", "11.4", "H100", ("sm_90",), "a.onnx", "0", (), 9, 9, "engine", 1.0
)


def _artifact(folder: Path, name: str = "cable-fp32.onnx", **changes: object) -> Path:
    path = folder / name
    path.write_bytes(name.encode())
    spec = replace(
        fake_spec(), input=InputSpec(48, 64, BATCH), threshold=Threshold(0.5, 0.6, "made up")
    )
    spec = replace(spec, artifact=FileRecord.of(path), **changes)
    spec.write(path)
    return path


@pytest.fixture
def artifact(tmp_path) -> Path:
    return _artifact(tmp_path)


def test_triton_is_told_what_the_spec_says(artifact, tmp_path):
    version = write_repository(artifact, tmp_path / "models")
    folder = tmp_path / "models/cable-fp32"
    assert version == folder / "1"
    assert (version / "model.onnx").read_bytes() == artifact.read_bytes()
    assert ModelSpec.from_json((version / "spec.json").read_text()) == ModelSpec.read(artifact)
    said = (folder / "config.pbtxt").read_text()
    for line in (
        'name: "cable-fp32"',
        'backend: "onnxruntime"',
        "max_batch_size: 8",
        "  dims: [ 48, 64, 3 ]",
        "  dims: [ 32, 32 ]",
        "  kind: KIND_CPU",
        "  preferred_batch_size: [ 2, 8 ]",
        '    string_value: "' + ModelSpec.read(artifact).artifact.sha256 + '"',
    ):
        assert line in said.splitlines(), line
    assert len((folder / "warmup/frame").read_bytes()) == 48 * 64 * 3
    assert sorted(os.listdir(folder)) == ["1", "config.pbtxt", "warmup"]


def test_a_batch_of_one_is_a_model_without_batches(tmp_path):
    """Its graph has no free axis, and Triton refuses a batch without one."""
    one = _artifact(tmp_path, input=InputSpec(48, 64, BatchRange(1, 1, 1)))
    folder = write_repository(one, tmp_path / "models").parent
    said = (folder / "config.pbtxt").read_text()
    for line in (
        "max_batch_size: 0",
        "  dims: [ 1, 48, 64, 3 ]",
        "  dims: [ 1, 32, 32 ]",
        "  dims: [ 1 ]",
        "  batch_size: 1",
    ):
        assert line in said.splitlines(), line
    assert "reshape" not in said
    assert "dynamic_batching" not in said


def test_a_region_at_the_networks_size_is_the_cameras_size(tmp_path):
    region = _artifact(tmp_path, input=InputSpec(32, 32, BATCH), region=RegionSpec(2, 2, 20, 20))
    assert write_repository(region, tmp_path / "models").name == "1"


def test_the_text_is_what_protocol_buffers_read(artifact, tmp_path):
    """Against Google's parser and a message with the entries that Triton's ModelConfig has."""
    text_format = pytest.importorskip("google.protobuf.text_format")
    from google.protobuf import struct_pb2

    message = {"fields": {"key": 'a "b"\n', "value": {"number_value": 2.5}}}
    read = text_format.Parse(pbtxt(message), struct_pb2.Struct())
    assert dict(read) == {'a "b"\n': 2.5}
    assert pbtxt({"a": Word("X"), "b": [{"c": [1, 2]}, {"c": []}]}).splitlines()[1:] == [
        "a: X", "b {", "  c: [ 1, 2 ]", "}", "b {", "  c: [  ]", "}",
    ]  # fmt: skip


def test_the_first_frame_may_be_a_real_one(artifact, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "part.png")
    write_repository(artifact, tmp_path / "models", Serving(image=tmp_path / "part.png"))
    assert (tmp_path / "models/cable-fp32/warmup/frame").read_bytes() == image.tobytes()


def test_an_engine_names_its_gpu(tmp_path):
    engine = _artifact(tmp_path, "cable-fp16.engine", kind="engine", engine=ENGINE)
    version = write_repository(engine, tmp_path / "models", Serving(device="gpu"))
    said = (version.parent / "config.pbtxt").read_text()
    assert (version / "model.plan").is_file()
    assert 'backend: "tensorrt"' in said
    assert "kind: KIND_GPU" in said
    assert 'string_value: "H100"' in said


def test_the_next_export_is_the_next_version(artifact, tmp_path):
    models = tmp_path / "models"
    first = write_repository(artifact, models)
    (models / "cable-fp32/notes").mkdir()
    second = write_repository(artifact, models)
    assert (first.name, second.name) == ("1", "2")
    assert first.is_dir()


def test_openvinos_table_keeps_other_models(artifact, tmp_path):
    models, table = tmp_path / "models", tmp_path / "models/config.json"
    write_repository(artifact, models, Serving(server="ovms", model="a"))
    write_repository(artifact, models, Serving(server="ovms", model="b", instances=2))
    write_repository(artifact, models, Serving(server="ovms", model="a", device="gpu"))
    found = [one["config"] for one in json.loads(table.read_text())["model_config_list"]]
    assert [(one["name"], one["base_path"], one["nireq"]) for one in found] == [
        ("b", "b", 2),
        ("a", "a", 1),
    ]
    assert [one["target_device"] for one in found] == ["CPU", "GPU"]
    table.write_text("[]")
    with unchanged(models), pytest.raises(OutputError, match="no table of OpenVINO Model Server"):
        write_repository(artifact, models, Serving(server="ovms"))


@pytest.mark.parametrize("last", ["config.pbtxt", "1"])
def test_a_server_never_sees_half_a_model(artifact, tmp_path, monkeypatch, last):
    """Whatever is renamed last: before it, there is no version; behind it, all is there."""
    models, seen = tmp_path / "models", []
    real = os.replace

    def watched(source: object, target: object) -> None:
        folder = models / "cable-fp32"
        versions = [path for path in folder.iterdir() if path.name.isdecimal()]
        seen.append((Path(target).name, [sorted(os.listdir(path)) for path in versions]))
        real(source, target)

    monkeypatch.setattr(os, "replace", watched)
    write_repository(artifact, models)
    names = [name for name, _ in seen]
    assert names.index("config.pbtxt") < names.index("1")
    assert all(versions == [] for _, versions in seen)
    assert last in names


def test_a_failure_leaves_nothing(artifact, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_describe_to_triton", lambda *given: 1 / 0)
    with unchanged(tmp_path), pytest.raises(ZeroDivisionError):
        write_repository(artifact, tmp_path / "models")


@pytest.mark.parametrize(
    ("changes", "serving", "words"),
    [
        ({"input": InputSpec(48, 64, BatchRange(4, 4, 4))}, {}, r"Export with --batch 1:4:4"),
        ({"input": InputSpec(32, 32, BATCH)}, {}, r"Export with --input-size HEIGHTxWIDTH"),
        ({}, {"model": "../up"}, r"model '\.\./up': expected letters, digits"),
        ({}, {"model": ""}, r"model '': expected letters"),
    ],
)
def test_what_could_not_be_served_is_refused(tmp_path, changes, serving, words):
    artifact = _artifact(tmp_path, **changes)
    with unchanged(tmp_path), pytest.raises(ExportError, match=words):
        write_repository(artifact, tmp_path / "models", Serving(**serving))


def test_a_model_of_the_networks_size_is_served_on_demand(tmp_path):
    artifact = _artifact(tmp_path, input=InputSpec(32, 32, BATCH))
    assert write_repository(artifact, tmp_path / "models", Serving(any_size=True)).is_dir()


@pytest.mark.parametrize(
    ("name", "kind", "engine", "serving", "words"),
    [
        ("a.engine", "engine", ENGINE, {}, "an engine runs on a GPU. Pass --device gpu"),
        ("a.engine", "engine", ENGINE, {"server": "ovms"}, r"ovms is given \.onnx"),
        (
            "a.engine",
            "engine",
            replace(ENGINE, builder="tensorrt-rtx"),
            {"device": "gpu"},
            "built with tensorrt-rtx, and Triton loads TensorRT's",
        ),
    ],
)
def test_files_that_a_server_cannot_load_are_refused(tmp_path, name, kind, engine, serving, words):
    artifact = _artifact(tmp_path, name, kind=kind, engine=engine)
    with unchanged(tmp_path), pytest.raises(ExportError, match=words):
        write_repository(artifact, tmp_path / "models", Serving(**serving))


def test_other_tensors_are_another_model(artifact, tmp_path):
    models = tmp_path / "models"
    write_repository(artifact, models, Serving(model="line"))
    other = _artifact(tmp_path, "other-fp32.onnx", output=OutputSpec(48, 64, 4))
    with unchanged(tmp_path), pytest.raises(ExportError, match=r"maps of 32x32.*maps of 64x48"):
        write_repository(other, models, Serving(model="line"))


def test_a_configuration_of_somebody_else_stays(artifact, tmp_path):
    folder = tmp_path / "models/cable-fp32"
    folder.mkdir(parents=True)
    (folder / "config.pbtxt").write_text('name: "mine"')
    with unchanged(tmp_path), pytest.raises(OutputError, match="was not written by this command"):
        write_repository(artifact, tmp_path / "models")


def test_a_server_that_is_unknown_is_refused():
    with pytest.raises(ExportError, match="server 'torchserve': expected triton or ovms"):
        Serving(server="torchserve")


def test_the_table_of_a_server_is_one_runs_at_a_time(artifact, tmp_path):
    repository = tmp_path / "models"
    repository.mkdir()
    with locked(repository / "config.json"), pytest.raises(OutputError, match="is writing it"):
        write_repository(artifact, repository, Serving(server="ovms"))
    assert not (repository / "cable-fp32").exists()
    write_repository(artifact, repository, Serving(server="ovms"))
