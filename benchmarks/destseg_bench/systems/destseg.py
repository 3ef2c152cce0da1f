"""DeSTSeg among the systems, twice: as this project computes it, and as the reference does.

Zhang et al., DeSTSeg: Segmentation Guided Denoising Student-Teacher for Anomaly Detection, CVPR
2023, Section 3. The reference trains every network in every step and runs the teacher twice for
each image. Ours trains only what contributes a gradient, in the half precision that the device
computes, and serves one graph from pixels to answers.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from destseg_bench.systems.system import Facts, Stage, System, Task
from destseg_bench.systems.weights import RANDOM, find_weights
from destseg_deploy.data.resize import resize_image
from destseg_deploy.models.destseg import upsample
from destseg_deploy.models.inference import InferenceGraph, top_k_mean
from destseg_deploy.training.batches import Batch
from destseg_deploy.training.loop import Loop, Source, make_optimizer
from destseg_deploy.training.precision import pick_precision
from destseg_deploy.training.recipe import Phase, TrainingOptions, make_recipe, phases, rate_factor
from destseg_deploy.training.setup import open_bank, prepare

SOURCE = "Zhang et al., CVPR 2023, Section 3"
TOP_K = 100
WORKERS = 2
"""Threads, and for the reference processes, that prepare batches."""

QUICK = {"student_steps": 60, "segmentation_steps": 60, "batch_size": 8, "decay": "cosine"}


class Destseg(System):
    """DeSTSeg as this project trains and serves it."""

    facts = Facts(
        "DeSTSeg",
        SOURCE,
        ("Trained by the same gradients, one pass of the teacher, one graph to the answers.",),
        parameters=35.15,
        gmacs=38.4,
    )
    literal = False

    def __init__(self, task: Task) -> None:
        """Make the networks; the teacher is random where its weights are not given.

        Raises:
            WeightsError: If pretrained weights are asked for and cannot be had.
            DataError: If an image cannot be read.
        """
        super().__init__(task)
        recipe = make_recipe("paper", seed=task.seed, **task.choose(paper={}, quick=QUICK))
        weights = find_weights(task, "resnet18")
        precision = "fp32" if self.literal else pick_precision("auto", task.device)
        options = TrainingOptions(
            precision=precision,
            teacher_weights=weights,
            teacher=RANDOM if weights is None else "imagenet",
            device=str(task.device),
            workers=WORKERS,
            literal=self.literal,
        )
        bank = open_bank(task.textures, recipe, options.device)
        self._setup = prepare(task.category, recipe, options, bank)
        self.weights = self._setup.teacher.file or RANDOM
        self.model = self._setup.loop.model.eval()
        self._graph = InferenceGraph(self.model, network_size=self.size, top_k=TOP_K)
        self._graph.to(task.device)

    def modules(self) -> tuple[torch.nn.Module, ...]:
        """Return the model."""
        return (self.model,)

    def stages(self) -> list[Stage]:
        """Return the two phases of the paper."""
        setup = self._setup
        return [_stage(setup.loop, setup.source(), phase) for phase in phases(setup.recipe)]

    def prepare(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Resize with antialiasing; the graph normalises."""
        pixels = resize_image(frame, self.size).astype(np.float32)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def network(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return map and score."""
        anomaly_map, score = self._graph(images.permute(0, 2, 3, 1))
        return anomaly_map, score

    def answer(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Return the graph's map and score as they are."""
        return outputs[0], outputs[1]


class DestsegReference(Destseg):
    """DeSTSeg as the authors' code trains and runs it."""

    facts = Facts(
        "DeSTSeg, as the reference",
        SOURCE,
        ("The official code was not at hand: the computation is its, written from a description.",),
        parameters=35.15,
        gmacs=40.2,
    )
    literal = True
    prepare = System.prepare  # the reference normalises on the host

    def network(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the segmentation's and the student's map at the network's grid."""
        # The copy makes the teacher run twice, as in the reference.
        segmentation, dest = self.model(images, images.clone())
        return segmentation, dest

    def answer(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Enlarge both maps; the answer is the segmentation's."""
        maps, _ = (upsample(part, torch.Size(self.size)).squeeze(1) for part in outputs)
        return maps, top_k_mean(maps, TOP_K)


def _stage(loop: Loop, source: Source, phase: Phase) -> Stage:
    """Return a phase as a stage; batches are made while it trains, as in a whole run."""
    optimizer = make_optimizer(loop.model, loop.recipe, phase)
    rates = [group["lr"] for group in optimizer.param_groups]
    batches: list[Iterator[Batch]] = []

    def begin() -> None:
        loop.steps.enter(loop.model, phase.name)
        batches.append(source(phase.start, phase.stop))

    def step(number: int) -> Tensor:
        factor = rate_factor(loop.recipe, phase, phase.start + number)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        return loop.step(phase, optimizer, next(batches[0]))

    def end() -> None:
        batches.clear()  # without its iterator, the workers that make batches end
        loop.model.eval()

    steps = phase.stop - phase.start
    return Stage(phase.name, steps, loop.recipe.batch_size, step, begin, end)
