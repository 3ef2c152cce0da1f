"""What is written beside every number."""

import configparser
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from destseg_deploy import environment

ROOT = Path(environment.__file__).parents[1]
ROOTS = (ROOT, ROOT / "export", ROOT / "benchmarks")


def test_it_says_what_ran_where():
    found = environment.describe_environment()
    assert found["cores"] == os.cpu_count()
    assert found["versions"]["numpy"] == np.__version__
    assert found["cpu"]
    assert found["command"]
    json.dumps(found)


def test_missing_programs_and_packages_are_left_out(monkeypatch):
    def missing(*args, **kwargs):
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", missing)
    monkeypatch.setattr(environment, "PACKAGES", ("numpy", "no-such-package"))
    found = environment.describe_environment()
    assert found["gpu"] is None
    assert found["commit"] is None
    assert list(found["versions"]) == ["destseg-deploy", "numpy"]


def test_the_version_is_the_one_of_the_package():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert config["metadata"]["version"] == environment.VERSION


def test_a_command_is_written_without_the_folders_of_this_machine(monkeypatch, tmp_path):
    words = [str(tmp_path / "destseg-bench"), "latency", str(tmp_path / "a.onnx"), "--data", "x/y"]
    monkeypatch.setattr("sys.argv", words)
    found = environment.describe_environment()["command"]
    assert found == "destseg-bench latency a.onnx --data x/y"


def test_a_commit_is_passed_in_where_the_repository_did_not_come_along(monkeypatch):
    monkeypatch.setattr(environment, "_output", lambda *c: None)
    monkeypatch.setenv(environment.COMMIT, "7ba2ff6")
    assert environment.describe_environment()["commit"] == "7ba2ff6"
    monkeypatch.delenv(environment.COMMIT)
    assert environment.describe_environment()["commit"] is None


def test_a_repository_that_does_not_hold_this_file_says_nothing(monkeypatch, tmp_path):
    """A copy in another project's folder must not take that project's commit for its own."""
    for words in ("init -q", "-c user.name=a -c user.email=a@b commit -q --allow-empty -m x"):
        subprocess.run(["git", "-C", tmp_path, *words.split()], check=True)
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    monkeypatch.delenv(environment.COMMIT, raising=False)
    assert environment._commit() is None


def test_the_clocks_of_a_gpu_are_written_down(monkeypatch):
    asked = []
    monkeypatch.setattr(environment, "_output", lambda *c: asked.append(c) or "1980 MHz")
    assert environment.describe_environment()["gpu_clocks"] == "1980 MHz"
    assert any("clocks.sm,clocks.mem" in word for words in asked for word in words)


BARE = """
import importlib.metadata as metadata, sys
def absent(name):
    raise metadata.PackageNotFoundError(name)
metadata.version = metadata.distribution = absent
"""


def test_nothing_asks_for_this_packages_metadata():
    """A host without an installation has none; a training noticed it after its last step."""
    pytest.importorskip("torch")
    code = BARE + (
        "from destseg_deploy.environment import describe_environment\n"
        "from destseg_deploy.models.weights import checkpoint_spec\n"
        "from destseg_deploy.spec import FileRecord\n"
        "print(describe_environment()['versions'])\n"
        "print(checkpoint_spec('cable', (64, 64), FileRecord('', '')).tools)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.count(environment.VERSION) == 2, done.stderr


@pytest.mark.parametrize(
    "module",
    ["destseg_deploy.cli.predict:predict", "destseg_export.cli:export", "destseg_bench.cli:bench"],
)
def test_a_command_tells_its_version_without_metadata(module):
    name, command = module.split(":")
    code = f"{BARE}from {name} import {command}; {command}(['--version'])"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, ROOTS))}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environ
    )
    assert environment.VERSION in done.stdout, done.stderr


def test_a_changed_checkout_is_marked(monkeypatch):
    monkeypatch.setattr(environment, "_output", lambda *c: " M file" if "status" in c else "abc")
    assert environment._commit() == "abc+"
    monkeypatch.setattr(environment, "_output", lambda *c: "" if "status" in c else "abc")
    assert environment._commit() == "abc"
