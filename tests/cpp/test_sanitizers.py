"""The library under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer.

Built with the fake TensorRT alone, so that all code that runs is instrumented. What the sanitizers
see ends the program with a report.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.cpp.conftest import write_engine
from tests.cpp.library import UNITY, build, configure, need_tools, run
from tests.cpp.test_spec import ODD, VALUES, changed, places
from tests.deploy.test_spec import sealed


def sanitized(folder: Path, sanitizers: str) -> Path:
    need_tools()
    probe = folder / "probe.cpp"
    folder.mkdir()
    probe.write_text("int main() { return 0; }\n")
    command = ["c++", f"-fsanitize={sanitizers}", probe, "-o", folder / "probe"]
    if subprocess.run(command, capture_output=True, timeout=60).returncode != 0:
        pytest.skip(f"this compiler has no -fsanitize={sanitizers}")
    if subprocess.run([folder / "probe"], capture_output=True, timeout=60).returncode != 0:
        pytest.skip(f"programs with -fsanitize={sanitizers} do not run here")
    others = ["-DDESTSEG_WITH_OPENVINO=OFF", "-DDESTSEG_WITH_ONNXRUNTIME=OFF"]
    tools = ["-DDESTSEG_FAKE_TENSORRT=ON", "-DDESTSEG_BUILD_TOOLS=ON"]
    options = [f"-DDESTSEG_SANITIZE={sanitizers}", *others, *tools, *UNITY]
    configure(folder / "build", *options, optimize="-O0")  # half the time to compile
    build(folder / "build", "destseg_stress", "destseg_fake_tensorrt")
    return folder / "build/test/destseg_stress"


def run_stress(program: Path, *arguments: object) -> str:
    """Run the stress program with the fake TensorRT of its build; return what it printed."""
    fake = str(program.parents[1] / "libdestseg_fake_tensorrt.so")
    names = {"DESTSEG_TENSORRT_LIBRARY": fake, "DESTSEG_CUDART_LIBRARY": fake}
    return run(program, *arguments, env={**os.environ, **names}).stdout


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Path:
    return sanitized(tmp_path_factory.mktemp("address") / "build", "address,undefined")


@pytest.fixture(scope="module")
def thread(tmp_path_factory) -> Path:
    return sanitized(tmp_path_factory.mktemp("thread") / "build", "thread")


@pytest.mark.parametrize("word", ["", "nograph"])
def test_threads_without_a_race(thread, tmp_path, word):
    write_engine(tmp_path / "tiny.engine", (24, 20), word)
    run_stress(thread, "threads", tmp_path / "tiny.engine", 60)


@pytest.mark.parametrize("word", ["", "nograph"])
def test_memory_of_threads_and_closed_handles(address, tmp_path, word):
    write_engine(tmp_path / "tiny.engine", (24, 20), word)
    run_stress(address, "threads", tmp_path / "tiny.engine", 60)


def test_hostile_artifacts_are_refused_without_a_bad_access(address, tmp_path):
    """Specs with every kind of wrong value, cut off, of random bytes; engines that are none."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    spec = write_engine(tmp_path / "tiny.engine", (8, 6))
    data = json.loads(spec.to_json())
    text = json.dumps(data, indent=1)
    texts = [*ODD, *(text[:end] for end in range(0, len(text), 23))]
    for place in places(data):
        for wrong in [changed(data, place, value) for value in VALUES[::4]]:
            texts.append(json.dumps(wrong) if place[0] == "digest" else sealed(wrong))
    random = np.random.default_rng(0)
    raw = [random.bytes(int(size)) for size in random.integers(1, 3000, 60)]
    for i, content in enumerate([*(text.encode() for text in texts), *raw]):
        shutil.copy(tmp_path / "tiny.engine", folder / f"{i}.engine")
        (folder / f"{i}.engine.json").write_bytes(content)
    (folder / "other.engine").write_bytes(b"no engine")
    (folder / "other.engine.json").write_text(text)
    (folder / "alone.engine").write_bytes(b"no spec")
    refused, opened = map(int, run_stress(address, "hostile", folder).split())
    assert refused > 300
    assert opened > 0


def test_the_sanitizer_would_speak_up(address, tmp_path):
    """The negative control: a program that reads past its memory, with the same flags."""
    source = tmp_path / "bad.cpp"
    source.write_text("int main(int c, char **) { int *p = new int[c]; return p[c + 3]; }\n")
    run("c++", "-O0", "-fsanitize=address,undefined", source, "-o", tmp_path / "bad")
    done = subprocess.run([tmp_path / "bad"], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
