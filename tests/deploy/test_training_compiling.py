"""torch.compile: tried before the training, refused in one line, and near what is not compiled."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from destseg_deploy.errors import BackendError
from destseg_deploy.training.compiling import compile_networks
from tests.deploy.training_cases import CPU, LONGER, equal, fit, make_net, snapshot, train_small


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
