"""A spec is read as Python reads it: the same is accepted, and the same words refuse the rest."""

import copy
import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from destseg_deploy.errors import SpecError
from destseg_deploy.spec import MAX_BATCH, MAX_SIDE, MAX_TOP_K, ModelSpec
from tests.cpp.conftest import spec_of
from tests.cpp.library import Refused

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
    spec_of(path, "onnx", (8, 8)).write(path)
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


def compare(library, artifact: Path, text: str) -> bool:
    """Compare both readers on a spec; return whether it was refused."""
    artifact.with_suffix(".json").write_text(text, encoding="utf-8")
    expected, found = python_says(artifact), library_says(library, artifact)
    assert found == expected
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
        for value in (*VALUES, ...):
            refused += compare(library, artifact, json.dumps(changed(valid, path, value)))
    assert refused > 500


def test_unknown_entries_at_every_level(library, artifact, valid):
    for path in [("zzz",), ("input", "a'b"), ("input", "batch", "best"), ("threshold", "é")]:
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
        if re.search(r",\s*[}\]]", mutated):
            continue  # Python 3.13 words a trailing comma differently
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
def test_odd_json_is_refused_with_the_same_words(library, artifact, text):
    assert compare(library, artifact, text)


def test_odd_values_inside_a_valid_spec(library, artifact, valid):
    text = json.dumps(valid)
    assert '"category": "tiny"' in text
    assert '"parity": {}' in text
    for value in ('"\\ud83d\\ude00"', '"\\ud83d"', '"\\u0000"', "1E400", "-1e400", "1e-400", "-0"):
        compare(library, artifact, text.replace('"parity": {}', f'"parity": {{"a": {value}}}'))
        assert value[0] == '"' or compare(
            library, artifact, text.replace('"category": "tiny"', f'"category": {value}')
        )
    twice = text.replace('"category": "tiny"', '"category": 1, "category": "tiny"')
    assert not compare(library, artifact, twice)


@pytest.mark.parametrize("content", [b"\xff{}", b'{"a": "\xc3"}', b'{"\xe2\x82', b"\xed\xa0\x80"])
def test_bytes_that_are_no_utf8(library, artifact, content):
    artifact.with_suffix(".json").write_bytes(content)
    expected, found = python_says(artifact), library_says(library, artifact)
    assert found.split("decode byte")[0] == expected.split("decode byte")[0]


def test_no_spec_beside_it(library, tmp_path):
    artifact = tmp_path / "tiny.onnx"
    artifact.write_bytes(b"x")
    assert library_says(library, artifact) == python_says(artifact)


def test_another_file_than_the_specs(library, tmp_path):
    artifact = tmp_path / "tiny.onnx"
    artifact.write_bytes(b"x")
    spec_of(artifact, "onnx", (8, 8)).write(artifact)
    artifact.write_bytes(b"y" * 100_000)
    expected = python_says(artifact)
    assert "mixed up" in expected
    assert library_says(library, artifact) == expected


@pytest.mark.parametrize("size", [0, 55, 56, 63, 64, 65, 119, 1 << 16, (1 << 16) + 1, 300_000])
def test_hashes_of_files_of_any_length(library, tmp_path, size):
    artifact = tmp_path / "tiny.onnx"
    artifact.write_bytes(np.random.default_rng(size).bytes(size))
    spec_of(artifact, "onnx", (8, 8)).write(artifact)
    assert library_says(library, artifact) is None


def test_sizes_at_and_beyond_the_limits(library, artifact, valid):
    for path, most in (
        (("input", "height"), MAX_SIDE),
        (("output", "top_k"), MAX_TOP_K),
        (("input", "batch", "max"), MAX_BATCH),
    ):
        assert not compare(library, artifact, json.dumps(changed(valid, path, most)))
        assert compare(library, artifact, json.dumps(changed(valid, path, most + 1)))
    wide = changed(changed(valid, ("input", "height"), MAX_SIDE), ("input", "width"), MAX_SIDE)
    assert compare(library, artifact, json.dumps(wide))


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
    assert "kind is 'model'" in library_says(library, artifact)


def test_texts_of_the_spec(library, packing):
    path, spec = packing
    with library.open(path, library.need("onnxruntime")) as handle:
        assert handle.text("category") == "tiny"
        assert handle.text("tools.onnx") == "1"
        assert handle.text("threshold.rule") == "by hand"
        assert handle.text("artifact.sha256") == spec.artifact.sha256
        assert json.loads(handle.text("spec")) == json.loads(json.dumps(asdict(spec)))
        assert handle.text("backend") == "onnxruntime"
        assert handle.text("device") == "cpu"
        assert re.match(r"\d+\.\d+", handle.text("backend.version"))
        for name in ("", ".", "nothing", "threshold", "threshold.score", "category.x"):
            with pytest.raises(Refused, match="has no such text") as refused:
                handle.text(name)
            assert refused.value.status == "argument"
