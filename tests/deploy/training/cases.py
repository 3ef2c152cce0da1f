"""Small networks, batches and runs that the tests of the training share."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from destseg_deploy.models.destseg import DeSTSeg, SegmentationNet, Teacher
from destseg_deploy.models.weights import fit_statistics
from destseg_deploy.spec import ModelSpec
from destseg_deploy.training import run, setup
from destseg_deploy.training.batches import Batch
from destseg_deploy.training.checkpointing import RunState
from destseg_deploy.training.literal import LiteralSteps
from destseg_deploy.training.loop import LeanSteps, Loop, Observers
from destseg_deploy.training.precision import Precision
from destseg_deploy.training.recipe import Recipe, TrainingOptions

ROOT = Path(__file__).resolve().parents[3]
State = dict[str, Tensor]
CPU = torch.device("cpu")
TINY = Recipe(
    name="tiny",
    size=64,
    batch_size=2,
    student_steps=2,
    segmentation_steps=2,
    rotation="slight",
    holdout=0.3,
)
LONGER = replace(TINY, student_steps=12, segmentation_steps=13)
"""Long enough for the losses to be read more than twice in a phase."""


class Levels(nn.Module):
    """Three levels of features at strides 4, 8 and 16, of a few channels."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 4, 6, 8)
        self.levels = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(a, b, 3, stride=4 if a == 3 else 2, padding=1), nn.BatchNorm2d(b)
            )
            for a, b in pairwise(widths)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for level in self.levels:
            x = level(x)
            found.append(x)
        return found


class SmallTeacher(Teacher):
    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.encoder = Levels()
        self.requires_grad_(False)
        self.eval()


class SmallSegmentation(SegmentationNet):
    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.res = nn.Sequential(nn.Conv2d(18, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Sequential(nn.Conv2d(6, 1, 1), nn.Sigmoid())


class SmallNet(DeSTSeg):
    """DeSTSeg's three networks with hundreds of parameters in place of 35 million."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.teacher_net = SmallTeacher()
        self.student_net = Levels()
        self.segmentation_net = SmallSegmentation()


def make_net(kind: type[DeSTSeg] = SmallNet, seed: int = 0) -> DeSTSeg:
    """Return seeded networks whose teacher tells images apart."""
    torch.manual_seed(seed)
    net = kind()
    fit_statistics(net.teacher_net, torch.randn(8, 3, 64, 64))
    return net


def noise(start: int, stop: int) -> Iterator[Batch]:
    """Yield batches of two 64 px images; each depends on its number alone."""
    for step in range(start, stop):
        seeded = torch.Generator().manual_seed(step)
        clean = torch.rand(2, 3, 64, 64, generator=seeded) * 255
        mask = torch.zeros(2, 1, 64, 64)
        mask[:, :, 8 : 16 + step % 24, 16:48] = 1
        yield torch.where(mask > 0, 255 - clean, clean), clean, mask


def make_loop(
    net: DeSTSeg, recipe: Recipe, precision: str = "fp32", *, literal: bool = False
) -> Loop:
    return Loop(net, recipe, Precision(precision, CPU), LiteralSteps if literal else LeanSteps)


def fit(
    net: DeSTSeg,
    recipe: Recipe,
    precision: str = "fp32",
    *,
    literal: bool = False,
    **observers: Any,
) -> RunState:
    """Train on noise; return the state at the end."""
    state = RunState.fresh(recipe.steps)
    loop = make_loop(net, recipe, precision, literal=literal)
    loop.fit(noise, state, Observers(**observers))
    return state


def snapshot(net: nn.Module) -> State:
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}


def part(state: State, name: str) -> State:
    return {key: tensor for key, tensor in state.items() if key.startswith(name)}


def equal(a: State, b: State) -> bool:
    return list(a) == list(b) and all(torch.equal(tensor, b[key]) for key, tensor in a.items())


def furthest(a: State, b: State) -> float:
    """Return the largest difference of two states, of values around 0.01 to 1."""
    return max(float((tensor.double() - b[key].double()).abs().max()) for key, tensor in a.items())


@contextmanager
def small_networks() -> Iterator[None]:
    """Let ``train`` make small networks."""
    with mock.patch.object(setup, "DeSTSeg", SmallNet):
        yield


def small_options(**given: Any) -> TrainingOptions:
    """Return options that need no weights, no GPU and no threads."""
    plain = {"teacher": "random", "device": "cpu", "workers": 0, "precision": "fp32"}
    return TrainingOptions(**{**plain, **given})


def train_small(category: Path, output: Path, recipe: Recipe = TINY, **given: Any) -> ModelSpec:
    """Train small networks on a category; arguments of ``train`` and of its options."""
    direct = {name: given.pop(name) for name in ("textures", "report", "notify") if name in given}
    with small_networks():
        return run.train(category, output, recipe, small_options(**given), **direct)


class GivenLosses:
    """In place of the steps of a loop: losses are told, and no weight moves by them."""

    order = torch.channels_last

    def __init__(self, losses: list[float]) -> None:
        self.remaining = iter(losses)

    def enter(self, net: DeSTSeg, phase: str) -> None:
        net.train()

    def loss(self, net: DeSTSeg, phase: str, *images: Tensor) -> Tensor:
        trained = (net.student_net, net.segmentation_net)
        weights = [p.sum() for part in trained for p in part.parameters()]
        return torch.stack(weights).sum() * 0 + next(self.remaining)


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.deploy.training.cases import LONGER, train_small

category, output, where, log = sys.argv[1:]
plain, kill = os.replace, lambda: os.kill(os.getpid(), signal.SIGKILL)
states = []

def replace(source, target):
    states.append(target) if str(target).endswith(".resume") else None
    kill() if where == f"state {len(states)}" else plain(source, target)

os.replace = replace
train_small(
    Path(category), Path(output), LONGER, save_every=0, tensorboard=Path(log) if log else None,
    report=lambda p: kill() if where == f"step {p.done}" else None,
)
"""


def killed(category: Path, output: Path, where: str, log: str = "") -> None:
    """Train in another process, which is killed at ``step N`` or as it names ``state N``."""
    command = [sys.executable, "-c", KILLED, str(category), str(output), where, log]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
