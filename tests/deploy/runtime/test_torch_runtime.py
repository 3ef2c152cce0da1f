"""What is particular to the PyTorch back end; the contract is test_runtime_contract.py's."""

import copy
import gc
import os
import subprocess
import sys
import weakref

import pytest

pytest.importorskip("torch")

import torch

from destseg_deploy.errors import BackendError
from destseg_deploy.options import TorchOptions
from destseg_deploy.runtime.torch_runtime import PyTorchRuntime, open_checkpoint, switched
from destseg_deploy.spec import ModelSpec
from destseg_deploy.training.precision import tuned_convolutions


@pytest.mark.parametrize("before", [True, False])
def test_tf32_is_off_while_a_gpu_infers_and_as_before_afterwards(monkeypatch, before):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", before)
    with switched(torch.device("cuda"), tf32=False):
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before
    with pytest.raises(ZeroDivisionError):
        _fail_while_guarded()
    assert torch.backends.cudnn.allow_tf32 == before


PRODUCTS = {
    "nothing": lambda: None,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "allow_tf32": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "the newer switch": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
}
"""What a program may have asked for before."""

READ = {
    "TF32 of products": "torch.backends.cuda.matmul.allow_tf32",
    "their precision": "torch.get_float32_matmul_precision()",
    "a CPU's": "torch.backends.mkldnn.matmul.fp32_precision",
    "the newer one": "torch.backends.cuda.matmul.fp32_precision",
}


def _products():
    """Return the switches; PyTorch refuses to read some of them after a mix."""
    found = {}
    for name, code in READ.items():
        try:
            found[name] = eval(code)
        except (AttributeError, RuntimeError) as error:
            found[name] = type(error).__name__
    return found


@pytest.fixture
def untouched():
    """Products as a program has them that asks for nothing."""
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("asked", PRODUCTS)
@pytest.mark.parametrize(
    "guard",
    [lambda device: switched(device, tf32=True), tuned_convolutions],
    ids=["inference", "training"],
)
def test_products_are_float32_on_a_gpu_and_as_before_afterwards(asked, guard, untouched):
    """A resize by products needs all bits, whatever convolutions may use and the program asks."""
    if asked == "the newer switch" and not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("this PyTorch has one switch")
    PRODUCTS[asked]()
    before = _products()
    with guard(torch.device("cuda")):
        assert _products()["TF32 of products"] is False
    assert _products() == before
    with guard(torch.device("cpu")):
        assert _products() == before


def _fail_while_guarded():
    with switched(torch.device("cuda"), tf32=False):
        raise ZeroDivisionError


def test_a_cpu_does_not_touch_it(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with switched(torch.device("cpu"), tf32=False):
        assert torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("tf32", [False, True])
def test_a_checkpoint_infers_as_its_options_say_on_a_gpu(checkpoint, frames, monkeypatch, tf32):
    """The guard stands around the graph: told that its device were a GPU, it decides on TF32."""
    runtime = open_checkpoint(checkpoint)
    seen = []
    graph = runtime._graph

    def watched(pixels):
        seen.append(torch.backends.cudnn.allow_tf32)
        return graph(pixels)

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", not tf32)
    runtime._graph = watched
    runtime._tf32 = tf32
    runtime.infer(frames)
    monkeypatch.setattr(
        "destseg_deploy.runtime.torch_runtime.switched",
        lambda device, *, tf32: switched(torch.device("cuda"), tf32=tf32),
    )
    runtime.infer(frames)
    assert seen == [not tf32, tf32]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_close_lets_go_of_the_networks_while_the_runtime_lives(model, checkpoint, precision):
    own = copy.deepcopy(model)
    networks = weakref.ref(own)
    spec = ModelSpec.read(checkpoint)
    runtime = PyTorchRuntime(own, spec, options=TorchOptions(precision=precision))
    del own
    runtime.close()
    gc.collect()
    assert networks() is None
    with pytest.raises(BackendError, match="closed"):
        runtime.student_teacher()


def test_threads_are_those_of_the_process(checkpoint):
    """In a process of its own: once the number is set, sums may round otherwise."""
    code = f"""
import torch
from pathlib import Path
from destseg_deploy.options import TorchOptions
from destseg_deploy.runtime.torch_runtime import open_checkpoint
wanted = torch.get_num_threads() + 1
path = Path({str(checkpoint)!r})
open_checkpoint(path, options=TorchOptions(threads=wanted)).close()
assert torch.get_num_threads() == wanted
open_checkpoint(path).close()
assert torch.get_num_threads() == wanted, "left alone unless given"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


FORKED = """
import os, sys
import numpy as np
from destseg_deploy.errors import BackendError
from destseg_deploy.loading import load
from destseg_deploy.options import TorchOptions
path, threads = sys.argv[1], int(sys.argv[2])
images = np.zeros((64, 64, 3), np.uint8)
load(path, options=TorchOptions(threads=2))(images)
child = os.fork()
if child == 0:
    try:
        print(load(path, options=TorchOptions(threads=threads))(images).score.shape)
    except BackendError as error:
        print(error)
    sys.stdout.flush()
    os._exit(0)
os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize(("threads", "answer"), [(2, "do not survive a fork"), (1, "(1,)")])
def test_a_checkpoint_opened_after_a_fork_does_not_hang(checkpoint, threads, answer):
    """Even loading it waited for ever, for OpenMP's threads of the parent."""
    done = subprocess.run(
        [sys.executable, "-c", FORKED, str(checkpoint), str(threads)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )
    assert answer in done.stdout, done.stderr
