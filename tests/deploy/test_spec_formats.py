"""Specs of format 1, written by the version before format 2, and the published JSON Schema."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from destseg_deploy.errors import SpecError
from destseg_deploy.spec import Accuracy, Budget, ModelSpec, TeacherRecord
from destseg_deploy.spec.schema import json_schema
from tests.deploy.test_spec import MASKED, SPEC

FOLDER = Path(__file__).parent / "format1"
PUBLISHED = Path(__file__).parents[2] / "destseg_deploy/spec.schema.json"
OLD = sorted(FOLDER.glob("*.json"))


def read(name: str) -> ModelSpec:
    return ModelSpec.from_json((FOLDER / name).read_text(), name)


def leaves(value: object) -> list[str]:
    """Return every plain value inside a JSON value, as JSON."""
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)]
    if isinstance(value, list):
        return [leaf for item in value for leaf in leaves(item)]
    return [json.dumps(value)]


def test_there_is_a_spec_of_each_kind():
    assert {read(path.name).kind for path in OLD} == {"checkpoint", "onnx", "engine"}
    assert {read(path.name).precision for path in OLD} == {"fp32", "fp16", "int8"}


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.name)
def test_format_1_is_written_as_format_2_and_nothing_is_lost(path):
    old = json.loads(path.read_text())
    assert old["format"] == 1
    text = read(path.name).to_json()
    new = json.loads(text)
    assert (new["format"], new["extra"]) == (2, {})
    assert ModelSpec.from_json(text) == read(path.name)
    old["parity"].pop("engine_run", None)  # now told from the file that was compared
    del old["format"]
    assert set(leaves(old)) <= set(leaves(new))


def test_format_1_of_a_checkpoint():
    spec = read("cable.json")
    assert spec.teacher == TeacherRecord("random")
    assert (spec.training.images, spec.training.device) == (48, "cpu")
    assert spec.training.recipe["student_steps"] == 20
    assert len(spec.training.held_out) == 12
    assert (spec.parity, spec.engine, spec.fusion, spec.half) == (None, None, None, None)


def test_format_1_of_exports():
    parity = read("cable-fp32.json").parity
    assert (parity.compared, parity.count, parity.rounding) == ("cable-fp32.onnx", 16, None)
    assert parity.budget == Budget(0.2, 0.2, 1.0)
    half = read("cable-fp16.json")
    assert half.parity.rounding == "emulated fp16"
    assert (half.half.convolutions, half.half.half_convolutions) == (66, 63)
    assert half.half.fp32_parts[0] == "pixels"
    assert half.half.largest_activation > 1
    fused = read("cable-fused.json")
    assert fused.fusion.fusions[0] == "resizes"
    assert (fused.fusion.macs_before, fused.fusion.macs_after) == (2402811904, 1993306112)
    assert fused.fusion.parity.map_max_abs < 1e-4 < fused.fusion.parity.control
    assert fused.parity.budget == parity.budget


def test_format_1_of_int8():
    spec = read("cable-int8.json")
    made = spec.quantization
    assert (made.quantiser, made.scheme, spec.parity) == ("destseg-export", "u8", None)
    assert isinstance(made.fp32, Accuracy)
    assert set(made.moved_alone) == {*made.layers, *made.given_back}


def test_format_1_of_engines():
    run, ahead = read("cable-fp16.engine.json"), read("cable-rtx.engine.json")
    assert run.parity.compared == run.artifact.file
    assert run.engine.targets == ("sm_90",)
    assert run.engine.refittable
    assert ahead.parity.compared == "cable-fp16.onnx"
    assert ahead.engine.architecture is None
    assert ahead.half.casts > 0


def changed(change) -> str:
    data = json.loads((FOLDER / "cable-fp32.json").read_text())
    change(data)
    return json.dumps(data)


def test_what_format_1_recorded_without_a_field_is_kept():
    text = changed(lambda data: data["parity"].update(note="by hand", budget={"score": 0.5}))
    spec = ModelSpec.from_json(text)
    assert spec.extra == {"parity": {"note": "by hand"}}
    assert spec.parity.budget == Budget(score=0.5)
    assert ModelSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data.update(extra={}), "unknown entry 'extra'"),
        (lambda data: data.update(engine={"key": "0"}), "engine: entry 'builder' is missing"),
        (lambda data: data.update(parity=[]), r"parity is \[\], expected an object"),
        (lambda data: data["parity"].update(map_max_abs="x"), 'map_max_abs is "x", expected a num'),
        (lambda data: data["training"].update(images=-0.5), "training: images is -0.5"),
        (lambda data: data.pop("teacher"), "entry 'teacher' is missing"),
        (lambda data: data["parity"].update(fused={"macs": 5}), "fusion: parity is null"),
        (lambda data: data["parity"].update(casts=1, largest_activation="x"), "half: entry"),
    ],
)
def test_a_damaged_spec_of_format_1_is_refused(change, words):
    with pytest.raises(SpecError, match=words):
        ModelSpec.from_json(changed(change))


# --- the schema


@pytest.fixture(scope="module")
def validator():
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(json.loads(PUBLISHED.read_text()))
    return jsonschema.Draft202012Validator(json.loads(PUBLISHED.read_text()))


def test_the_published_schema_is_up_to_date():
    """Write it with ``python -m destseg_deploy.spec.schema > destseg_deploy/spec.schema.json``."""
    assert json.loads(PUBLISHED.read_text()) == json_schema()


def test_written_specs_of_every_kind_are_valid(validator, checkpoint, onnx_artifact):
    specs = [SPEC, MASKED, *(read(path.name) for path in OLD)]
    specs += [ModelSpec.read(path) for path in (checkpoint, onnx_artifact)]
    specs.append(replace(SPEC, threshold=None, teacher=None, training=None, extra={}))
    for spec in specs:
        validator.validate(json.loads(spec.to_json()))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.pop("kind"),
        lambda data: data.update(format=1),
        lambda data: data.update(colour="RGB"),
        lambda data: data.update(precision="fp8"),
        lambda data: data["input"].update(height=0),
        lambda data: data["input"].update(color="BGR"),
        lambda data: data["network"]["mean"].append(0.5),
        lambda data: data["threshold"].update(score="0.5"),
        lambda data: data["parity"].pop("control"),
        lambda data: data["engine"].update(targets="sm_90"),
        lambda data: data["quantization"].update(scheme="u4"),
        lambda data: data["fusion"]["parity"].update(count=1.5),
        lambda data: data["training"]["losses"].update(student=None),
    ],
)
def test_damaged_specs_are_neither_valid_nor_read(validator, change):
    data = json.loads(SPEC.to_json())
    assert validator.is_valid(data)
    change(data)
    assert not validator.is_valid(data)
    if data.get("format") != 1:
        with pytest.raises(SpecError):
            ModelSpec.from_json(json.dumps(data))
