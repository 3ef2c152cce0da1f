"""INT8 artifacts: the library asks a CPU the same question as Python, and gives the same answer."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from destseg_deploy.loading import load
from destseg_deploy.options import OpenVinoOptions, OrtOptions
from destseg_deploy.runtime.int8_kernels import PRODUCT, probe_graph
from tests.cpp.library import CPP, ROOT, Library
from tests.tiny import spec_of, write_graph

SIZE = (12, 10)
BACKENDS = ("onnxruntime", "openvino")


def write_int8_model(path: Path) -> None:
    """Write a graph of two INT8 convolutions whose sums of two products pass 16 bit by far."""
    onnx = pytest.importorskip("onnx")
    helper, types, array = onnx.helper, onnx.TensorProto, onnx.numpy_helper.from_array
    random = np.random.default_rng(0)
    first = random.integers(60, 128, (16, 48, 3, 3)) * random.choice([1, 1, 1, -1], (16, 1, 1, 1))
    second = random.integers(40, 128, (1, 16, 1, 1))
    constants = {
        "one": np.float32(1),
        "step": np.float32(4e4),
        "small": np.float32(1e-8 / 127),
        "zero": np.uint8(0),
        "zero_a": np.int8(0),  # of its own: the option for exact sums refuses a shared one
        "zero_b": np.int8(0),
        "first": first.astype(np.int8),
        "second": second.astype(np.int8),
        "channel": np.array([1], np.int64),
        "corner": np.array([0, 0], np.int64),
        "beside": np.array([1, 1], np.int64),
        "axes": np.array([1, 2], np.int64),
    }
    node = helper.make_node
    nodes = [
        node("Cast", ["image"], ["cast"], to=types.FLOAT),
        node("Transpose", ["cast"], ["rgb"], perm=[0, 3, 1, 2]),
        node("Concat", ["rgb"] * 16, ["wide"], axis=1),
        node("QuantizeLinear", ["wide", "one", "zero"], ["wide8"]),
        node("DequantizeLinear", ["wide8", "one", "zero"], ["wideq"]),
        node("DequantizeLinear", ["first", "one", "zero_a"], ["firstq"]),
        node("Conv", ["wideq", "firstq"], ["sums"], pads=[1] * 4),
        node("Relu", ["sums"], ["positive"]),
        node("QuantizeLinear", ["positive", "step", "zero"], ["positive8"]),
        node("DequantizeLinear", ["positive8", "step", "zero"], ["positiveq"]),
        node("DequantizeLinear", ["second", "small", "zero_b"], ["secondq"]),
        node("Conv", ["positiveq", "secondq"], ["logit"]),
        node("Tanh", ["logit"], ["maps"]),
        node("Squeeze", ["maps", "channel"], ["anomaly_map"]),
        node("Slice", ["anomaly_map", "corner", "beside", "axes"], ["part"]),
        node("Squeeze", ["part", "axes"], ["score"]),
    ]
    initializers = [array(np.asarray(value), name) for name, value in constants.items()]
    write_graph(path, nodes, SIZE, initializers)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    """The graph with a spec that says so; and beside it ``lie.onnx``, whose spec says fp32."""
    folder = tmp_path_factory.mktemp("int8")
    for name, precision in (("tiny", "int8"), ("lie", "fp32")):
        path = folder / f"{name}.onnx"
        write_int8_model(path)
        spec_of(path, "onnx", SIZE, precision=precision).write(path)
    return folder / "tiny.onnx"


def bright() -> np.ndarray:
    return np.random.default_rng(1).integers(100, 256, (*SIZE, 3), dtype=np.uint8)


def answers(library: Library, path: Path, backend: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the maps of the library and of Python."""
    options = {"openvino": OpenVinoOptions, "onnxruntime": OrtOptions}[backend](threads=1)
    with library.open(path, backend, threads=1) as handle:
        maps, _ = handle.scores([bright()])
    return maps, load(path, options=options)(bright()).anomaly_map


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_int8_artifact_gives_pythons_bits(library, artifact, backend):
    pytest.importorskip(backend)
    maps, expected = answers(library, artifact, library.need(backend))
    assert np.array_equal(maps, expected)
    assert maps.std() > 0.001
    changed = load(artifact, options=OrtOptions(threads=1))(bright() ^ 8).anomaly_map
    assert not np.array_equal(maps, changed)  # the map tells one bit of its pixels


def test_the_question_is_pythons():
    header = (CPP / "src/int8_probe.hpp").read_text()
    body = re.search(r"kProbeGraph\[\] = {(.*?)}", header, re.S).group(1)
    assert bytes(int(byte, 16) for byte in re.findall(r"0x\w\w", body)) == probe_graph()
    assert f"kProbeSum = {64} * {255} * {127};" in header
    assert PRODUCT == 64 * 255 * 127
    source = (CPP / "src/backend_onnxruntime.cpp").read_text()
    assert "saturates()) use_exact(options)" in source


ON_HASWELL = """
import sys
from pathlib import Path
import numpy as np
from tests.cpp.library import Library
from tests.cpp.test_int8 import answers
library, artifact, backend = Library(Path(sys.argv[1])), Path(sys.argv[2]), sys.argv[3]
maps, expected = answers(library, artifact, backend)
wrong, _ = answers(library, artifact.with_name("lie.onnx"), backend)
print(np.array_equal(maps, expected), np.abs(maps - expected).max(), np.abs(maps - wrong).max())
np.save(sys.argv[4], maps)
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cpu_without_vnni_is_asked_and_answers_rightly(library, artifact, backend, tmp_path):
    """QEMU emulates one, as in tests/deploy/test_int8_kernels.py.

    The control is the same graph with a spec that hides its INT8: nobody asks, sums saturate.
    """
    qemu = shutil.which("qemu-x86_64")
    if qemu is None:
        pytest.skip("needs qemu-x86_64 on the path: apt install qemu-user")
    pytest.importorskip(backend)
    library.need(backend)
    program = [qemu, "-cpu", "Haswell", sys.executable, "-c", ON_HASWELL]
    done = subprocess.run(
        [*program, library.c._name, artifact, backend, tmp_path / "maps.npy"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    same, _, moved = done.stdout.split()
    assert same == "True", done.stdout
    assert float(moved) > 0.02  # and what saturates is far off
    here, _ = answers(library, artifact, backend)
    assert np.abs(np.load(tmp_path / "maps.npy") - here).max() < 0.02


def test_bfloat16_is_had_for_the_asking(library, onnx_artifact):
    """The same bits as Python's bf16, which are others than those of fp32."""
    openvino = pytest.importorskip("openvino")
    library.need("openvino")
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU does not compute in bfloat16")
    frame = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    maps = {}
    for precision in ("fp32", "bf16"):
        options = OpenVinoOptions(threads=1, precision=precision)
        python = load(onnx_artifact, options=options)
        with library.open(onnx_artifact, "openvino", threads=1, precision=precision) as handle:
            maps[precision], _ = handle.scores([frame])
        assert np.array_equal(maps[precision], python(frame).anomaly_map)
    assert np.abs(maps["fp32"] - maps["bf16"]).max() > 1e-3


def test_the_size_of_version_1_options_still_opens(library, artifact):
    """What lies behind an older struct is not read: here, a precision that would be refused."""
    from tests.cpp.library import Options

    old = Options(Options.precision.offset)
    old.backend, old.precision = library.need("openvino").encode(), b"no such thing"
    handle = ctypes.c_void_p()
    library.check(
        library.c.destseg_open(str(artifact).encode(), ctypes.byref(old), ctypes.byref(handle))
    )
    library.c.destseg_close(handle)
