"""No command talks to another machine, or leaves an identity in the user's home folder.

See ``tests/watched.py`` for how that is seen.
"""

import re
import sys
from pathlib import Path

import pytest

from tests.watched import ROOT, Watched

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

BIN = Path(sys.executable).parent

COMMANDS = {
    "sample": "destseg-sample --output {out}/data --size 64 --train 24 --good 2",
    "train": "destseg-train --category cable --data {data} --output {out} --size 64 "
    "--batch-size 2 --steps 2,2 --teacher random",
    "threshold": "destseg-threshold {out}/cable.safetensors --normal {data}/cable/test/good",
    "export": "destseg-export --checkpoint {checkpoint} --output {out} --top-k 5 {few}",
    "inspect": "destseg-export inspect {tiny}",
    "inspect by destseg": "destseg inspect {tiny}",
    "fuse": "destseg-export fuse {onnx} --output {out}/cable-fused.onnx {few}",
    "cpp": "destseg-export cpp {tiny} {out}/project",
    "repository": "destseg-export repository {tiny} {out}/repository --any-size",
    # The random network may be refused as guessing, behind its first inference; that is status 1.
    "quantize": "destseg-export quantize {onnx} --normal {out}/data/cable/train/good --images 12 "
    "--output {out}/cable-int8.onnx || [ $? = 1 ]",
    "predict": "destseg-predict {tiny} {data}/cable/test --output {out}/predictions",
    "predict with pytorch": "destseg-predict {checkpoint} {data}/cable/test --output {out}/torch",
    "predict with openvino": "destseg-predict {tiny} {data}/cable/test --output {out}/openvino "
    "--backend openvino",
    "predict an archive": "destseg-predict {tiny} {data}/cable/test --format parquet "
    "--output {out}/archive",
    "evaluate": "destseg-evaluate {tiny} --data {data} --output {out}/report",
    "report": "destseg-report {tiny} --data {data} --output {out}/report.html",
    # It serves until a signal ends it, with the status of that signal.
    "page": "destseg-page {tiny} --port 0 & sleep 8; kill -TERM $!; wait $!; test $? = 143",
    "agreement": "destseg-bench agreement {checkpoint} {onnx} --data {data}/cable",
    "latency": "destseg-bench latency {checkpoint} {onnx} --images {data}/cable/test "
    "--rounds 1 --warmup 1",
    "layers": "destseg-bench layers {tiny} --images {data}/cable/test --runs 1",
    "tune": "destseg tune {tiny} --images {data}/cable/test --rounds 6",
    "nncf": "{python} -c 'from destseg_deploy.runtime.offline import import_nncf; import_nncf()'",
}
NEEDS = {
    "predict with openvino": "openvino",
    "nncf": "nncf",
    "predict an archive": "pyarrow",
    "evaluate": "matplotlib",
    "page": "uvicorn",
}


@pytest.fixture
def watched(tmp_path) -> Watched:
    return Watched(tmp_path)


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_asks_nothing_of_the_network(
    name, watched, out, checkpoint, onnx_artifact, tiny_artifact, category
):
    pytest.importorskip(NEEDS.get(name, "torch"))
    command = COMMANDS[name].format(
        out=out,
        data=category.parent,
        few=f"--verify-images {category / 'test/good'}",  # it draws 16 without
        checkpoint=checkpoint,
        onnx=onnx_artifact,
        tiny=tiny_artifact,
        python="python",
    )
    done = watched.run(f"{BIN}/{command}")
    assert done.returncode == 0, done.stderr
    assert watched.seen() == []


CONTROLS = {
    "a lookup in Python": "import socket; socket.getaddrinfo('example.invalid', 80)",
    "a connection in Python": "import socket; socket.create_connection(('192.0.2.1', 9), 0.1)",
    "OpenVINO alone": "import openvino",
}


@pytest.mark.parametrize("name", CONTROLS)
def test_the_guard_would_see_it(name, watched):
    if "OpenVINO" in name:
        pytest.importorskip("openvino")
        pytest.importorskip("openvino_telemetry")
    watched.run(f'{sys.executable} -c "{CONTROLS[name]}"')
    assert watched.seen()


NATIVE = """
import ctypes
c = ctypes.CDLL(None)
c.getaddrinfo(b'example.invalid', b'80', None, ctypes.byref(ctypes.c_void_p()))
"""


def test_strace_would_see_native_code(watched):
    if not watched.strace:
        pytest.skip("strace is not installed or not allowed here; apt-get install strace")
    watched.run(f'{sys.executable} -c "{NATIVE}"')
    assert watched.log.read_text() == "", "Python's guard is passed"
    assert watched.seen()


def test_every_command_is_tried():
    """A command that is added to setup.cfg is added to the table, too."""
    scripts = re.findall(
        r"^    (destseg(?:-\w+)?) = destseg_\w+", (ROOT / "setup.cfg").read_text(), re.MULTILINE
    )
    assert {line.split()[0] for line in COMMANDS.values()} >= set(scripts)
