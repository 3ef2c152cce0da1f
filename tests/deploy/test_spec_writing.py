"""An artifact and its spec: under a right name, over nothing of others, both or none."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from destseg_deploy.errors import OutputError
from destseg_deploy.models.weights import checkpoint_spec
from destseg_deploy.spec import (
    FileRecord,
    ModelSpec,
    Threshold,
    check_output,
    settle_threshold,
    with_own_threshold,
    writing,
)

SET = Threshold(0.25, 0.5, "set by hand")
INHERITED = Threshold(0.75, 0.8, "best F1")


def spec_of(name: str, weights: str = "ab", threshold: Threshold | None = INHERITED) -> ModelSpec:
    record = FileRecord(name, weights)
    return checkpoint_spec("cable", (64, 64), record, threshold=threshold)


@pytest.mark.parametrize("name", ["cable", "cable.json", "cable.onnx.txt", "cable."])
def test_a_wrong_suffix_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"expected a name that ends in \.onnx"):
        check_output(tmp_path / name, ".onnx")


def test_a_suffix_in_capitals_is_taken(tmp_path: Path) -> None:
    """Of a file that came so, in whose place a command writes."""
    check_output(tmp_path / "CABLE.ONNX", ".onnx")


def test_the_spec_of_another_file_is_not_replaced(tmp_path: Path) -> None:
    spec_of("cable.safetensors").write(tmp_path / "cable.safetensors")
    with pytest.raises(OutputError, match=r"cable\.json, which describes a \.safetensors file"):
        check_output(tmp_path / "cable.onnx", ".onnx")
    check_output(tmp_path / "cable.safetensors", ".safetensors")


@pytest.mark.parametrize("text", ["{}", "[]", "1", '{"artifact": 3}', "not JSON"])
@pytest.mark.parametrize("there", [True, False])
def test_other_json_is_not_replaced(text: str, there: bool, tmp_path: Path) -> None:
    """Except for a damaged spec with its artifact beside it."""
    (tmp_path / "a.json").write_text(text)
    if there:
        (tmp_path / "a.onnx").touch()
    if there and text == "not JSON":
        check_output(tmp_path / "a.onnx", ".onnx")
        return
    with pytest.raises(OutputError, match=r"a\.json, which is not a spec of destseg-deploy"):
        check_output(tmp_path / "a.onnx", ".onnx")


def test_a_model_of_another_program_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").touch()
    with pytest.raises(OutputError, match=r"exists without a\.json beside it"):
        check_output(tmp_path / "a.onnx", ".onnx")
    check_output(tmp_path / "a.onnx", ".onnx", is_ours=lambda path: True)


def test_a_writer_that_is_refused_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError), writing(tmp_path / "new/a.txt", ".onnx"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_two_writers_of_one_artifact(tmp_path: Path) -> None:
    with writing(tmp_path / "a.onnx", ".onnx") as staged:
        staged.write_text("graph")
        with (
            pytest.raises(OutputError, match="is writing it"),
            writing(tmp_path / "a.onnx", ".onnx"),
        ):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


@pytest.mark.parametrize(
    ("before", "new", "kept", "line"),
    [
        (None, spec_of("a"), INHERITED, None),
        (spec_of("a"), spec_of("a"), INHERITED, None),
        (with_own_threshold(spec_of("a"), SET), spec_of("a"), SET, "keeps the threshold 0.25"),
        (with_own_threshold(spec_of("a"), SET), spec_of("a", threshold=None), SET, "keeps"),
        (with_own_threshold(spec_of("a"), SET), spec_of("a", "cd"), INHERITED, "drops the thres"),
        (
            with_own_threshold(spec_of("a"), SET),
            replace(spec_of("a"), precision="fp16"),
            INHERITED,
            "drops the threshold 0.250000 (set by hand)",
        ),
        (settle_threshold(spec_of("a"), Path("none")), spec_of("a", threshold=SET), SET, None),
    ],
)
def test_a_threshold_that_was_set_before_is_kept_or_named(
    before: ModelSpec | None,
    new: ModelSpec,
    kept: Threshold,
    line: str | None,
    tmp_path: Path,
) -> None:
    """The last one: it came with the weights, and so does the new one."""
    lines: list[str] = []
    if before is not None:
        before.write(tmp_path / "a.safetensors")
    settled = settle_threshold(new, tmp_path / "a.safetensors", lines.append)
    assert settled.threshold == kept
    assert len(lines) == (line is not None)
    assert line is None or line in lines[0]
    # What is kept once is kept again.
    settled.write(tmp_path / "a.safetensors")
    assert settle_threshold(new, tmp_path / "a.safetensors").threshold == kept
    assert json.loads(settled.to_json())["format"] == 2


def test_a_read_only_folder_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quantisation takes minutes, and root may write where the mode forbids it."""
    check_output(tmp_path / "new/deeper/cable.onnx", ".onnx")  # the control
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    for name in ("cable.onnx", "new/deeper/cable.onnx"):
        with pytest.raises(OutputError, match=f"^{tmp_path}: cannot be written"):
            check_output(tmp_path / name, ".onnx")
    assert list(tmp_path.iterdir()) == []
