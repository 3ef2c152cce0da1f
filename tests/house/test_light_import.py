"""Importing the library loads nothing heavy, and it works where torch is not installed."""

import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "onnx",
    "onnxruntime",
    "openvino",
    "safetensors",
    "click",
    "matplotlib",
    "tensorrt",
    "tensorrt_rtx",
    "pycuda",
    "cuda",
    "starlette",
    "uvicorn",
    "jinja2",
    "pyarrow",
    "ray",
    "grpc",
)


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_loads_nothing_heavy():
    code = f"import destseg_deploy, sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert _run(code) == "[]"


def test_the_check_would_see_a_heavy_import():
    code = f"import destseg_deploy, click, sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert _run(code) == "['click']"


@pytest.mark.parametrize("command", ["predict", "evaluate", "threshold", "report", "page"])
def test_a_command_imports_no_server_before_it_serves(command):
    seen = f"print([m for m in {HEAVY!r} if m in sys.modules])"
    code = f"import destseg_deploy.cli.{command}, sys; {seen}"
    assert _run(code) == "['click']"


BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "onnx", "safetensors", "onnxscript"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
"""


def test_an_exported_model_runs_without_torch(onnx_artifact):
    pytest.importorskip("onnxruntime")
    code = f"""{BLOCK}
import numpy as np, destseg_deploy
with destseg_deploy.load({str(onnx_artifact)!r}) as predictor:
    print(predictor(np.zeros((3, 50, 70, 3), np.uint8)).anomaly_map.shape)
"""
    assert _run(code) == "(3, 64, 64)"


def test_a_checkpoint_without_torch_says_what_to_install(checkpoint):
    code = f"""{BLOCK}
import destseg_deploy
try:
    destseg_deploy.load({str(checkpoint)!r})
except destseg_deploy.BackendError as error:
    print(error)
"""
    assert "pip install 'destseg-deploy[train]'" in _run(code)


@pytest.mark.parametrize(
    "command", ["predict", "evaluate", "threshold", "sample", "train", "report", "page"]
)
def test_commands_show_their_help_without_torch(command):
    code = f"""{BLOCK}
sys.argv = ["destseg-{command}", "--help"]
from destseg_deploy.cli.{command} import {command}
{command}()
"""
    assert _run(code).startswith(f"Usage: destseg-{command} ")
