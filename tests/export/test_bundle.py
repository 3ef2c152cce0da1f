"""A bundle: what is in it, whose files it leaves alone, and that it needs no network.

No index is asked here: a function that writes small wheels takes pip's place.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("packaging")

from click.testing import CliRunner

from destseg_deploy.errors import ExportError, OutputError, SpecError
from destseg_deploy.locks import locked
from destseg_deploy.spec import FileRecord
from destseg_deploy.testing import fake_spec
from destseg_deploy.thresholds import by_hand, set_threshold
from destseg_export import bundle as module
from destseg_export.bundle import PLATFORMS, bundle_artifact
from destseg_export.cli.bundle import bundle
from tests.unchanged import unchanged

ROOT = Path(__file__).resolve().parents[2]
NEEDS = {
    "destseg-deploy": [
        "numpy", "click", 'onnxruntime ; extra == "onnxruntime"', 'openvino; extra == "openvino"',
    ],
    "click": ['colorama ; platform_system == "Windows"', 'tomli; python_version < "3.11"'],
    "numpy": [], "onnxruntime": ["numpy"], "openvino": [], "colorama": [], "tomli": [],
}  # fmt: skip


def write_wheel(folder: Path, name: str) -> Path:
    """Write a wheel that holds its metadata alone."""
    stem = f"{name.replace('-', '_')}-1.0"
    path = folder / f"{stem}-py3-none-any.whl"
    needs = "".join(f"Requires-Dist: {need}\n" for need in NEEDS[name])
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{stem}.dist-info/METADATA", f"Name: {name}\nVersion: 1.0\n{needs}\n")
    return path


@pytest.fixture
def asked(monkeypatch) -> list[tuple[str, ...]]:
    """pip as it is called; it decides by this machine what is needed, as the real one does."""
    calls: list[tuple[str, ...]] = []

    def pip(*arguments: str) -> None:
        calls.append(arguments)
        folder = Path(arguments[arguments.index("--dest") + 1])
        for wanted in arguments[arguments.index("--constraint") + 2 :]:
            if wanted.endswith("]"):
                backend = wanted.rpartition("[")[2][:-1]
                for name in ("numpy", "click", backend):
                    write_wheel(folder, name)
            else:
                write_wheel(folder, wanted)

    monkeypatch.setattr(module, "_pip", pip)
    return calls


def write_artifact(path: Path, **changes: str) -> Path:
    """Write an artifact that cannot be run, and its spec."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"a model")
    replace(fake_spec(), artifact=FileRecord.of(path), **changes).write(path)
    return path


@pytest.fixture
def artifact(tmp_path) -> Path:
    return write_artifact(tmp_path / "made/cable-fp32.onnx")


@pytest.fixture
def wheel(tmp_path) -> Path:
    folder = tmp_path / "dist"
    folder.mkdir()
    return write_wheel(folder, "destseg-deploy")


@pytest.mark.parametrize(
    ("platform", "python", "packages"),
    [
        ("linux", "3.11", {"click", "destseg-deploy", "numpy", "onnxruntime"}),
        ("linux", "3.10", {"click", "destseg-deploy", "numpy", "onnxruntime", "tomli"}),
        ("win_amd64", "3.12", {"click", "colorama", "destseg-deploy", "numpy", "onnxruntime"}),
    ],
)
def test_it_holds_what_the_other_machine_needs(
    asked, wheel, artifact, tmp_path, platform, python, packages
):
    out = tmp_path / "out"
    bundle_artifact(artifact, out, platform=platform, python=python, wheel=wheel)
    lines = (out / "requirements.txt").read_text().splitlines()
    assert {line.split("==")[0] for line in lines} == packages
    assert {
        path.name.split("-")[0].replace("_", "-") for path in (out / "wheels").iterdir()
    } == packages
    scripts = set(PLATFORMS[platform].scripts)
    top = {path.name for path in out.iterdir() if path.is_file()}
    spec = artifact.with_suffix(".json").name
    assert top == {"requirements.txt", "SHA256SUMS", artifact.name, spec, *scripts}
    assert f"--python-version {python}" in " ".join(asked[0])
    assert ("win_amd64" in asked[0]) == (platform == "win_amd64")


def test_every_file_has_its_hash_and_no_placeholder_is_left(asked, wheel, artifact, tmp_path):
    out = tmp_path / "out"
    for platform in PLATFORMS:
        bundle_artifact(artifact, out / platform, platform=platform, wheel=wheel)
        sums = dict(
            reversed(line.split("  "))
            for line in (out / platform / "SHA256SUMS").read_text().splitlines()
        )
        files = {p for p in (out / platform).rglob("*") if p.is_file() and p.name != "SHA256SUMS"}
        assert set(sums) == {p.relative_to(out / platform).as_posix() for p in files}
        for path in files:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            assert sums[path.relative_to(out / platform).as_posix()] == digest
        for name in PLATFORMS[platform].scripts:
            text = (out / platform / name).read_text()
            assert artifact.name in text
            assert "{python}" not in text
            assert "--no-index" in text
            assert "--require-hashes" in text
    assert os.access(out / "linux/install.sh", os.X_OK)


def test_a_second_bundle_replaces_the_first_and_nothing_else(asked, wheel, artifact, tmp_path):
    out = tmp_path / "out"
    bundle_artifact(artifact, out, backend="openvino", wheel=wheel)
    assert (out / "wheels/openvino-1.0-py3-none-any.whl").is_file()
    bundle_artifact(artifact, out, wheel=wheel)
    assert not (out / "wheels/openvino-1.0-py3-none-any.whl").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with unchanged(other), pytest.raises(OutputError, match="not written by this command"):
        bundle_artifact(artifact, other, wheel=wheel)


def test_what_a_killed_run_left_is_no_file_of_others(asked, wheel, artifact, tmp_path):
    out = tmp_path / "out"
    (out / ".destseg-1-1-00000000-11111111").mkdir(parents=True)
    bundle_artifact(artifact, out, wheel=wheel)
    assert (out / "SHA256SUMS").is_file()


def test_two_runs_do_not_write_one_bundle(asked, wheel, artifact, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with locked(out / "bundle"), pytest.raises(OutputError, match=r"is writing it\. Wait"):
        bundle_artifact(artifact, out, wheel=wheel)


def test_a_threshold_that_was_set_in_the_bundle_is_named(asked, wheel, artifact, tmp_path):
    lines = []
    bundle_artifact(artifact, tmp_path / "out", wheel=wheel)
    set_threshold(tmp_path / "out" / artifact.name, by_hand(0.75))
    bundle_artifact(artifact, tmp_path / "out", wheel=wheel, report=lines.append)
    assert "its threshold 0.750000 (set by hand) is replaced" in lines[0]


def test_what_cannot_be_bundled_is_refused(asked, wheel, artifact, tmp_path):
    out = tmp_path / "out"
    checkpoint = write_artifact(tmp_path / "made/cable.safetensors", kind="checkpoint")
    with unchanged(tmp_path):
        with pytest.raises(ExportError, match=r"checkpoint, expected an \.onnx"):
            bundle_artifact(checkpoint, out, wheel=wheel)
        with pytest.raises(SpecError):
            bundle_artifact(tmp_path / "no.onnx", out, wheel=wheel)
        with pytest.raises(ExportError, match="platform 'mac': expected linux or win_amd64"):
            bundle_artifact(artifact, out, platform="mac", wheel=wheel)
        with pytest.raises(ExportError, match="no such wheel"):
            bundle_artifact(artifact, out, wheel=tmp_path / "no.whl")
        with pytest.raises(ExportError, match=r"'3\.11\.7': expected 3\.N, such as 3\.11"):
            bundle_artifact(artifact, out, python="3.11.7", wheel=wheel)
    assert asked == []


@pytest.mark.parametrize("version", ["3.11.7", "abc", "2.7", "3", "3.", "3.011", "", "3.11\n"])
def test_a_version_that_is_none_is_misuse(artifact, tmp_path, version):
    arguments = [str(artifact), "--output", str(tmp_path / "out"), "--python-version", version]
    with unchanged(tmp_path):
        result = CliRunner().invoke(bundle, arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    line = f"Invalid value for '--python-version': {version!r}: expected 3.N, such as 3.11."
    assert result.stderr.splitlines()[-1].startswith(f"Error: {line}".replace("\\n", r"\n"))


def test_what_is_no_wheel_of_this_project_is_refused_before_any_work(asked, artifact, tmp_path):
    other = write_wheel(tmp_path, "numpy")
    empty = tmp_path / "destseg_deploy-1.0-py3-none-any.whl"
    zipfile.ZipFile(empty, "w").close()
    said: list[str] = []
    for name, content in (
        ("odd.png", b""),
        ("odd.whl", b""),
        ("destseg_deploy-2.0-py3-none-any.whl", b"PK"),
    ):
        (tmp_path / name).write_bytes(content)
    for path in (other, empty, *(p for p in tmp_path.iterdir() if p.is_file())):
        with unchanged(tmp_path), pytest.raises(ExportError, match=f"--wheel {path}: no "):
            bundle_artifact(artifact, tmp_path / "out", wheel=path, report=said.append)
    assert (asked, said) == ([], [])


@pytest.fixture
def sources(tmp_path) -> Iterator[Path]:
    """Sources as they lie about after work: with what builds left, data, and no right to write."""
    top = tmp_path / "with space" / "sources"
    for name in (
        "setup.cfg", "pyproject.toml", "README.md", "LICENSE", "destseg_deploy/__init__.py",
        "destseg_deploy/web/page.js", "export/destseg_export/bundle.py", "cpp/src/spec.cpp",
        "benchmarks/destseg_bench/table.py",
        "build/lib/destseg_deploy/gone.py", "destseg_deploy.egg-info/SOURCES.txt",
        "destseg_deploy/__pycache__/gone.pyc", "cpp/build/spec.o", "data/cable/000.png",
        ".venv/pyvenv.cfg",
    ):  # fmt: skip
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text("")
    shutil.copy(ROOT / "setup.cfg", top)
    for path in (top, *(p for p in top.rglob("*") if p.is_dir())):
        path.chmod(0o555)
    yield top
    for path in (top, *(p for p in top.rglob("*") if p.is_dir())):
        path.chmod(0o755)


def test_the_wheel_is_made_of_a_copy_without_what_earlier_builds_left(
    sources, artifact, tmp_path, monkeypatch
):
    seen: list[set[str]] = []

    class Installed:
        version = "1.0"

        def read_text(self, name: str) -> str:
            return json.dumps({"url": sources.as_uri()})

    def pip(*arguments: str) -> None:
        if arguments[0] == "wheel":
            place = Path(arguments[-1])
            (place / "build").mkdir()  # as builders do
            files = (path for path in place.rglob("*") if path.is_file())
            seen.append({path.relative_to(place).as_posix() for path in files})
            write_wheel(Path(arguments[arguments.index("--wheel-dir") + 1]), "destseg-deploy")
        else:
            for name in ("numpy", "click", "onnxruntime"):
                write_wheel(Path(arguments[arguments.index("--dest") + 1]), name)

    monkeypatch.setattr(module, "distribution", lambda name: Installed())
    monkeypatch.setattr(module, "_pip", pip)
    with unchanged(sources):
        bundle_artifact(artifact, tmp_path / "out")
    assert seen == [
        {
            "setup.cfg", "pyproject.toml", "README.md", "LICENSE", "destseg_deploy/__init__.py",
            "destseg_deploy/web/page.js", "export/destseg_export/bundle.py", "cpp/src/spec.cpp",
            "benchmarks/destseg_bench/table.py",
        }
    ]  # fmt: skip


def test_the_copy_has_every_file_that_the_setup_names(tmp_path):
    module._copy_sources(ROOT, tmp_path)
    text = (ROOT / "setup.cfg").read_text()
    named = re.findall(r"^(?:long_description = file: |license_files = )(.+)$", text, re.MULTILINE)
    assert len(named) == 2
    assert [name for name in named if not (tmp_path / name).is_file()] == []
    assert (tmp_path / "destseg_deploy/spec.schema.json").is_file()
    assert (tmp_path / "cpp/CMakeLists.txt").is_file()
    assert not (tmp_path / "tests").exists()


PIP = """\
  error: subprocess-exited-with-error

  x Building wheel for destseg-deploy (pyproject.toml) did not run successfully.
  │ exit code: 1
  ╰─> [3 lines of output]
      running bdist_wheel
      error: could not create 'build': Read-only file system
      [end of output]

  note: This error originates from a subprocess, and is likely not a problem with pip.
  ERROR: Failed building wheel for destseg-deploy
ERROR: Failed to build one or more wheels
"""


def test_what_a_builder_says_is_passed_on():
    said = module._last(PIP.splitlines())
    assert said.startswith("error: could not create 'build': Read-only file system ERROR: Failed")


def test_what_pip_cannot_find_is_one_line(artifact, wheel, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "empty").as_uri())
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    result = CliRunner().invoke(
        bundle, [str(artifact), "--output", str(tmp_path / "out"), "--wheel", str(wheel)]
    )
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("Error: pip download failed: ERROR: ")
    assert not (tmp_path / "out").exists()


def test_the_script_refuses_a_damaged_file(asked, wheel, artifact, tmp_path):
    if not sys.platform.startswith("linux"):
        pytest.skip("a script for Linux")
    out = tmp_path / "out"
    bundle_artifact(artifact, out, wheel=wheel)
    with (out / artifact.name).open("ab") as file:
        file.write(b"x")
    done = subprocess.run(
        ["./install.sh"], cwd=out, env={**os.environ, "PYTHON": sys.executable},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert f"{artifact.name}: FAILED" in done.stdout + done.stderr
    assert not (out / "venv").exists()
