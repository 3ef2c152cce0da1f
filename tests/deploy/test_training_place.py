"""Where and in which precision: what is chosen, and that half precisions train."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch

from destseg_deploy.errors import BackendError, TrainingError
from destseg_deploy.models.destseg import DeSTSeg
from destseg_deploy.training.place import (
    Precision,
    pick_device,
    pick_precision,
    tuned_convolutions,
)
from tests.deploy.training_cases import CPU, LONGER, fit, furthest, make_net, part, snapshot

CUDA = torch.device("cuda")


def test_auto_takes_cuda_where_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=available: found)
        assert pick_device("auto") == torch.device(expected)
        assert pick_device("cpu") == CPU
    with pytest.raises(BackendError, match=r"device 'cuda:1': this PyTorch .* sees no CUDA GPU"):
        pick_device("cuda:1")


@pytest.mark.parametrize("capable", [True, False])
def test_auto_takes_bf16_on_a_cpu_that_computes_it(
    capable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: capable)
    assert pick_precision("auto", CPU) == ("bf16" if capable else "fp32")
    for name in ("fp32", "bf16", "fp16"):
        assert pick_precision(name, CPU) == name


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((8, 9), "bf16"), ((12, 0), "bf16")],
)
def test_auto_takes_the_half_of_the_gpu(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert pick_precision("auto", CUDA) == expected
    for name in ("fp32", "bf16", "fp16"):
        assert pick_precision(name, CUDA) == name


def test_an_unknown_precision_is_refused() -> None:
    expected = r"precision is int8, expected auto, fp32, bf16, fp16\. Change that option\."
    with pytest.raises(TrainingError, match=expected):
        pick_precision("int8", CPU)


@pytest.mark.parametrize(
    ("name", "product"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_autocast_computes_in_the_precision(name: str, product: torch.dtype) -> None:
    precision = Precision(name, CPU)
    with precision.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is product
    assert precision.scaler.is_enabled() is (name == "fp16")
    assert bool(precision.scaler.state_dict()) is (name == "fp16")


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("device", [CUDA, CPU])
def test_kernels_are_tried_on_gpus_alone_and_for_the_training_alone(
    before: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", before)
    with suppress(KeyError), tuned_convolutions(device):
        assert torch.backends.cudnn.benchmark is (before or device == CUDA)
        raise KeyError
    assert torch.backends.cudnn.benchmark is before


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_halves_train_near_fp32_and_not_the_same(precision: str) -> None:
    full, half = make_net(), make_net()
    before = snapshot(full)
    expected, losses = fit(full, LONGER).losses, fit(half, LONGER, precision).losses
    assert np.isfinite(losses).all()
    assert (losses != expected).any()
    assert np.allclose(losses, expected, rtol=0.01)
    for name in ("student_net", "segmentation_net"):
        a, b = part(snapshot(full), name), part(snapshot(half), name)
        assert 0 < furthest(a, b) < 0.05 < furthest(a, before)


def test_bf16_is_near_for_the_real_networks() -> None:
    """One step of each phase."""
    recipe = replace(LONGER, student_steps=1, segmentation_steps=1)
    full = fit(make_net(DeSTSeg), recipe).losses
    half = fit(make_net(DeSTSeg), recipe, "bf16").losses
    assert (half != full).all()
    assert np.allclose(half, full, rtol=0.05)


def test_fp16_scales_the_loss_and_not_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two scales give nearly the same weights; a step with scaled gradients would be far off."""
    nets = [make_net(), make_net()]
    scale = torch.amp.GradScaler.scale
    seen: list[float] = []

    def noted(self: torch.amp.GradScaler, loss: torch.Tensor) -> torch.Tensor:
        scaled = scale(self, loss)
        seen.append(float(scaled.detach() / loss.detach()))
        return scaled

    monkeypatch.setattr(torch.amp.GradScaler, "scale", noted)
    fit(nets[0], LONGER, "fp16")
    fit(nets[1], LONGER, "fp32")
    assert seen[: LONGER.steps] == pytest.approx([65536.0] * LONGER.steps)
    assert seen[LONGER.steps :] == [1.0] * LONGER.steps
    assert furthest(snapshot(nets[0]), snapshot(nets[1])) < 0.05
