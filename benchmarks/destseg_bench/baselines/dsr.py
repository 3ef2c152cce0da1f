"""DSR: a general and a category's own decoder draw an image from codes, and a U-Net compares.

Zavrtanik et al., DSR - A dual subspace re-projection network for surface anomaly detection, ECCV
2022; methods.md 3.5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from destseg_bench.baselines.ahead import Ahead
from destseg_bench.baselines.backbones import RANDOM, fill
from destseg_bench.baselines.descent import descend
from destseg_bench.baselines.dsr_networks import (
    ImageReconstruction,
    VqModel,
    anomaly_detection,
    fit_codes,
    subspace_restriction,
    upsampling,
)
from destseg_bench.baselines.dsr_quantizer import straight_through
from destseg_bench.baselines.dsr_synthesis import Samples, corrupt, draw_samples, smudge
from destseg_bench.baselines.plain_frames import PlainFrames, plain_bgr
from destseg_bench.baselines.system import Facts, Stage, Task, steps_of
from destseg_bench.baselines.two_class import focal_loss, pooled_score
from destseg_deploy.errors import WeightsError
from destseg_deploy.models.weights import read_state_dict

BATCH = 8
EPOCH = 8000
EPOCHS, UPSAMPLING_EPOCHS = 100, 50
QUICK_BATCH = 2
QUICK_STEPS, QUICK_UPSAMPLING_STEPS = 30, 15
"""A step of 8 images takes most of a minute on a CPU."""
RATE = 2e-4
TURNED = 0.4
CROP = 224 / 256

FACTS = Facts(
    "DSR",
    "Zavrtanik et al., ECCV 2022; methods.md 3.5",
    (
        "The description leaves open how deep the two U-Nets are: four levels of 64, 128, 256 and "
        "256 channels, skips joined, corners aligned in enlarging.",
        "It leaves open how often which codes are replaced: both in half of the anomalies, lo and "
        "hi alone in a quarter each; after both, a mask has the steps of the lo codes.",
        "The coarse map that the image score reads has the image's size and the codes' steps.",
        "A smudge is one uniform colour, blended in with a share of 0.2 to 1; half of the images "
        "get none.",
        "The upsampling module learns at 2e-4 throughout.",
        "The focal loss is DRAEM's.",
        "What a rotation uncovers is black.",
    ),
)


@dataclass(frozen=True)
class Plan:
    """What a stage trains, and how.

    Attributes:
        name: The stage's.
        stream: Tells its random choices from those of other stages.
        steps: How many.
        loss: From a batch to what is made small.
        trained: The modules that are changed.
        drop_at: Share of the steps after which the learning rate is a tenth.
    """

    name: str
    stream: int
    steps: int
    loss: Callable[[Samples], Tensor]
    trained: tuple[torch.nn.Module, ...]
    drop_at: float = 1.0

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        return RATE * (0.1 if step >= self.drop_at * self.steps else 1.0)


class Dsr:
    """A model of codes that is not trained, and five networks that are; see ``System``."""

    facts = FACTS
    size = (256, 256)
    window = CROP

    def __init__(self, task: Task) -> None:
        """Make the networks; errors are ``load_vq``'s."""
        self._task = task
        self.vq = VqModel()
        self.weights = load_vq(self.vq, task)
        self.vq = self.vq.requires_grad_(False)
        self.subspace_lo, self.subspace_hi = subspace_restriction(), subspace_restriction()
        self.reconstruction = ImageReconstruction()
        self.detection, self.upsampling = anomaly_detection(), upsampling()
        for module in self.modules():
            module.to(task.device).eval()

    def modules(self) -> tuple[torch.nn.Module, ...]:
        """Return the model of codes, then those that are trained, the upsampling one last."""
        return (
            self.vq,
            self.subspace_lo,
            self.subspace_hi,
            self.reconstruction,
            self.detection,
            self.upsampling,
        )

    def stages(self) -> list[Stage]:
        """Return two: all but the upsampling module for 100,000 steps, then it for 50,000.

        Random weights get codes from normal images before the first step.
        """
        frames = PlainFrames(self._task, self.size, TURNED)
        paper = EPOCH // BATCH
        main = steps_of(self._task, paper=EPOCHS * paper, quick=QUICK_STEPS)
        last = steps_of(self._task, paper=UPSAMPLING_EPOCHS * paper, quick=QUICK_UPSAMPLING_STEPS)
        return [
            self._stage(
                Plan("subspaces", 1, main, self.loss, self.modules()[1:-1], 0.8),
                frames,
                begin=lambda: self._fit_random_codes(frames),
            ),
            self._stage(
                Plan("upsampling", 2, last, self.upsampling_loss, self.modules()[-1:]), frames
            ),
        ]

    def _fit_random_codes(self, frames: PlainFrames) -> None:
        if self.weights == RANDOM:
            rng = np.random.default_rng(self._task.seed)
            images = draw_samples(frames, BATCH, rng).images.to(self._task.device)
            fit_codes(self.vq, images, self._task.seed)

    def stand_in(self) -> None:
        """Give random weights codes from normal images; other weights have theirs."""
        few = replace(self._task, images=self._task.images[:BATCH])
        self._fit_random_codes(PlainFrames(few, self.size, TURNED))

    def loss(self, samples: Samples) -> Tensor:
        """Return the errors of features and image, and the coarse map's focal loss."""
        corrupted = corrupt(self.vq, samples)
        clean_lo, clean_hi = corrupted.clean
        lo, hi = self.subspace_lo(corrupted.codes[0]), self.subspace_hi(corrupted.codes[1])
        own = self._own_image(lo, hi)
        with torch.no_grad():
            general = self.vq.decode(*corrupted.codes)
        logits = self.detection(torch.cat([own.detach(), general], dim=1))
        features = F.mse_loss(hi, clean_hi) + F.mse_loss(lo, clean_lo)
        image = 10 * F.mse_loss(own, samples.images)
        return features + image + focal_loss(logits, corrupted.masks)

    def upsampling_loss(self, samples: Samples) -> Tensor:
        """Return the fine map's focal loss; the networks before get no gradient."""
        with torch.no_grad():
            seen = self._seen(smudge(samples))
        return focal_loss(self.upsampling(seen), samples.masks)

    def prepare(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Resize without antialiasing; BGR in [0, 1]."""
        return plain_bgr(frame, self.size)

    def network(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the coarse map's shares and the fine map's logits, (N, 2, H, W) each."""
        seen = self._seen(images)
        return seen[:, 6:], self.upsampling(seen)

    def answer(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Crop the fine map; the score is the coarse map's highest mean over 21 x 21 pixels."""
        coarse, fine = outputs[0][:, 1], torch.softmax(outputs[1], dim=1)[:, 1]
        return cropped(fine, self.window), pooled_score(coarse)

    def _seen(self, images: Tensor) -> Tensor:
        """Return what the upsampling module sees: own image, general image, coarse map."""
        lo, hi = self.vq.codes(images)
        own = self._own_image(self.subspace_lo(lo), self.subspace_hi(hi))
        pair = torch.cat([own, self.vq.decode(lo, hi)], dim=1)
        return torch.cat([pair, torch.softmax(self.detection(pair), dim=1)], dim=1)

    def _own_image(self, lo: Tensor, hi: Tensor) -> Tensor:
        """Return the category's image of features that are quantised again."""
        lo = straight_through(lo, self.vq.vq_vae_top.codes)
        hi = straight_through(hi, self.vq.vq_vae_bot.codes)
        image: Tensor = self.reconstruction(self.vq.joined(lo, hi))
        return image

    def _stage(
        self, plan: Plan, frames: PlainFrames, begin: Callable[[], None] = lambda: None
    ) -> Stage:
        size = steps_of(self._task, paper=BATCH, quick=QUICK_BATCH)
        optimizer = torch.optim.Adam([p for m in plan.trained for p in m.parameters()], lr=RATE)

        def make(number: int) -> Samples:
            rng = np.random.default_rng([self._task.seed, plan.stream, number])
            return draw_samples(frames, size, rng)

        batches = Ahead(make, plan.steps, self._task.device)

        def step(number: int) -> Tensor:
            _train(plan.trained, True)
            loss = plan.loss(batches(number).to(self._task.device))
            optimizer.param_groups[0]["lr"] = plan.rate(number)
            return descend(optimizer, loss)

        def end() -> None:
            batches.close()
            _train(plan.trained, False)

        return Stage(plan.name, plan.steps, size, step, begin, end)


def _train(modules: tuple[torch.nn.Module, ...], on: bool) -> None:
    for module in modules:
        module.train(on)


def cropped(maps: Tensor, share: float) -> Tensor:
    """Return the middle of maps (N, H, W): of 256 pixels 224, without 16 on each side."""
    height, width = (round(length * share) for length in maps.shape[1:])
    top, left = (maps.shape[1] - height) // 2, (maps.shape[2] - width) // 2
    return maps[:, top : top + height, left : left + width]


def load_vq(model: VqModel, task: Task) -> str:
    """Fill the model of codes with its pretrained weights and say where they came from.

    Args:
        model: Filled in place.
        task: Its ``weights["vq"]`` is used where given: the authors'
            ``vq_model_pretrained_128_4096.pckl``, or a file with names like it. Where it is not
            given and ``pretrained`` is off, the random weights stay.

    Returns:
        The file's name, or ``random``.

    Raises:
        WeightsError: If there is no file and random weights are refused, or if it is of another
            model.
    """
    path = task.weights.get("vq")
    if path is not None:
        state = {_plain(name): tensor for name, tensor in read_state_dict(path).items()}
        fill(model, state, str(path))
        return path.name
    if task.pretrained:
        raise WeightsError(
            "DSR: no weights of its VQ model, which was pretrained on ImageNet and cannot be "
            "downloaded from here. Pass the authors' vq_model_pretrained_128_4096.pckl as the "
            "weights 'vq', or allow random weights to measure time alone."
        )
    return RANDOM


def _plain(name: str) -> str:
    """Drop the underscores that the authors put before names."""
    return ".".join(part.lstrip("_") for part in name.split("."))


def open_system(task: Task) -> Dsr:
    """Make DSR for a task; see ``catalogue.open_system``."""
    return Dsr(task)
