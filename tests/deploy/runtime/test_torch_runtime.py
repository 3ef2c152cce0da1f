"""What is particular to the PyTorch back end; the contract is test_runtime_contract.py's."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("torch")

import torch

from destseg_deploy.runtime.torch_runtime import open_checkpoint, switched


@pytest.mark.parametrize("before", [True, False])
def test_tf32_is_off_while_a_gpu_infers_and_as_before_afterwards(monkeypatch, before):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", before)
    with switched(torch.device("cuda"), tf32=False):
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before
    with pytest.raises(ZeroDivisionError):
        _fail_while_guarded()
    assert torch.backends.cudnn.allow_tf32 == before


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
