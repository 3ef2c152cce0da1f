"""DSR: a general and a category's own decoder draw an image from codes, and a U-Net compares.

Zavrtanik et al., DSR - A dual subspace re-projection network for surface anomaly detection, ECCV
2022, Section 3.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from destseg_bench.systems.dsr.codes import straight_through
from destseg_bench.systems.dsr.networks import (
    VqModel,
    anomaly_detection,
    fit_codes,
    image_reconstruction,
    subspace_restriction,
    upsampling,
)
from destseg_bench.systems.dsr.synthesis import Samples, corrupt, draw_samples, smudge
from destseg_bench.systems.frames import BgrFrames, plain_bgr
from destseg_bench.systems.system import Facts, Stage, System, Task
from destseg_bench.systems.training import Descent, parameters
from destseg_bench.systems.two_class import focal_loss, pooled_score
from destseg_bench.systems.weights import RANDOM, fill
from destseg_deploy.errors import WeightsError
from destseg_deploy.models.weights import read_state_dict

BATCH = 8
EPOCH = 8000
EPOCHS, UPSAMPLING_EPOCHS = 100, 50
QUICK_BATCH = 2
QUICK_STEPS, QUICK_UPSAMPLING_STEPS = 30, 15
"""A step of 8 images takes most of a minute on a CPU."""
RATE = 2e-4
ROTATED = 0.4
CROP = 224 / 256


class Dsr(System):
    """A model of codes that is not trained, and five networks that are."""

    facts = Facts(
        "DSR",
        "Zavrtanik et al., ECCV 2022, Section 3",
        (
            "The paper leaves open how deep the two U-Nets are: four levels of 64, 128, 256 and "
            "256 channels, skips joined, corners aligned in enlarging.",
            "It leaves open how often which codes are replaced: both in half of the anomalies, lo "
            "and hi alone in a quarter each; after both, a mask has the steps of the lo codes.",
            "The coarse map that the image score reads has the image's size and the codes' steps.",
            "A smudge is one uniform colour, blended in with a share of 0.2 to 1; half of the "
            "images get none.",
            "The upsampling module learns at 2e-4 throughout.",
            "The focal loss is DRAEM's.",
            "What a rotation uncovers is black.",
        ),
    )
    window = CROP

    def __init__(self, task: Task) -> None:
        """Make the networks; errors are ``load_vq``'s."""
        super().__init__(task)
        self.vq = VqModel()
        self.weights = load_vq(self.vq, task)
        self.vq = self.vq.requires_grad_(False)
        self.subspace_lo, self.subspace_hi = subspace_restriction(), subspace_restriction()
        self.reconstruction = image_reconstruction()
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
        task, trained = self.task, self.modules()[1:-1]
        frames = BgrFrames(task, self.size, ROTATED)
        size = task.choose(paper=BATCH, quick=QUICK_BATCH)
        epoch = EPOCH // BATCH
        steps = task.choose(paper=EPOCHS * epoch, quick=QUICK_STEPS)
        last = task.choose(paper=UPSAMPLING_EPOCHS * epoch, quick=QUICK_UPSAMPLING_STEPS)

        def batch(stage: int, step: int) -> Samples:
            # The stage's number in the seed makes its random choices differ from the other's.
            return draw_samples(frames, size, np.random.default_rng([task.seed, stage, step]))

        subspaces = Descent(
            "subspaces",
            steps,
            size,
            trained,
            torch.optim.Adam(parameters(trained), lr=RATE),
            partial(batch, 1),
            lambda samples: self.loss(samples.to(task.device)),
            rate=partial(learning_rate, steps=steps),
        )
        fine_map = Descent(
            "upsampling",
            last,
            size,
            (self.upsampling,),
            torch.optim.Adam(self.upsampling.parameters(), lr=RATE),
            partial(batch, 2),
            lambda samples: self.upsampling_loss(samples.to(task.device)),
        )
        return [
            subspaces.stage(task.device, begin=lambda: self._fit_random_codes(frames)),
            fine_map.stage(task.device),
        ]

    def _fit_random_codes(self, frames: BgrFrames) -> None:
        if self.weights == RANDOM:
            rng = np.random.default_rng(self.task.seed)
            images = draw_samples(frames, BATCH, rng).images.to(self.task.device)
            fit_codes(self.vq, images, self.task.seed)

    def stand_in(self) -> None:
        """Give random weights codes from normal images; other weights have theirs."""
        few = replace(self.task, images=self.task.images[:BATCH])
        self._fit_random_codes(BgrFrames(few, self.size, ROTATED))

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


def learning_rate(step: int, steps: int) -> float:
    """Return 2e-4, and a tenth of it from 80 % of the steps on."""
    return RATE * (0.1 if 10 * step >= 8 * steps else 1.0)


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
