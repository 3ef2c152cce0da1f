"""What decides a verdict is checked in the library as in Python: spec, artifact and answer."""

import json
import shutil
from ctypes import byref, c_float

import numpy as np
import pytest

from destseg_deploy.errors import BackendError, SpecError
from destseg_deploy.files import sha256
from destseg_deploy.loading import load
from destseg_deploy.spec import ModelSpec, spec_path
from tests.cpp.library import Refused, empty_result
from tests.deploy.test_spec_contract import CHANGES, PLACES, copied, external
from tests.tiny import spec_of, write_graph

BACKENDS = ["onnxruntime", "openvino"]


def refusal(library, path, backend: str = "onnxruntime") -> str:
    """Return why neither Python nor the library opens an artifact."""
    with pytest.raises(SpecError) as expected:
        load(path, backend=backend)
    with pytest.raises(Refused) as refused:
        library.open(path, library.need(backend))
    assert refused.value.status == "spec"
    assert refused.value.text == str(expected.value)
    return refused.value.text


@pytest.fixture
def dividing(tmp_path):
    """An artifact whose map is red over green: NaN for black, infinite for red, 2 for (2, 1, 0)."""
    onnx = pytest.importorskip("onnx")
    node, array = onnx.helper.make_node, onnx.numpy_helper.from_array
    constants = [
        array(np.array([1, 1, 1], np.int64), "each"),
        array(np.array([3], np.int64), "last"),
        array(np.array([1, 2], np.int64), "sides"),
    ]
    nodes = [
        node("Cast", ["image"], ["pixels"], to=onnx.TensorProto.FLOAT),
        node("Split", ["pixels", "each"], ["r", "g", "b"], axis=3),
        node("Div", ["r", "g"], ["ratio"]),
        node("Squeeze", ["ratio", "last"], ["anomaly_map"]),
        node("ReduceMean", ["anomaly_map", "sides"], ["score"], keepdims=0),
    ]
    path = tmp_path / "dividing.onnx"
    write_graph(path, nodes, (4, 4), constants)
    spec_of(path, "onnx", (4, 4)).write(path)
    return path


def frame(colour: tuple[int, int, int]) -> np.ndarray:
    return np.full((4, 4, 3), colour, np.uint8)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("colour", [(0, 0, 0), (9, 0, 0), (2, 1, 0)], ids=str)
def test_answers_outside_of_0_to_1_are_errors(library, dividing, backend, colour):
    with (
        load(dividing, backend=backend) as predictor,
        library.open(dividing, library.need(backend)) as handle,
    ):
        with pytest.raises(BackendError, match="No verdict"):
            predictor(frame(colour))
        with pytest.raises(Refused, match=r"the runtime returned the .*No verdict") as refused:
            handle.scores([frame((1, 2, 0)), frame(colour)])
        assert refused.value.status == "backend"
        assert handle.scores([frame((1, 2, 0))])[1] == predictor(frame((1, 2, 0))).score == 0.5


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf"), -0.1, 1.001])
def test_judge_refuses_what_is_no_score(library, packing, score):
    path, _ = packing
    with library.open(path, library.need("onnxruntime")) as handle:
        with pytest.raises(Refused, match=r"score: .*expected a number from 0 to 1") as refused:
            library.check(
                library.c.destseg_judge(handle.value, c_float(score), byref(empty_result()))
            )
        assert refused.value.status == "argument"


def test_an_edited_threshold_is_named_as_such(library, packing, tmp_path):
    path = tmp_path / "tiny.onnx"
    shutil.copy(packing[0], path)
    data = json.loads(packing[1].to_json())
    data["threshold"].update(score=0.5, images=40)
    spec_path(path).write_text(json.dumps(data))
    assert ModelSpec.read(path).threshold.rule == "set by hand"
    with library.open(path, library.need("onnxruntime")) as handle:
        assert handle.text("threshold.rule") == "set by hand"
        assert (handle.info.threshold_score, handle.info.threshold_images) == (0.5, 0)
    for wrong in (45.5, -0.1, 1.5):
        data["threshold"]["score"] = wrong
        spec_path(path).write_text(json.dumps(data))
        assert f"score is {wrong}" in refusal(library, path)


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_spec_that_the_file_contradicts_is_refused(
    library, tiny_artifact, tmp_path, name, backend
):
    path = copied(tiny_artifact, tmp_path, CHANGES[name])
    assert f"says of itself that its {name} is " in refusal(library, path, backend)


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_in_another_file_are_refused(library, tmp_path, where, backend):
    path = external(tmp_path / "tiny.onnx", where)
    spec_of(path, "onnx", (8, 8)).write(path)
    assert 'tensor "far away" lies in another file' in refusal(library, path, backend)


def test_an_artifact_that_fits_opens(library, onnx_artifact):
    assert sha256(onnx_artifact) == ModelSpec.read(onnx_artifact).artifact.sha256
    with library.open(onnx_artifact, library.need("onnxruntime")) as handle:
        assert handle.text("category") == "cable"
