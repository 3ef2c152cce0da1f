"""A spec is read as in Python: both accept the same, and name the same entry where they refuse."""

import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from destseg_deploy.errors import SpecError
from destseg_deploy.files import sha256
from destseg_deploy.loading import load
from destseg_deploy.runtime.trt.record import Machine, check_engine
from destseg_deploy.spec import (
    MAX_BATCH,
    MAX_NETWORK_SIDE,
    MAX_SIDE,
    ModelSpec,
    RegionSpec,
    TilingSpec,
    spec_path,
)
from tests.cpp.library import Refused
from tests.deploy.test_spec import SPEC as FULL
from tests.deploy.test_spec import sealed
from tests.tiny import spec_of, write_packing_model

VALUES = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2**70,
    1.0,
    -0.0,
    2.5e-7,
    1e16,
    123456789.25,
    float("nan"),
    float("-inf"),
    "",
    "cable",
    "it's",
    "both ' and \"",
    "line\n\ttab\\ \x7f é 日本 \U0001f600",
    [],
    [0.5, 0.5, 0.5],
    [1, 2, "3"],
    {},
    {"a": [None, {"b": "c"}]},
]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("spec") / "tiny.onnx"
    path.write_bytes(b"no model")
    parts = ("teacher", "training", "parity", "fusion", "half", "quantization", "engine")
    records = {name: getattr(FULL, name) for name in parts}
    spec_of(path, "onnx", (8, 8), **records).write(path)
    return path


@pytest.fixture(scope="module")
def valid(artifact) -> dict:
    return json.loads(artifact.with_suffix(".json").read_text())


def python_says(artifact: Path) -> str | None:
    """Return why Python refuses a spec or its pair; None when it does not."""
    try:
        spec = ModelSpec.read(artifact)
        spec.check_artifact(artifact)
    except SpecError as error:
        return str(error)
    return None


def library_says(library, artifact: Path) -> str | None:
    """Return why the library refuses it; it never gets as far as to open "no model"."""
    with pytest.raises(Refused) as refused:
        library.open(artifact)
    assert refused.value.status in ("spec", "backend")
    return refused.value.text if refused.value.status == "spec" else None


def named(message: str | None) -> str | None:
    """Return what a message is about: the file and the entry, without what is wrong with it."""
    return None if message is None else re.split(r" is |\. |[:=] expected | not JSON", message)[0]


def compare(library, artifact: Path, text: str) -> bool:
    """Compare both readers on a spec; return whether it was refused."""
    artifact.with_suffix(".json").write_text(text, encoding="utf-8")
    expected, found = python_says(artifact), library_says(library, artifact)
    assert named(found) == named(expected)
    return found is not None


def places(data: dict, path: tuple = ()):
    """Yield the path of every entry, nested ones too."""
    for name, value in data.items():
        yield (*path, name)
        if isinstance(value, dict):
            yield from places(value, (*path, name))


def changed(data: dict, path: tuple, value: object) -> dict:
    """Return a copy with one entry set, or removed for ``...``."""
    result = copy.deepcopy(data)
    inner = result
    for name in path[:-1]:
        inner = inner[name]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return result


def test_a_valid_spec_is_accepted(library, artifact, valid):
    assert not compare(library, artifact, json.dumps(valid))


def test_every_entry_with_every_kind_of_value(library, artifact, valid):
    refused = 0
    for path in places(valid):
        for number, value in enumerate((*VALUES, ...)):
            text = changed(valid, path, value)
            # Under its old digest, which refuses all but a threshold, one change is enough.
            if number == 0 or path[0] in ("digest", "threshold"):
                refused += compare(library, artifact, json.dumps(text))
            if path[0] != "digest":
                refused += compare(library, artifact, sealed(text))
    assert refused > 1000


def test_whole_numbers_beyond_every_double(library, artifact, valid):
    """A recipe may hold one; an entry that is used as a number may not."""
    large = 10**400
    recipe = changed(valid, ("training", "recipe"), {"q": large, "r": -large})
    assert not compare(library, artifact, sealed(recipe))
    for path in places(valid):
        if path[0] != "digest" and "batch" not in path:  # whose message names each number whole
            compare(library, artifact, sealed(changed(valid, path, large)))


@pytest.fixture(scope="module")
def tiled(artifact, valid) -> dict:
    """The same of frames of 40 x 30 in tiles of 8 x 8, with a region."""
    spec = ModelSpec.from_json(json.dumps(valid))
    framed = replace(
        spec,
        input=replace(spec.input, height=30, width=40),
        tiling=TilingSpec(0.5, 2, 3),
        region=RegionSpec(4, 3, 20, 20),
    )
    return json.loads(framed.to_json())


def test_entries_of_tiles_and_regions(library, artifact, tiled):
    assert not compare(library, artifact, json.dumps(tiled))
    refused = 0
    for path in places(tiled):
        if path[0] not in ("tiling", "region"):
            continue
        for value in (*VALUES, 3, 8, 29, 40, 0.1, 4.0, 4.5, ...):
            if path != ("region", "mask"):  # only Python reads the pixels; the graph holds them
                refused += compare(library, artifact, sealed(changed(tiled, path, value)))
    assert refused > 100
    for path, value in ((("output", "top_k"), 300), (("output", "top_k"), 301)):
        without = changed(changed(tiled, ("region",), None), path, value)
        assert compare(library, artifact, sealed(without)) == (value == 301)


def test_flipped_bits(library, artifact, valid):
    """Both refuse the same flips, and both name a threshold that looks edited."""
    content = json.dumps(valid, indent=2).encode()
    refused = 0
    for at in np.random.default_rng(0).choice(8 * len(content), 3000, replace=False):
        flipped = bytearray(content)
        flipped[at // 8] ^= 1 << int(at % 8)
        try:
            refused += compare(library, artifact, flipped.decode())
        except UnicodeDecodeError:
            refused += 1
    assert refused > 2700


def test_unknown_entries_at_every_level(library, artifact, valid):
    for path in [
        ("zzz",),
        ("input", "a'b"),
        ("input", "batch", "best"),
        ("threshold", "é"),
        ("engine", "cuda"),
        ("fusion", "parity", "x"),
    ]:
        assert compare(library, artifact, json.dumps(changed(valid, path, 1)))
    assert compare(library, artifact, json.dumps({**valid, "b": 1, "a": 1, "c": 1}))


@pytest.mark.parametrize("value", ["[]", "3", "null", '"x"', "1.5", "true", "{}", '{"format": 2}'])
def test_what_is_no_spec_at_all(library, artifact, value):
    assert compare(library, artifact, value)


def test_text_cut_off_anywhere(library, artifact, valid):
    text = json.dumps(valid, indent=1)
    for end in range(0, len(text), 3):
        assert compare(library, artifact, text[:end])


def test_text_with_any_character_changed(library, artifact, valid):
    text = json.dumps(valid, indent=1)
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(1500):
        at = int(random.integers(len(text)))
        new = str(random.choice(list('{}[]",:\\ \n\r\t0-+.eEuéntfN')))
        mutated = text[:at] + new + text[at + int(random.integers(2)) :]
        refused += compare(library, artifact, mutated)
    assert refused > 500


ODD = [
    "\ufeff{}",
    "{",
    '{"a"',
    '{"a" 1}',
    '{"a": 1 "b"}',
    "[1",
    "[1 2]",
    "[",
    "nul",
    "-",
    "01",
    "1.",
    "1e",
    "1e+",
    "-Infinity",
    '"\\x"',
    '"\\u12"',
    '"\\u12g4"',
    '"\\ud83d\\ude00"',
    '"\\ud83d\\u0041"',
    '"\\ud83d',
    '"a\nb"',
    '"a',
    '"a\\',
    "{} x",
    "\r\n\r\n{} \r\n x",
    "9" * 4301,
    "",
    " ",
]


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_odd_json_is_refused(library, artifact, text):
    assert compare(library, artifact, text)


def test_odd_values_inside_a_valid_spec(library, artifact, valid):
    text = json.dumps(valid)
    assert '"category": "tiny"' in text
    assert '"extra": {}' in text
    for value in ('"\\ud83d\\ude00"', '"\\ud83d"', '"\\u0000"', "1E400", "-1e400", "1e-400", "-0"):
        compare(library, artifact, text.replace('"extra": {}', f'"extra": {{"a": {value}}}'))
        assert value[0] == '"' or compare(
            library, artifact, text.replace('"category": "tiny"', f'"category": {value}')
        )
    twice = text.replace('"category": "tiny"', '"category": 1, "category": "tiny"')
    assert not compare(library, artifact, twice)


@pytest.mark.parametrize("content", [b"\xff{}", b'{"a": "\xc3"}', b'{"\xe2\x82', b"\xed\xa0\x80"])
def test_bytes_that_are_no_utf8(library, artifact, content):
    artifact.with_suffix(".json").write_bytes(content)
    expected, found = python_says(artifact), library_says(library, artifact)
    assert "cannot be read" in found
    assert "cannot be read" in expected


@pytest.mark.parametrize(
    "encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"]
)
def test_encodings_of_windows_are_read(encoding, library, artifact, valid):
    whole = sealed({**valid, "extra": {"a": "é \U0001f600"}})
    text = json.dumps(json.loads(whole), ensure_ascii=False)
    assert not compare(library, artifact, text)
    artifact.with_suffix(".json").write_bytes(text.encode(encoding))
    assert python_says(artifact) is None
    assert library_says(library, artifact) is None
    artifact.with_suffix(".json").write_bytes(text.encode(encoding)[:-1])
    assert python_says(artifact) is not None
    assert library_says(library, artifact) is not None


def test_no_spec_beside_it(library, tmp_path):
    artifact = tmp_path / "tiny.onnx"
    artifact.write_bytes(b"x")
    assert named(library_says(library, artifact)) == named(python_says(artifact))


def test_another_file_than_the_specs(library, tmp_path):
    artifact = tmp_path / "tiny.onnx"
    artifact.write_bytes(b"x")
    spec_of(artifact, "onnx", (8, 8)).write(artifact)
    artifact.write_bytes(b"y" * 100_000)
    expected = python_says(artifact)
    assert "mixed up" in expected
    assert named(library_says(library, artifact)) == named(expected)


@pytest.mark.parametrize("size", [0, 55, 56, 63, 64, 65, 119, 1 << 16, (1 << 16) + 1, 300_000])
def test_hashes_of_files_of_any_length(library, tmp_path, size):
    artifact = tmp_path / "tiny.onnx"
    artifact.write_bytes(np.random.default_rng(size).bytes(size))
    spec_of(artifact, "onnx", (8, 8)).write(artifact)
    assert library_says(library, artifact) is None


def test_sizes_at_and_beyond_the_limits(library, artifact, valid):
    for path, most in (
        (("input", "height"), MAX_SIDE),
        (("output", "width"), MAX_SIDE),
        (("network", "height"), MAX_NETWORK_SIDE),
        (("network", "width"), MAX_NETWORK_SIDE),
        (("output", "top_k"), 8 * 8),
        (("input", "batch", "max"), MAX_BATCH),
    ):
        assert not compare(library, artifact, sealed(changed(valid, path, most)))
        assert compare(library, artifact, sealed(changed(valid, path, most + 1)))
    wide = changed(changed(valid, ("input", "height"), MAX_SIDE), ("input", "width"), MAX_SIDE)
    assert compare(library, artifact, sealed(wide))


def test_a_spec_that_is_huge_or_nested_deeply_is_refused(library, artifact):
    path = artifact.with_suffix(".json")
    for text, reason in (
        (" " * (5 << 20), "more than 4 MiB"),
        ("[" * 100_000, "nested deeper than 200 levels"),
        ('{"a":' * 100_000, "nested deeper than 200 levels"),
    ):
        path.write_text(text)
        assert reason in library_says(library, artifact)


def test_the_spec_is_read_before_the_artifact(library, tmp_path, valid):
    """A damaged spec is reported, though the artifact beside it is damaged, too."""
    artifact = tmp_path / "tiny.onnx"
    artifact.write_bytes(b"y")
    assert valid["artifact"]["file"] == "tiny.onnx"
    artifact.with_suffix(".json").write_text(json.dumps({**valid, "kind": "model"}))
    assert 'kind is "model"' in library_says(library, artifact)


def test_texts_of_the_spec(library, packing):
    path, spec = packing
    with library.open(path, library.need("onnxruntime")) as handle:
        assert handle.text("category") == "tiny"
        assert handle.text("tools.onnx") == "1"
        assert handle.text("threshold.rule") == "by hand"
        assert handle.text("artifact.sha256") == spec.artifact.sha256
        assert json.loads(handle.text("spec")) == json.loads(spec.to_json())
        assert handle.text("backend") == "onnxruntime"
        assert handle.text("device") == "cpu"
        assert re.match(r"\d+\.\d+", handle.text("backend.version"))
        for name in ("", ".", "nothing", "threshold", "threshold.score", "category.x"):
            with pytest.raises(Refused, match="has no such text") as refused:
                handle.text(name)
            assert refused.value.status == "argument"


# --- format 1, and what a newer version adds


FORMAT_1 = sorted((Path(__file__).parents[1] / "deploy/format1").glob("*.json"))


@pytest.mark.parametrize("path", FORMAT_1, ids=lambda path: path.name)
def test_specs_of_format_1_are_read(library, tmp_path, path):
    """Only a model that is not there keeps them from being opened."""
    suffix = {"checkpoint": ".safetensors", "onnx": ".onnx", "engine": ".engine"}
    data = json.loads(path.read_text())
    artifact = tmp_path / f"cable{suffix[data['kind']]}"
    if data["kind"] == "checkpoint":
        artifact = artifact.with_suffix(".onnx")  # the library opens no other, but reads the spec
    artifact.write_bytes(b"no model")
    data["artifact"]["sha256"] = sha256(artifact)
    spec_path(artifact).write_text(json.dumps(data))
    assert library_says(library, artifact) in (None, rtx_refusal(artifact, data))
    data["training"], data["quantization"] = [], {}
    spec_path(artifact).write_text(json.dumps(data))
    assert "unknown entry 'quantization'" in library_says(library, artifact)


def rtx_refusal(artifact: Path, data: dict) -> str | None:
    """Return why an engine of TensorRT-RTX does not fit the fake machine; None for any other."""
    if data["engine"].get("builder") != "tensorrt-rtx":
        return None
    with pytest.raises(SpecError) as refused:
        check_engine(
            ModelSpec.read(artifact), Machine("tensorrt", "11.4.0.106", "Fake GPU", "sm_90")
        )
    return str(refused.value)


def test_a_model_with_a_spec_of_format_1_answers(library, tmp_path):
    """The typed values reach the host: sizes, threshold and texts."""
    path = tmp_path / "tiny.onnx"
    write_packing_model(path, (64, 64))
    data = json.loads((FORMAT_1[0].parent / "cable-fp32.json").read_text())
    data["artifact"]["sha256"] = sha256(path)
    spec_path(path).write_text(json.dumps(data))
    spec = ModelSpec.read(path)
    frame = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    with load(path) as predictor, library.open(path, library.need("onnxruntime")) as handle:
        maps, scores = handle.scores([frame])
        assert np.array_equal(maps, predictor(frame[None]).anomaly_map)
        assert np.array_equal(scores, predictor(frame[None]).score)
        assert handle.info.threshold_score == spec.threshold.score
        assert (handle.info.top_k, handle.info.batch_max) == (6, 16)
        assert handle.text("teacher.source") == spec.teacher.source == "random"


def test_what_a_newer_version_adds_is_ignored(library, artifact, valid):
    assert not compare(library, artifact, sealed({**valid, "extra": {"new": [{"a": None}]}}))
    for value in ([], None, "x"):
        assert compare(library, artifact, json.dumps({**valid, "extra": value}))
