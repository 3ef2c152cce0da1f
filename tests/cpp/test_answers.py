"""What decides a verdict is checked in the library as in Python: spec, artifact and answer."""

import ctypes
import json
import shutil
from ctypes import byref, c_float

import numpy as np
import pytest

from destseg_deploy.errors import BackendError, SpecError
from destseg_deploy.files import sha256
from destseg_deploy.loading import load
from destseg_deploy.spec import ModelSpec, spec_path
from tests.cpp.conftest import write_engine
from tests.cpp.library import Frame, Refused, Result, empty_result, frame_of
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


def zeroed(count: int):
    """Return results as a host passes them; a zero is the verdict "normal"."""
    results = (Result * count)()
    results[0].struct_size = ctypes.sizeof(Result)
    return results


def test_verdicts_of_a_call_that_fails_are_undecided(library, engine, tmp_path):
    """A host that does not look at the status takes no part for a good one."""
    view = frame_of(np.zeros((8, 6, 3), np.uint8))
    bad = frame_of(np.zeros((8, 6, 3), np.uint8))
    bad.height = 0
    write_engine(tmp_path / "bad.engine", (8, 6), "fails")
    infer, wait = library.c.destseg_infer, library.c.destseg_wait
    with library.open(engine) as handle, library.open(tmp_path / "bad.engine") as failing:
        ticket = failing.submit([view])
        frames = (Frame * 2)(view, bad)
        fine = (Frame * 2)(view, view)
        calls = {
            "no handle": lambda results: infer(None, fine, 2, results, None, 0),
            "no frames": lambda results: infer(handle.value, None, 2, results, None, 0),
            "a bad frame": lambda results: infer(handle.value, frames, 2, results, None, 0),
            "the back end": lambda results: infer(failing.value, fine, 2, results, None, 0),
            "no ticket": lambda results: wait(handle.value, 0, 0, 2, results, None, 0),
            "no predictor": lambda results: wait(None, 1, 0, 2, results, None, 0),
            "a ticket": lambda results: wait(failing.value, ticket, -1, 1, results, None, 0),
        }
        for name, call in calls.items():
            results = zeroed(2)
            assert call(results) != 0, name
            count = 1 if name == "a ticket" else 2
            assert [result.verdict for result in results] == [-1] * count + [0] * (2 - count), name
        judged = zeroed(1)
        assert library.c.destseg_judge(handle.value, c_float(2), judged) != 0
        assert judged[0].verdict == -1
        assert infer(handle.value, fine, 2, judged := zeroed(2), None, 0) == 0
        assert [result.verdict for result in judged] == [0, 0]  # the control


@pytest.mark.parametrize("threshold", [1.0000001, 1.0000000000000002, float("inf")])
def test_messages_have_the_digits_that_tell_numbers_apart(library, engine, threshold):
    anomaly_map = np.zeros((8, 6), np.float32)
    with library.open(engine) as handle:
        with pytest.raises(Refused, match=rf"threshold: {threshold}, expected 0 to 1"):
            handle.defects(anomaly_map, (8, 6), threshold)
        anomaly_map[3, 3] = score = np.float32(1.0000211)
        assert str(score) == "1.0000211"
        with pytest.raises(Refused, match=r"map: 1\.0000211 in it"):
            handle.defects(anomaly_map, (8, 6))
        with pytest.raises(Refused, match=r"score: 1\.0000211, expected"):
            library.check(library.c.destseg_judge(handle.value, c_float(score), zeroed(1)))


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
