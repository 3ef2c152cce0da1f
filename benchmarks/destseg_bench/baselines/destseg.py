"""DeSTSeg among the systems, twice: as the reference computes it, and as this project does.

Zhang et al., CVPR 2023; methods.md 3.1. The reference trains every network in every step and runs
the teacher twice for each image. Ours trains what contributes a gradient, in the half precision
that the device computes, and serves one graph from pixels to answers.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from destseg_bench.baselines.backbones import find_weights
from destseg_bench.baselines.frames import normalized
from destseg_bench.baselines.system import Facts, Stage, Task, check_schedule
from destseg_deploy.data.resize import resize_image
from destseg_deploy.models.destseg import upsample
from destseg_deploy.models.inference import InferenceGraph, top_k_mean
from destseg_deploy.models.weights import TEACHER_FILE
from destseg_deploy.recipe import make_recipe
from destseg_deploy.training.jobs import open_bank
from destseg_deploy.training.loop import Loop, Source
from destseg_deploy.training.schedule import Phase, make_optimizer, phases, rate_factor
from destseg_deploy.training.setup import prepare

SOURCE = "Zhang et al., CVPR 2023; methods.md 3.1"
REFERENCE = Facts(
    "DeSTSeg, as the reference",
    SOURCE,
    ("The official code was not at hand: the computation is its, written from the description.",),
    parameters=35.15,
    gmacs=40.2,
)
OURS = Facts(
    "DeSTSeg",
    SOURCE,
    ("Learnt from the same gradients, one pass of the teacher, one graph to the answers.",),
    parameters=35.15,
    gmacs=38.4,
)
TOP_K = 100
SIZE = (256, 256)
WORKERS = 2
"""Threads, and for the reference processes, that prepare batches."""

QUICK = {"student_steps": 60, "segmentation_steps": 60, "batch_size": 8, "decay": "cosine"}


class DestsegSystem:
    """One of the two; see ``System``."""

    size = SIZE
    window = 1.0

    def __init__(self, task: Task, *, literal: bool) -> None:
        """Make the networks; the teacher is random where its weights are not given.

        Raises:
            WeightsError: If pretrained weights are asked for and cannot be had.
            DataError: If an image cannot be read.
            BackendError: If there is no such schedule.
        """
        check_schedule(task)
        recipe = make_recipe("paper", seed=task.seed, **(QUICK if task.schedule == "quick" else {}))
        self.facts = REFERENCE if literal else OURS
        self._literal = literal
        self._device = task.device
        weights = find_weights(task, "resnet18", TEACHER_FILE)
        self._setup = prepare(
            task.category,
            recipe,
            textures=open_bank(task.textures, recipe, str(task.device)),
            teacher_weights=weights,
            teacher="random" if weights is None else "imagenet",
            device=str(task.device),
            literal=literal,
        )
        self.weights = self._setup.teacher.get("file", "random")
        self.model = self._setup.model.to(task.device).eval()
        self._graph = InferenceGraph(self.model, network_size=SIZE, top_k=TOP_K).to(task.device)

    def modules(self) -> tuple[torch.nn.Module, ...]:
        """Return the model."""
        return (self.model,)

    def stages(self) -> list[Stage]:
        """Return the two phases of the paper."""
        recipe = self._setup.recipe
        loop = Loop(self.model, recipe, self._device, self._setup.precision, literal=self._literal)
        return [_Training(loop, self._setup.source(WORKERS), p).stage() for p in phases(recipe)]

    def stand_in(self) -> None:
        """Do nothing: untrained networks take as long."""

    def prepare(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Resize with antialiasing; the reference normalises here, ours in its graph."""
        if self._literal:
            return normalized(frame, self.size)
        pixels = resize_image(frame, self.size).astype(np.float32)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def network(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the reference's two maps at the network's grid, or our map and score."""
        if self._literal:
            segmentation, dest = self.model(images, images.clone())
            return segmentation, dest
        anomaly_map, score = self._graph(images.permute(0, 2, 3, 1))
        return anomaly_map, score

    def answer(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Enlarge the reference's maps and score both; ours come from the graph as they are."""
        if not self._literal:
            return outputs[0], outputs[1]
        maps, _ = (upsample(part, torch.Size(SIZE)).squeeze(1) for part in outputs)
        return maps, top_k_mean(maps, TOP_K)


class _Training:
    """One phase as a stage; batches are made while it trains, as in a whole run."""

    def __init__(self, loop: Loop, source: Source, phase: Phase) -> None:
        self._loop = loop
        self._source = source
        self._phase = phase

    def stage(self) -> Stage:
        """Return the stage."""
        steps = self._phase.stop - self._phase.start
        return Stage(
            self._phase.name,
            steps,
            self._loop.recipe.batch_size,
            self._step,
            self._begin,
            self._end,
        )

    def _begin(self) -> None:
        self._optimizer = make_optimizer(self._loop.model, self._loop.recipe, self._phase)
        self._rates = [group["lr"] for group in self._optimizer.param_groups]
        self._loop.steps.enter(self._loop.model, self._phase.name)
        self._batches = iter(self._source(self._phase.start, self._phase.stop))

    def _step(self, number: int) -> Tensor:
        factor = rate_factor(self._loop.recipe, self._phase, self._phase.start + number)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        return self._loop.step(self._phase, self._optimizer, next(self._batches))

    def _end(self) -> None:
        self._batches = iter(())
        self._loop.model.eval()


def open_reference(task: Task) -> DestsegSystem:
    """Make DeSTSeg as the reference computes it; see ``catalogue.open_system``."""
    return DestsegSystem(task, literal=True)


def open_ours(task: Task) -> DestsegSystem:
    """Make DeSTSeg as this project computes it; see ``catalogue.open_system``."""
    return DestsegSystem(task, literal=False)
