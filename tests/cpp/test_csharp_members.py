"""Each public member of the C# assembly does what it says, on Mono; what an engineer gets wrong."""

import ctypes
import importlib.metadata
import os
import re
from pathlib import Path

import numpy as np
import pytest

from destseg_deploy.environment import allowed_cores
from destseg_deploy.loading import load
from destseg_deploy.options import OpenVinoOptions
from destseg_deploy.spec import Threshold
from destseg_deploy.tuning import Choice
from tests.cpp.conftest import write_engine
from tests.cpp.csharp import compile_, mono
from tests.cpp.library import CPP, Result, frame_of
from tests.cpp.test_tuning import write as write_tuning
from tests.tiny import write_packing_model

FOLDER = "Prüfteil 検査"
SOURCES = (CPP / "test/Members.cs", CPP / "test/Tests.cs")


@pytest.fixture(scope="module")
def members(assembly):
    """Return a function that runs a case of Members.cs; its lines."""
    program = assembly.parent / "Members.exe"
    compile_(program, f"-r:{assembly}", SOURCES[0])

    def call(*arguments: object) -> list[str]:
        done = mono(program, *arguments)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout.splitlines()

    return call


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    """A packing model of 8 x 6 pixels, in a folder that no code page of Windows holds."""
    path = tmp_path_factory.mktemp("other") / FOLDER / "andere.onnx"
    path.parent.mkdir()
    write_packing_model(path, (8, 6), threshold=Threshold(0.9, 0.75, "by hand"))
    return path


@pytest.fixture
def slow(tmp_path) -> Path:
    """An engine of 8 x 6 pixels whose inference takes 0.3 s."""
    write_engine(tmp_path / "slow.engine", (8, 6), "slow")
    return tmp_path / "slow.engine"


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return what Members.cs scores."""
    values = (np.arange(height * width * 3) + seed) * 7919 >> 3
    return values.astype(np.uint8).reshape(height, width, 3)


def first_bits(image: np.ndarray) -> str:
    """Return the bits of a packing model's score."""
    score = np.dot(image[0, 0].astype(np.float64), [1, 256, 65536]) / 2**24
    return str(np.float32(score).view(np.int32))


def untested(documentation: str, tests: str) -> list[str]:
    """Return the methods and properties of an assembly that a text does not name."""
    found = re.findall(r'name="[MP]:Destseg\.(\w+)\.(\w+)', documentation)
    return [f"{kind}.{name}" for kind, name in found if not re.search(rf"\b{name}\b", tests)]


def test_every_public_member_is_in_a_test(assembly):
    documentation = assembly.with_suffix(".xml").read_text(encoding="utf-8")
    tests = "".join(path.read_text(encoding="utf-8") for path in SOURCES)
    tests += Path(__file__).read_text(encoding="utf-8")
    assert len(re.findall('name="[MP]:', documentation)) > 60
    assert untested(documentation, tests) == []
    assert untested('name="P:Destseg.Options.Forgotten' + "One", tests) == [
        "Options.Forgotten" + "One"
    ]


def test_what_an_artifact_takes_and_gives(library, members, packing):
    version, sizes = members("facts", packing[0])
    assert (
        version == f"{importlib.metadata.version('destseg-deploy')} {', '.join(library.backends)}"
    )
    assert sizes == "True 40 24 40 24 2 0.25 0.5"


def test_scores_verdicts_and_defects_are_those_of_c(library, members, tmp_path):
    write_packing_model(tmp_path / "tiny.onnx", (8, 6), threshold=Threshold(0.5, 0.75, "by hand"))
    frame, *answers, defect = members("answers", tmp_path / "tiny.onnx")
    assert frame == "20 Mono8 8 6 0 0"
    grey = np.zeros((8, 6), np.uint8)
    grey[0] = 200
    with library.open(tmp_path / "tiny.onnx") as handle:
        maps, (seen,) = handle.infer([frame_of(grey)])
        judged = Result(struct_size=ctypes.sizeof(Result))
        library.check(library.c.destseg_judge(handle.value, 0.125, ctypes.byref(judged)))
        (region,) = handle.defects(maps[0], (8, 6))
    assert (seen.verdict, judged.verdict) == (1, 0)

    def bits(value: float) -> str:
        return str(np.float32(value).view(np.int32))

    for line, result, verdict in zip(answers, (seen, judged), ("Anomalous", "Normal"), strict=True):
        assert line == f"{bits(result.score)} {bits(result.normalized_score)} {verdict}"
    assert defect == f"{bits(region.peak)} 6 1 0"


def test_a_reload_changes_the_artifact_and_leaves_what_was_begun(members, packing, other, slow):
    """Maps of tickets and predictions keep their size; the old ones are not cut up as new ones."""
    lines = iter(members("reload", packing[0], other, other.with_name("gone.onnx"), slow))
    second = first_bits(pixels(40, 24, 5))
    assert next(lines) == f"True {second}"
    assert next(lines).startswith(f"missing Backend {other.with_name('gone.onnx')}: no such file.")
    assert "slow.engine: the handle was opened with a .onnx." in next(lines)
    assert next(lines) == "True 40 24 40 24 2 0.25 0.5"
    assert next(lines) == "True 8 6 8 6 2 0.9 0.75"
    assert next(lines) == f"{first_bits(pixels(8, 6, 9))} 48"
    assert next(lines) == f"{second} True"
    assert next(lines).startswith("old map ArgumentException map: 960 values, expected 8 * 6.")
    assert next(lines) == f"True {second}"


def test_the_times_say_where_a_call_was(members, slow):
    none, times, waited, beside = members("times", slow)
    assert none == "0 0"
    frames, *stages = times.split()
    for_lane, prepared, inferred, finished = map(float, stages)
    assert frames == "2"
    assert inferred > 290
    assert min(prepared, finished) > 0
    assert for_lane >= 0
    assert float(waited) > 100  # with one lane
    assert float(beside) < float(waited)  # with two


def test_a_queue_of_one_is_full_with_a_ticket(members, slow):
    full, collected, room, refused = members("queue", slow)
    assert re.fullmatch(r"True True \d+", full)
    assert int(full.split()[-1]) >= 59
    assert collected == "True True"
    assert room == "True"
    assert refused == "queue Argument options: queue 1025, expected 0 to 1024."


def test_the_hosts_array_of_frames_may_change_afterwards(members, packing):
    """The defects are in the pixels of the frames that were scored."""
    assert members("one-array", packing[0]) == ["0 0 0"] * 2


def test_the_back_end_and_its_precision(library, members, onnx_artifact):
    library.need("openvino")
    import openvino

    capable = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    maps = {}
    for precision in ("fp32", "bf16") if capable else ("fp32",):
        given = ["Backend=openvino", "Threads=1", f"Precision={precision}"]
        ran, words, *_ = members("open", onnx_artifact, *given)
        assert ran == "openvino cpu"
        maps[precision] = np.array(words.split(), np.int32).view(np.float32)
        options = OpenVinoOptions(threads=1, precision=precision)
        with load(onnx_artifact, options=options) as python:
            assert np.array_equal(maps[precision], python(pixels(64, 64)).anomaly_map.ravel())
    if capable:
        assert np.abs(maps["fp32"] - maps["bf16"]).max() > 1e-3


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["Backend=onnxruntime", "Precision=bf16"], "precision 'bf16' was given, but the back end"),
        (["Backend=openvino", "Precision=fp16"], "precision 'fp16': expected fp32 or bf16"),
        (["Backend=tensorrt"], "the back end 'tensorrt' does not open such files"),
        (["Backend=openvino", "Device=cuda"], "the OpenVINO back end runs on 'cpu' only"),
        (["Device=gpu"], "device 'gpu': expected cpu, cuda or cuda:<index>."),
        (
            ["Backend=openvino", "Spinning=false"],
            "worker_cores and no_spinning are of ONNX",
        ),
        (
            ["Backend=openvino", f"WorkerCores={allowed_cores()[0]}"],
            "worker_cores and no_spinning are of ONNX",
        ),
        (["Backend=onnxruntime", "WorkerCores=9999"], "this process may not run on 9999"),
        (["Threads=1025"], "options: threads 1025, expected 0 to 1024"),
        (["Parallel=65"], "options: parallel 65, expected 0 to 64"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_options_that_are_refused(library, members, other, given, words):
    for backend in ("onnxruntime", "openvino"):
        library.need(backend)
    (line,) = members("open", other, *given)
    assert line.startswith("opening ")
    assert words in line


def test_without_a_gpu_cuda_is_refused_with_the_cause(library, members, other):
    library.need("onnxruntime")
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    (line,) = members("open", other, "Backend=onnxruntime", "Device=cuda")
    assert line.startswith("opening Backend device 'cuda:0': this ONNX Runtime (")
    assert "has no CUDAExecutionProvider" in line


def test_threads_are_pinned_to_the_worker_cores(library, members, other):
    library.need("onnxruntime")
    if not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core only")
    core = str(max(os.sched_getaffinity(0)))
    for given, pinned in (([f"WorkerCores={core}"], True), (["Threads=2"], False)):
        _, _, cores, _ = members("open", other, "Backend=onnxruntime", *given)
        assert (core in cores.split()) == pinned


def test_a_tuning_is_followed_and_one_of_another_pc_is_refused(library, members, other, tmp_path):
    library.need("openvino")
    artifact = tmp_path / other.name
    for suffix in (".onnx", ".json"):
        artifact.with_suffix(suffix).write_bytes(other.with_suffix(suffix).read_bytes())
    assert "tuning.json: no such file" in members("open", artifact, "Tuned=true")[0]
    tuning = write_tuning(artifact, Choice("openvino", threads=1))
    assert members("open", artifact, "Tuned=true")[0] == "openvino cpu"
    assert "which the tuning decides" in members("open", artifact, "Tuned=true", "Threads=1")[0]
    tuning.write_text(re.sub(r'"cpu": "[^"]*"', '"cpu": "Another"', tuning.read_text()))
    (line,) = members("open", artifact, "Tuned=true")
    assert line.startswith("opening Backend ")
    assert "made on Another with" in line


def test_after_dispose_every_call_says_so(library, members, packing):
    """A second Dispose does nothing; what was found is still there."""
    library.need("onnxruntime")
    *lines, last = members("disposed", packing[0])
    names = "Infer Submit Wait Reload WarmUp GetTimes Judge GetText FindDefects MapAtFrame Defects"
    assert [line.split()[0] for line in lines] == names.split()
    for line in lines:
        assert re.search(r"ObjectDisposedException .*Predictor", line), line
    assert last == "True"


def test_wrong_arguments_are_named(members, other):
    expected = {
        "path": "ArgumentNullException .*path",
        "zero": "ArgumentException path: holds a zero character, at ",
        "option": "ArgumentException options: holds a zero character, at 3",
        "pixels": "ArgumentNullException .*pixels",
        "words": "ArgumentNullException .*pixels",
        "part": "ArgumentException frame: pixels is null. Pass its memory.",
        "huge": "ArgumentException pixels: 3 bytes, expected at least 138350580",
        "below": "ArgumentOutOfRangeException .*stride",
        "infer": "ArgumentNullException .*frames",
        "element": "ArgumentNullException .*frames",
        "submit": "ArgumentNullException .*frames",
        "submitted": "ArgumentNullException .*frames",
        "wait": "ArgumentNullException .*ticket",
        "reload": "ArgumentNullException .*path",
        "text": "ArgumentNullException .*name",
        "map": "ArgumentNullException .*map",
        "size": "ArgumentNullException .*map",
        "side": "Shape frame: 2147483647x2147483647 pixels, expected 1 to 65536 on each side.",
        "index": "ArgumentOutOfRangeException .*index",
        "defects": "ArgumentOutOfRangeException .*index",
        "pointer": "Argument frame: pixels is null.",
        "stride": "Argument frame: a stride of 17 bytes, expected at least the 18 of a row",
        "maximum": "Argument frame: maximum 65536 for format 7, expected 0, or 1 to 65535",
        "unset": "Argument text 'no such entry': andere.onnx has no such text.",
    }
    found = dict(line.split(" ", 1) for line in members("wrong", other))
    assert found.keys() == expected.keys()
    for name, words in expected.items():
        assert re.match(words, found[name]), (name, found[name])


def test_the_maximum_is_white(members, packing):
    values = (np.arange(40 * 24) % 300).astype(np.uint16).reshape(40, 24)
    with load(packing[0]) as python:
        expected = python(values, frame_format="mono16", maximum=299).anomaly_map.ravel()[155]
        plain = python(values, frame_format="mono16").anomaly_map.ravel()[155]
    assert members("maximum", packing[0]) == [str(expected.view(np.int32))] != [str(plain)]


def test_a_predictor_that_nobody_disposed_is_closed_by_its_finaliser(library, members, packing):
    library.need("onnxruntime")
    ((opened, left),) = (line.split() for line in members("finalised", packing[0]))
    assert int(opened) >= 10
    assert int(left) <= 2


def test_arrays_do_not_move_while_they_are_read(members, packing):
    """The collector runs in another thread."""
    assert members("moved", packing[0]) == ["40"]


def test_two_predictors_in_two_threads_keep_their_answers_and_errors(members, packing, other):
    assert members("two", packing[0], other) == ["100 100"]
