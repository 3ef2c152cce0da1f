"""DeSTSeg in half precision: what computes in it, what does not, and how far its answers are."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from destseg_deploy.errors import WeightsError
from destseg_deploy.models.destseg import DeSTSeg
from destseg_deploy.models.half import HALVES, fold_batch_norms, to_half
from destseg_deploy.models.inference import InferenceGraph

NETWORK, TOP_K = (64, 64), 6


def run(model: DeSTSeg, frames: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        graph = InferenceGraph(model, network_size=NETWORK, top_k=TOP_K)
        return graph(torch.from_numpy(frames))[0].numpy()


class Types(TorchDispatchMode):
    """Notes the type in which each operator computes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, list[torch.dtype]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.seen.setdefault(func.overloadpacket.__name__, []).append(result.dtype)
        return result


def test_folding_changes_no_answer(model: DeSTSeg, frames: np.ndarray) -> None:
    folded = copy.deepcopy(model)
    fold_batch_norms(folded)
    assert not any(isinstance(one, nn.BatchNorm2d) for one in folded.modules())
    np.testing.assert_allclose(run(folded, frames), run(model, frames), atol=2e-4)
    assert any(isinstance(one, nn.BatchNorm2d) for one in model.modules()), "a copy was folded"


def test_folded_weights_have_the_bits_that_torchs_exporter_gives(model: DeSTSeg) -> None:
    """It folds with NumPy; exports of before and after would differ otherwise."""
    folded = copy.deepcopy(model)
    fold_batch_norms(folded)
    for place, conv, norm in (("0", "conv1", "bn1"), ("0", "conv2", "bn2"), ("1", "conv1", "bn1")):
        block: Any = model.get_submodule(f"teacher_net.encoder.layer3.{place}")
        found: Any = folded.get_submodule(f"teacher_net.encoder.layer3.{place}.{conv}")
        statistics: Any = block.get_submodule(norm)
        gamma, beta = statistics.weight.detach().numpy(), statistics.bias.detach().numpy()
        scale = gamma / np.sqrt(statistics.running_var.numpy() + statistics.eps)
        weight = block.get_submodule(conv).weight.detach().numpy() * scale[:, None, None, None]
        bias = (0 - statistics.running_mean.numpy()) * scale + beta
        assert found.weight.numpy().tobytes() == weight.tobytes()
        assert found.bias.numpy().tobytes() == bias.tobytes()


def test_a_batch_norm_that_nothing_folds_is_named() -> None:
    with pytest.raises(TypeError, match=r"0: a BatchNorm is not folded"):
        fold_batch_norms(nn.Sequential(nn.BatchNorm2d(3)))


@pytest.mark.parametrize("precision", HALVES)
def test_convolutions_are_half_and_islands_are_not(model, frames, precision) -> None:
    half, kind = to_half(model, precision), HALVES[precision]
    graph = InferenceGraph(half, network_size=NETWORK, top_k=TOP_K)
    with torch.no_grad(), Types() as found:
        graph(torch.from_numpy(frames))
    convolutions = found.seen["convolution"]
    assert len(convolutions) == 66
    assert convolutions.count(torch.float32) == 3, "two stems and the logit"
    assert convolutions.count(kind) == 63
    for island in ("linalg_vector_norm", "mean", "sigmoid", "topk", "neg", "div"):
        assert set(found.seen.get(island, [torch.float32])) == {torch.float32}, island


def test_answers_are_within_rounding_and_the_model_stays_as_it_was(model, frames) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wanted = run(model, frames)
    errors = {p: float(np.abs(run(to_half(model, p), frames) - wanted).max()) for p in HALVES}
    assert 0 < errors["fp16"] < errors["bf16"] < 0.5, "this network amplifies rounding"
    assert float(np.abs(wanted - np.roll(wanted, 1, axis=0)).max()) > errors["fp16"]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_weight_beyond_half_is_named(model: DeSTSeg) -> None:
    large = copy.deepcopy(model)
    large.student_net.decoder_layer1[0].conv1.weight.data[0, 0, 0, 0] = 1e6
    with pytest.raises(WeightsError, match=r"decoder_layer1\.0\.conv1\.weight: \d+ of .*'bf16'"):
        to_half(large, "fp16")
    to_half(large, "bf16")
