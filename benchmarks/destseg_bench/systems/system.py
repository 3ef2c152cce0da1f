"""What every compared system is to the benchmark: stages to train, and a network with an answer.

A system belongs to one category. Its training is a list of stages. The steps of a stage cost the
same, so that a schedule's time can be computed from a few timed steps of each stage. Inference has
three parts that are timed apart: ``prepare`` on the host (resize and normalise), ``network`` (what
runs layer by layer) and ``answer`` (from the network's outputs to map and score).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from destseg_deploy.data.mvtec import list_train
from destseg_deploy.data.resize import resize_image
from destseg_deploy.errors import BackendError
from destseg_deploy.spec import IMAGENET_MEAN, IMAGENET_STD

Choice = TypeVar("Choice")

Report = Callable[[int, int, str], None]
"""Takes the steps done, the number of all steps, and the name of what is running."""

SCHEDULES = ("paper", "quick")
"""``paper``: what the system's authors trained. ``quick``: minutes on a CPU, which show that the
system works; its accuracy must not be compared with the paper's."""


@dataclass(frozen=True)
class Facts:
    """What a system is, by its publication.

    Attributes:
        name: As in the paper's Table S4, or S5 where the system stands only there.
        source: Authors, conference and the section that describes the method.
        differs: What differs here from the publication, a sentence each.
        parameters: Parameters of the networks that inference needs, in millions; None if the
            publication does not fix them.
        gmacs: Multiply-accumulates of these networks per image, in 1e9; None likewise.
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
        steps: Number of steps.
        images: Images that each step takes.
        step: Does step ``i`` (from 0, in order) and returns its loss, a scalar tensor. It does not
            wait for the device.
        begin: Called before the first step.
        end: Called after the last step; its time belongs to the training's time.
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
        images: The normal images to train on.
        schedule: One of ``SCHEDULES``.
        device: Where networks run.
        seed: Seed of every random choice; opening a system seeds torch with it.
        textures: Folder of textures; None for procedural ones.
        weights: Weights file by its purpose: ``resnet18``, ``wide_resnet50_2`` or ``vq``.
        pretrained: Whether to refuse random weights in place of pretrained ones. If not, a system
            whose weights file is missing takes random weights and says so in ``System.weights``.

    Raises:
        BackendError: If the schedule is unknown.
    """

    category: Path
    images: tuple[Path, ...]
    schedule: str
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0
    textures: Path | None = None
    weights: dict[str, Path] = field(default_factory=dict)
    pretrained: bool = True

    def __post_init__(self) -> None:
        """Check the schedule."""
        if self.schedule not in SCHEDULES:
            raise BackendError(
                f"schedule {self.schedule!r}: expected one of {', '.join(SCHEDULES)}."
            )

    @classmethod
    def of_category(cls, category: Path, schedule: str, **options: Any) -> Task:
        """Return the task of training on all normal images of a category.

        Args:
            category: Folder in the MVTec AD layout.
            schedule: One of ``SCHEDULES``.
            **options: Further attributes.

        Raises:
            DataError: If the folder is not as expected.
            BackendError: If the schedule is unknown.
        """
        return cls(category, tuple(list_train(category)), schedule, **options)

    def choose(self, *, paper: Choice, quick: Choice) -> Choice:
        """Return the value that belongs to the schedule."""
        return paper if self.schedule == "paper" else quick

    def to_dict(self) -> dict[str, Any]:
        """Return what a result says of the task, ready for JSON and without paths."""
        return {
            "device": str(self.device),
            "category": self.category.name,
            "normal_images": len(self.images),
            "schedule": self.schedule,
            "seed": self.seed,
            "textures": "procedural" if self.textures is None else self.textures.name,
        }


class System(ABC):
    """A system for one category.

    Attributes:
        facts: What it is.
        size: Height and width of the frames that its networks take.
        window: Share of a frame's height and width that the map covers, around the centre; 1.0
            unless the system crops.
        weights: Where its pretrained weights came from: the file's name; ``random`` if its accuracy
            means nothing while its time does; ``none`` where it uses nothing pretrained.
        task: What it is for.
    """

    facts: Facts
    size: tuple[int, int] = (256, 256)
    window: float = 1.0
    weights: str = "none"

    def __init__(self, task: Task) -> None:
        """Keep the task; subclasses make their networks, in eval mode on the task's device."""
        self.task = task

    @abstractmethod
    def modules(self) -> tuple[torch.nn.Module, ...]:
        """Return the networks that inference runs, each once."""

    @abstractmethod
    def stages(self) -> list[Stage]:
        """Return the parts of its training, in order; every step is to be done once."""

    def stand_in(self) -> None:  # noqa: B027 - optional: most systems need nothing
        """Put values of the right size where inference needs what training leaves.

        Inference time does not depend on the values, so it can be measured without training first.
        """

    def prepare(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map an image as read, uint8 (H, W, 3) RGB, to float32 (3, *size), on the host.

        Unless a system overrides it: resize with antialiasing and normalise as ImageNet's.
        """
        return normalized(frame, self.size)

    @abstractmethod
    def network(self, images: Tensor) -> tuple[Tensor, ...]:
        """Run the networks on prepared images, float32 (N, 3, *size), on the system's device."""

    @abstractmethod
    def answer(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Return maps, float32 (N, H, W) over the window, and scores, float32 (N,).

        High values mean a defect; they are not bounded. An image's answer does not depend on the
        other images of its batch.
        """


def normalized(frame: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.float32]:
    """Resize with antialiasing and normalise with ImageNet's mean and standard deviation.

    Args:
        frame: uint8 (H, W, 3) RGB.
        size: Height and width.

    Returns:
        float32 (3, *size).
    """
    pixels = resize_image(frame, size).astype(np.float32) / 255
    mean, std = np.array(IMAGENET_MEAN, np.float32), np.array(IMAGENET_STD, np.float32)
    return np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1), np.float32)


@torch.no_grad()
def detect(system: System, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return maps and scores of prepared images, on the system's device."""
    return system.answer(system.network(images))
