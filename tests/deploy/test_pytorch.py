"""What is particular to the PyTorch back end; the contract is test_runtime_contract.py's."""

import pytest

torch = pytest.importorskip("torch")

from destseg_deploy.runtime.pytorch import _float32_convolutions  # noqa: E402 - needs torch


@pytest.mark.parametrize("before", [True, False])
def test_tf32_is_off_while_a_gpu_infers_and_as_before_afterwards(monkeypatch, before):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", before)
    with _float32_convolutions(torch.device("cuda")):
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before
    with pytest.raises(ZeroDivisionError):
        _fail_while_guarded()
    assert torch.backends.cudnn.allow_tf32 == before


def _fail_while_guarded():
    with _float32_convolutions(torch.device("cuda")):
        raise ZeroDivisionError


def test_a_cpu_does_not_touch_it(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with _float32_convolutions(torch.device("cpu")):
        assert torch.backends.cudnn.allow_tf32


def test_a_checkpoint_infers_in_float32_on_a_gpu(checkpoint, frames, monkeypatch):
    """The guard stands around the graph: told that its device were a GPU, it locks TF32 out."""
    from destseg_deploy.runtime.pytorch import PyTorchRuntime

    runtime = PyTorchRuntime.open(checkpoint)
    seen = []
    graph = runtime._graph

    def watched(pixels):
        seen.append(torch.backends.cudnn.allow_tf32)
        return graph(pixels)

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    runtime._graph = watched
    runtime.infer(frames)
    monkeypatch.setattr(
        "destseg_deploy.runtime.pytorch._float32_convolutions",
        lambda device: _float32_convolutions(torch.device("cuda")),
    )
    runtime.infer(frames)
    assert seen == [True, False]
