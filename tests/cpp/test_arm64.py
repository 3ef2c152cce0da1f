"""The library for Linux on 64 bit ARM: cross-compiled, run by qemu with ONNX Runtime's ARM wheel.

Its float32 kernels add in another order than those of x86, so scores agree to 1e-6 and not in bits.
The network here amplifies no rounding, as those that are trained do not: six images of a trained
one agreed to 7.3e-7. The other random network of the tests does. There float32 is up to 2.6e-6 from
float64 on ARM, 1.9e-6 in ONNX Runtime on x86 and 2.9e-6 in PyTorch.

Emulation is slow: ``make test-arm64`` runs this, and ``make test`` skips it.
"""

import importlib.metadata
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest

from destseg_bench.gpu_model import write_random_model
from destseg_export.cpp_project import write_cpp_project
from destseg_export.parity import Verification
from destseg_export.to_onnx import export_onnx
from tests.cpp.library import CPP, UNITY, build, run
from tests.cpp.test_loading import wheel
from tests.cpp.test_parity import noise, references, write_ppm

QEMU = ("qemu-aarch64-static", "qemu-aarch64")
SYSTEM = Path("/usr/aarch64-linux-gnu")
CPU = """\
processor\t: {}
Features\t: fp asimd aes pmull sha1 sha2 crc32 atomics
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0c
CPU revision\t: 1

"""
"""/proc/cpuinfo of a Neoverse N1. qemu shows that of the host, where ONNX Runtime 1.32 crashes."""
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def benign(tmp_path_factory) -> Path:
    """An artifact of random weights that does not amplify rounding."""
    if "DESTSEG_ARM64" not in os.environ:
        pytest.skip("emulation is slow; make test-arm64")
    folder = tmp_path_factory.mktemp("benign")
    checkpoint, category = write_random_model(folder, 64)
    path = folder / "cable-fp32.onnx"
    images = Verification(sorted(category.glob("test/good/*")))
    export_onnx(checkpoint, path, verification=images)
    return path


@pytest.fixture(scope="module")
def programs(benign, tmp_path_factory) -> Path:
    """The project around the artifact, built for ARM, with ONNX Runtime beside the library."""
    if shutil.which("aarch64-linux-gnu-g++") is None:
        pytest.skip("no compiler for ARM; apt-get install g++-aarch64-linux-gnu")
    folder = tmp_path_factory.mktemp("arm64")
    write_cpp_project(benign, folder / "project")
    toolchain = f"-DCMAKE_TOOLCHAIN_FILE={CPP / 'cmake/aarch64.cmake'}"
    flags = ["-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1", "-DDESTSEG_WERROR=ON", *UNITY]
    run("cmake", "-S", folder / "project", "-B", folder / "build", toolchain, *flags)
    build(folder / "build")
    with zipfile.ZipFile(wheel(importlib.metadata.version("onnxruntime"), "aarch64")) as archive:
        (name,) = (n for n in archive.namelist() if "capi/libonnxruntime.so" in n)
        (folder / "build/destseg" / Path(name).name).write_bytes(archive.read(name))
    return folder / "build"


def scores_of(programs: Path, artifact: Path, folder: Path) -> dict[str, float]:
    """Return the scores of a folder's frames on the emulated ARM, by name."""
    qemu = next((name for name in QEMU if shutil.which(name)), None)
    if qemu is None:
        pytest.skip("no qemu for ARM; apt-get install qemu-user-static")
    root = folder.with_name("system")
    (root / "proc").mkdir(parents=True)
    (root / "lib").symlink_to(SYSTEM / "lib")
    (root / "proc/cpuinfo").write_text("".join(map(CPU.format, range(os.cpu_count() or 1))))
    command = [qemu, "-L", root, programs / "inspect_folder", artifact, folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if ".ppm " in line]
    return {name: float(score) for name, score, _ in lines}


def test_scores_on_arm_are_pythons_to_a_millionth(programs, benign, tmp_path):
    """Another frame's score is further away than the tolerance: the control."""
    frames = {f"{i}.ppm": noise((64 + 9 * i, 64), i) for i in range(3)}
    folder = tmp_path / "frames"
    folder.mkdir()
    for name, frame in frames.items():
        write_ppm(folder / name, frame)
    found = scores_of(programs, benign, folder)
    score = references("onnxruntime", benign)
    expected = [float(score(frame)[1]) for frame in frames.values()]
    assert np.abs(np.array(list(found.values())) - expected).max() <= TOLERANCE
    assert np.abs(np.diff(expected)).min() > TOLERANCE
