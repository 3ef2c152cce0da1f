"""What an artifact says of itself is compared with its spec; weights outside of it are refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from destseg_deploy.errors import SpecError
from destseg_deploy.loading import load
from destseg_deploy.spec import BatchRange, FileRecord, ModelSpec
from destseg_deploy.spec.contract import ENTRIES, KEY


def copied(artifact: Path, folder: Path, change=lambda spec: spec) -> Path:
    """Copy an artifact with a changed spec whose digest and hash fit."""
    path = folder / artifact.name
    path.write_bytes(artifact.read_bytes())
    change(ModelSpec.read(artifact)).write(path)
    return path


CHANGES = {
    "category": lambda spec: replace(spec, category="screw"),
    "precision": lambda spec: replace(spec, precision="fp16"),
    "input": lambda spec: replace(spec, input=replace(spec.input, batch=BatchRange(1, 2, 8))),
    "network": lambda spec: replace(spec, network=replace(spec.network, height=96)),
    "output": lambda spec: replace(spec, output=replace(spec.output, top_k=2)),
    "checkpoint": lambda spec: replace(spec, checkpoint=FileRecord("cable.safetensors", "0" * 64)),
}


@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_spec_that_an_onnx_file_contradicts_is_refused(name, backend, tiny_artifact, tmp_path):
    pytest.importorskip(backend)
    path = copied(tiny_artifact, tmp_path, CHANGES[name])
    with pytest.raises(SpecError, match=f"says of itself that its {name} is .*, its spec says"):
        load(path, backend=backend)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_suffix_in_capitals_is_checked_as_well(backend, tiny_artifact, tmp_path):
    pytest.importorskip(backend)
    path = tmp_path / "CABLE.ONNX"
    path.write_bytes(tiny_artifact.read_bytes())
    spec = replace(ModelSpec.read(tiny_artifact), artifact=FileRecord.of(path))
    spec.write(path)
    load(path, backend=backend).close()
    CHANGES["category"](spec).write(path)
    with pytest.raises(SpecError, match="says of itself that its category"):
        load(path, backend=backend)


def square(spec: ModelSpec, side: int) -> ModelSpec:
    """Return the spec of a checkpoint with another network size."""
    return replace(
        spec,
        input=replace(spec.input, height=side, width=side),
        network=replace(spec.network, height=side, width=side),
        output=replace(spec.output, height=side, width=side),
    )


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda spec: square(spec, 96), "input"),
        (lambda spec: replace(spec, output=replace(spec.output, top_k=100)), "output"),
        (lambda spec: replace(spec, category="screw"), "category"),
    ],
)
def test_a_spec_that_a_checkpoint_contradicts_is_refused(change, name, checkpoint, tmp_path):
    """Exported, such a network passes the comparison with itself and answers 0.68 apart."""
    weights = pytest.importorskip("destseg_deploy.models.weights")
    path = copied(checkpoint, tmp_path, change)
    with pytest.raises(SpecError, match=f"says of itself that its {name} is "):
        weights.load_checkpoint(path)


def test_artifacts_that_fit_or_say_nothing_are_read(tiny_artifact, checkpoint, tmp_path):
    onnx = pytest.importorskip("onnx")
    torch = pytest.importorskip("safetensors.torch")
    for artifact in (tiny_artifact, checkpoint):
        ModelSpec.read(artifact).check_artifact(artifact)
    path = tmp_path / tiny_artifact.name
    model = onnx.load(tiny_artifact)
    assert KEY in {entry.key for entry in model.metadata_props}
    del model.metadata_props[:]
    onnx.save(model, path)
    described(path, CHANGES["category"](ModelSpec.read(tiny_artifact)))
    path = tmp_path / checkpoint.name
    torch.save_file(torch.load_file(checkpoint), path)
    described(path, CHANGES["category"](ModelSpec.read(checkpoint)))


def described(path: Path, spec: ModelSpec) -> None:
    """Check a file with a spec whose hash fits."""
    replace(spec, artifact=FileRecord.of(path)).check_artifact(path)


@pytest.mark.parametrize("text", ["", "[]", "{", "5", "[" * 9999])
def test_metadata_that_is_no_contract_is_refused(text, tiny_artifact, tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(tiny_artifact)
    onnx.helper.set_model_props(model, {KEY: text})
    onnx.save(model, path := tmp_path / "cable.onnx")
    with pytest.raises(SpecError, match="is not a contract"):
        described(path, ModelSpec.read(tiny_artifact))


def test_the_checkpoint_holds_its_contract(checkpoint):
    safetensors = pytest.importorskip("safetensors")
    with safetensors.safe_open(checkpoint, "np") as file:
        stored = json.loads(file.metadata()[KEY])
    spec = json.loads(ModelSpec.read(checkpoint).to_json())
    assert stored == {name: spec[name] for name in ENTRIES if name != "checkpoint"}


# --- weights in another file


def external(path: Path, where: str) -> Path:
    """Write a model with one tensor in another file: in the graph, a node, a branch, a function."""
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    tensor = onnx.numpy_helper.from_array(np.ones(4, np.float32), "far away")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    node = helper.make_node("Constant", [], ["y"], value=tensor)
    output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [4])
    plain = helper.make_graph([], "plain", [], [output])
    inner = helper.make_graph([node], "inner", [], [output])
    nodes = {"node": [node], "branch": [helper.make_node("If", ["c"], ["y"], then_branch=inner)]}
    graph = helper.make_graph(nodes.get(where, []), "g", [], [output])
    if where == "graph":
        graph.initializer.append(tensor)
    model = helper.make_model(graph)
    if where == "sparse":
        values = onnx.SparseTensorProto(values=tensor, dims=[4])
        model.graph.sparse_initializer.append(values)
    if where == "function":
        model.functions.append(helper.make_function("d", "f", [], ["y"], [node], []))
    if where == "training":
        model.training_info.add(algorithm=inner, initialization=plain)
    path.write_bytes(model.SerializeToString())
    return path


PLACES = ["graph", "node", "branch", "sparse", "function", "training"]


@pytest.mark.parametrize("where", PLACES)
def test_weights_in_another_file_are_refused(where, tiny_artifact, tmp_path):
    path = external(tmp_path / "cable.onnx", where)
    with pytest.raises(SpecError, match=r'tensor "far away" lies in another file'):
        described(path, ModelSpec.read(tiny_artifact))


def test_a_saved_artifact_with_external_data_is_refused(tiny_artifact, tmp_path):
    """Changed weights loaded, and the score was 4.5: the hash covers one file."""
    onnx = pytest.importorskip("onnx")
    path = tmp_path / tiny_artifact.name
    outside = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
    onnx.save(onnx.load(tiny_artifact), path, **outside)
    replace(ModelSpec.read(tiny_artifact), artifact=FileRecord.of(path)).write(path)
    for backend in ("onnxruntime", "openvino"):
        with pytest.raises(SpecError, match="lies in another file"):
            load(path, backend=backend)


def test_a_damaged_file_is_left_to_the_runtime(tiny_artifact, tmp_path):
    content = tiny_artifact.read_bytes()
    spec = ModelSpec.read(tiny_artifact)
    for damaged in (b"", b"no model", content[:100], b"\xff" * 50, b"\x08", b"\x72\xff\x01"):
        path = tmp_path / "cable.onnx"
        path.write_bytes(damaged)
        described(path, spec)


def test_the_weights_of_openvinos_format_are_hashed_with_it(tmp_path, tiny_artifact):
    path = tmp_path / "cable.xml"
    path.write_text("<net/>")
    with pytest.raises(SpecError, match=r"its weights cable\.bin are missing"):
        FileRecord.of(path)
    path.with_suffix(".bin").write_bytes(b"weights")
    spec = replace(ModelSpec.read(tiny_artifact), artifact=FileRecord.of(path))
    spec.check_artifact(path)
    path.with_suffix(".bin").write_bytes(b"Weights")
    with pytest.raises(SpecError, match="damaged or the pair was mixed up"):
        spec.check_artifact(path)


def test_a_link_that_a_spec_names_is_refused(tiny_artifact, tmp_path):
    path = copied(tiny_artifact, tmp_path)
    spec, file = ModelSpec.read(path), path.with_suffix(".json")
    assert spec.described_by(file) == path
    path.unlink()
    path.symlink_to(tiny_artifact)
    with pytest.raises(SpecError, match="symbolic link, expected the file itself"):
        spec.described_by(file)
