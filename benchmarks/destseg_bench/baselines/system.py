"""What every compared system is to the benchmark: stages to train, and a network with an answer.

A system belongs to one category. Its training is a list of stages of equal steps, so that a
schedule's time can be measured from a few steps of each. Its inference is in three parts that are
timed apart: ``prepare`` on the host (resize and normalise), ``network`` (what runs layer by layer)
and ``answer`` (from the network's outputs to map and score).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from destseg_deploy.errors import BackendError

SCHEDULES = ("paper", "quick")
"""``paper``: what the system's authors trained. ``quick``: minutes on a CPU, to see that it works;
never to be put beside the paper's accuracy without saying so."""


@dataclass(frozen=True)
class Facts:
    """What a system is, by its description.

    Attributes:
        name: As in the paper's Table S4, or S5 where it stands only there.
        source: Publication, and the section of the reference description.
        differs: What differs here from the description, a sentence each.
        parameters: Parameters of the networks that inference needs, in millions; None if the
            description does not tell.
        gmacs: Multiply-accumulates per image of them, in 1e9; None likewise.
    """

    name: str
    source: str
    differs: tuple[str, ...] = ()
    parameters: float | None = None
    gmacs: float | None = None


@dataclass(frozen=True)
class Stage:
    """A part of a training whose steps cost the same.

    Attributes:
        name: In a word.
        steps: How many.
        images: Images that each step takes.
        step: Does step ``i``, 0-based and in order, and returns its loss as a scalar tensor that
            nobody has waited for.
        begin: Called before the first step.
        end: Called after the last; what it does belongs to the training's time.
    """

    name: str
    steps: int
    images: int
    step: Callable[[int], Tensor]
    begin: Callable[[], None] = lambda: None
    end: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Task:
    """What a system is trained on, and where.

    Attributes:
        category: Folder in the MVTec AD layout.
        images: Its normal images to train on.
        schedule: One of ``SCHEDULES``.
        device: Where networks run.
        seed: Seed of every random choice; opening a system seeds torch with it.
        textures: Folder of textures; None for procedural ones.
        weights: Weights file by what it is for: ``resnet18``, ``wide_resnet50_2`` or ``vq``. A
            system that needs one which is not there takes random weights and says so in
            ``weights``, unless ``pretrained`` asks for the real ones.
        pretrained: Whether to refuse random weights in place of pretrained ones.
    """

    category: Path
    images: tuple[Path, ...]
    schedule: str
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0
    textures: Path | None = None
    weights: dict[str, Path] = field(default_factory=dict)
    pretrained: bool = True


class System(Protocol):
    """A system for one category.

    Attributes:
        facts: What it is.
        size: Height and width of the frames that its networks take.
        window: Share of the height and width of a frame that its map covers, in the middle; 1.0
            but for those that crop.
        weights: Where its pretrained weights came from: ``random`` means that its accuracy says
            nothing, and its time does; ``none`` where nothing pretrained is used.
    """

    facts: Facts
    size: tuple[int, int]
    window: float
    weights: str

    def modules(self) -> tuple[torch.nn.Module, ...]:
        """Return the networks that inference runs, each once."""

    def stages(self) -> list[Stage]:
        """Return the parts of its training, in order; the steps of all are to be done once."""

    def stand_in(self) -> None:
        """Put values of the right size where inference needs what training leaves.

        Time does not depend on them: for measuring it without training first.
        """

    def prepare(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map an image as read, uint8 (H, W, 3) RGB, to float32 (3, *size), on the host."""

    def network(self, images: Tensor) -> tuple[Tensor, ...]:
        """Run the networks on prepared images, float32 (N, 3, *size), on the system's device."""

    def answer(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Return maps, float32 (N, H, W) over the window, and scores, float32 (N,).

        High where a defect is seen; not bounded. An image's answer does not depend on its batch.
        """


def steps_of(task: Task, *, paper: int, quick: int) -> int:
    """Return the number of steps that a task's schedule asks for; errors ``check_schedule``'s."""
    check_schedule(task)
    return {"paper": paper, "quick": quick}[task.schedule]


def check_schedule(task: Task) -> None:
    """Refuse a schedule that there is not.

    Raises:
        BackendError: If the task asks for one.
    """
    if task.schedule not in SCHEDULES:
        raise BackendError(f"schedule {task.schedule!r}: expected one of {', '.join(SCHEDULES)}.")


@torch.no_grad()
def detect(system: System, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return maps and scores of prepared images, on the system's device."""
    return system.answer(system.network(images))
