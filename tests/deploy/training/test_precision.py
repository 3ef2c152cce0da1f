"""Where and in which precision: what is chosen, and that half precisions train."""

from __future__ import annotations

import math
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from destseg_deploy.cli.train import split_training_options, training_options
from destseg_deploy.errors import BackendError, TrainingError
from destseg_deploy.models.destseg import DeSTSeg
from destseg_deploy.models.weights import read_state_dict
from destseg_deploy.training.precision import (
    Precision,
    compile_networks,
    pick_device,
    pick_precision,
    tuned_convolutions,
)
from destseg_deploy.training.recipe import Recipe, make_recipe
from destseg_deploy.training.setup import prepare
from tests.deploy.training.cases import (
    CPU,
    LONGER,
    State,
    equal,
    fit,
    furthest,
    make_net,
    part,
    small_networks,
    small_options,
    snapshot,
    train_small,
)

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


def distance(a: State, b: State) -> float:
    """Return the Euclidean distance of two states, without the counters of batches."""
    moved = [a[k].double() - b[k].double() for k in a if "num_batches" not in k]
    return math.sqrt(sum(float(difference.square().sum()) for difference in moved))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_halves_train_near_fp32_and_not_the_same(precision: str) -> None:
    full, half, faster = make_net(), make_net(), make_net()
    before = snapshot(full)
    expected, losses = fit(full, LONGER).losses, fit(half, LONGER, precision).losses
    fit(faster, replace(LONGER, student_lr=0.44, res_lr=0.11, head_lr=0.011))
    assert np.isfinite(losses).all()
    assert (losses != expected).any()
    assert np.allclose(losses, expected, rtol=0.01)
    for name in ("student_net", "segmentation_net"):
        a, b, control, start = (
            part(state, name) for state in (*map(snapshot, (full, half, faster)), before)
        )
        # A share of the way that the training went: CPUs round bf16 differently.
        way = distance(a, start)
        assert 0 < distance(a, b) < 0.02 * way < distance(a, control)


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


# ---------------------------------------------------------------------------- torch.compile


def failing(error: Exception) -> Any:
    """Return a compiler whose results fail when they are first called, as torch's do."""

    def compile_later(function: Any, **options: Any) -> Any:
        def broken(*arguments: Any) -> Any:
            raise error

        return broken

    return compile_later


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            RuntimeError("it raised:\nNo C++ compiler\n\nSet VERBOSE"),
            "(it raised: No C++ compiler)",
        ),
        (RuntimeError("x" * 500), f"({'x' * 160})"),
        (ModuleNotFoundError("No module named 'triton'"), "(No module named 'triton')"),
        (RuntimeError(), "(RuntimeError)"),
    ],
)
def test_a_machine_that_cannot_compile_is_told_in_one_line(
    error: Exception,
    reason: str,
    category: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "compile", failing(error))
    with pytest.raises(BackendError) as caught:
        train_small(category, tmp_path / "out/cable.safetensors", compiled=True)
    message = str(caught.value)
    assert message.startswith(f"torch.compile does not work here {reason}. Install a C++ compiler")
    assert "--compile" in message
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


def test_all_three_networks_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    net = make_net()
    before = snapshot(net)
    compile_networks(net, CPU)
    assert compiled == [net.teacher_net, net.student_net, net.segmentation_net]
    assert equal(before, snapshot(net))


def test_a_run_is_compiled_when_asked(
    category: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And another run than one that is not."""
    asked: list[Any] = []
    monkeypatch.setattr(
        "destseg_deploy.training.run.compile_networks", lambda net, device: asked.append(device)
    )
    output = tmp_path / "cable.safetensors"
    for compiled, count in ((False, 0), (True, 1), (True, 1)):
        train_small(category, output, compiled=compiled)
        assert asked == [CPU] * count


NEEDS_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
# torch's own compiler imports torch's own deprecated functions
OWN_WARNINGS = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")


@OWN_WARNINGS
def test_the_reason_is_the_compilers() -> None:
    """Torch's compiler, looking for a program that is not there."""
    from torch._inductor import config

    absent = config.patch({"cpp.cxx": ("no-such-compiler",)})
    expected = r"does not work here \(.*No working C\+\+ compiler.*\)\. Install"
    with absent, pytest.raises(BackendError, match=expected) as caught:
        compile_networks(make_net(), CPU)
    assert "TORCHDYNAMO" not in str(caught.value)


@NEEDS_COMPILER
@OWN_WARNINGS
def test_compiled_losses_are_near() -> None:
    plain, compiled = make_net(), make_net()
    compile_networks(compiled, CPU)
    expected, losses = fit(plain, LONGER).losses, fit(compiled, LONGER).losses
    assert list(snapshot(plain)) == list(snapshot(compiled))
    assert np.allclose(losses, expected, rtol=1e-3)


@NEEDS_COMPILER
@OWN_WARNINGS
def test_a_compiled_run_trains_what_a_plain_one_does(category: Path, tmp_path: Path) -> None:
    """The whole run: the loop of both phases, the threshold, the checkpoint's names."""
    losses, names = {}, {}
    for compiled in (False, True):
        output = tmp_path / f"{compiled}/cable.safetensors"
        spec = train_small(category, output, LONGER, compiled=compiled)
        assert spec.threshold is not None
        table = np.genfromtxt(output.with_name("cable-losses.csv"), delimiter=",", skip_header=1)
        losses[compiled] = table[:, -1]
        names[compiled] = list(read_state_dict(output))
    assert names[True] == names[False]
    assert np.allclose(losses[True], losses[False], rtol=1e-3)
    assert not np.allclose(losses[False][1:], losses[False][:-1], rtol=1e-3), "control"


# ---------------------------------------------------------------------------- the paper's


def chosen(category: Path, recipe: Recipe, **how: Any) -> str:
    with small_networks():
        return prepare(category, recipe, small_options(**how)).loop.precision.name


def test_the_papers_recipe_trains_in_fp32(category: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper does. Another recipe, and one whose user says so, takes a half precision."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert chosen(category, make_recipe("paper"), precision="auto") == "fp32"
    assert chosen(category, make_recipe("paper"), precision="bf16") == "bf16"
    assert chosen(category, make_recipe("quick"), precision="auto") == "bf16"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "fp32"),
        (("--preset", "paper", "--steps", "2,2"), "fp32"),
        (("--precision", "auto"), "fp32"),
        (("--precision", "bf16"), "bf16"),
        (("--preset", "quick"), "auto"),
    ],
)
def test_the_command_asks_for_the_presets_precision(words: tuple[str, ...], expected: str) -> None:
    found: list[str] = []

    @click.command()
    @training_options
    def command(**options: Any) -> None:
        found.append(split_training_options(options)[1].precision)

    assert CliRunner().invoke(command, words).exit_code == 0
    assert found == [expected]
