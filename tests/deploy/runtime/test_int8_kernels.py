"""INT8 sums: seen to be wrong where they are, and made right there."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from destseg_deploy.runtime.int8_kernels import (
    AS_FLOAT,
    EXACT,
    PRODUCT,
    openvino_saturates,
    ort_saturates,
    probe_graph,
)
from tests.fakes.onnxruntime_module import Module

CPUINFO = Path("/proc/cpuinfo")
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def vnni() -> bool:
    """Whether Linux says that this x86 CPU has one of the two VNNI extensions."""
    if platform.machine() not in ("x86_64", "AMD64") or not CPUINFO.is_file():
        pytest.skip("Linux on x86 only")
    flags = set(CPUINFO.read_text().split())
    return bool(flags & {"avx512_vnni", "avx_vnni"})


def test_onnx_runtime_is_asked_and_agrees_with_linux(vnni):
    assert ort_saturates(pytest.importorskip("onnxruntime")) is not vnni


def test_openvino_is_asked_and_agrees_with_linux(vnni):
    openvino = pytest.importorskip("openvino")
    assert openvino_saturates(openvino, openvino.Core()) is not vnni


@pytest.mark.parametrize("saturates", [False, True])
def test_the_question_tells_16_bit_sums_from_exact_ones(saturates):
    """The fake's CPU clips sums of two products as vpmaddubsw does."""
    module = Module(None, saturates=saturates)
    assert ort_saturates(module) is saturates
    (options,) = [session.options for session in module.sessions]
    assert options.intra_op_num_threads == 1, "no pool of threads for one product"


def test_smaller_values_could_not_tell():
    """Control: it is the size of the products that the question rests on."""
    saturating = Module(None, saturates=True).InferenceSession(b"", None, [("x", {})])
    for value, right in ((255, False), (128, True)):
        left, weights = np.full((1, 64), value, np.uint8), np.full((64, 1), 127, np.int8)
        (found,) = saturating.run(None, {"a": left, "b": weights})
        assert bool(found[0, 0] == 64 * value * 127) is right
    assert PRODUCT == 64 * 255 * 127 < 2**31


def test_the_graph_is_what_onnx_writes():
    onnx = pytest.importorskip("onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    tensors = {"a": kinds.UINT8, "b": kinds.INT8, "y": kinds.INT32}
    infos = [helper.make_tensor_value_info(n, kind, [None] * 2) for n, kind in tensors.items()]
    node = helper.make_node("MatMulInteger", ["a", "b"], ["y"])
    graph = helper.make_graph([node], "probe", infos[:2], infos[2:])
    opsets = [helper.make_opsetid("", 17)]
    expected = helper.make_model(graph, ir_version=8, opset_imports=opsets)
    expected.opset_import[0].ClearField("domain")  # the default, written only by the helper
    found = onnx.load_model_from_string(probe_graph())
    onnx.checker.check_model(found)
    assert found == expected


ON_HASWELL = """
import onnxruntime, openvino
from destseg_deploy.runtime.int8_kernels import openvino_saturates, ort_saturates
print(ort_saturates(onnxruntime), openvino_saturates(openvino, openvino.Core()))
"""


def test_a_cpu_without_vnni_is_told():
    """QEMU emulates one: AVX2, no VNNI. Needs qemu-user, which most machines lack."""
    qemu = shutil.which("qemu-x86_64")
    if qemu is None:
        pytest.skip("needs qemu-x86_64 on the path: apt install qemu-user")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    done = subprocess.run(
        [qemu, "-cpu", "Haswell", sys.executable, "-c", ON_HASWELL],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_the_options_names_are_in_the_libraries():
    for package, name in (("onnxruntime", EXACT), ("openvino", AS_FLOAT)):
        folder = Path(pytest.importorskip(package).__file__).parent
        libraries = [p for p in folder.rglob("*") if ".so" in p.name or p.suffix in (".dll",)]
        assert libraries, folder
        found = [p for p in libraries if p.is_file() and name.encode() in p.read_bytes()]
        assert found, f"{name} is in no library of {package}"
