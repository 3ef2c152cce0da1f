"""DRAEM: one network repairs the image, another sees where image and repaired image differ.

Zavrtanik et al., DRAEM - A discriminatively trained reconstruction embedding for surface anomaly
detection, ICCV 2021, Section 3.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from destseg_bench.systems.draem.networks import discriminative, reconstructive
from destseg_bench.systems.draem.synthesis import Batch, BgrTextures, make_batch
from destseg_bench.systems.frames import BgrFrames, plain_bgr
from destseg_bench.systems.system import Facts, Stage, System, Task
from destseg_bench.systems.training import Descent, parameters
from destseg_bench.systems.two_class import focal_loss, pooled_score

BATCH = 8
EPOCHS = 700
QUICK_BATCH = 2
QUICK_STEPS = 15
"""A step of 8 images takes minutes on a CPU."""
RATE = 1e-4
ROTATED = 0.3

WINDOW = 11
SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2
"""Against division by zero, for values that span 1."""


class Draem(System):
    """An autoencoder and a U-Net."""

    facts = Facts(
        "DRAEM",
        "Zavrtanik et al., ICCV 2021, Section 3",
        (
            "The README's 700 epochs are taken, not the 800 of the released checkpoints' names.",
            "The strengths of the texture's augmentations are not in the paper: they are those "
            "of the authors' settings, and each augmentation is written here from its meaning.",
            "A texture is resized with antialiasing.",
            "What a rotation uncovers is black.",
            "SSIM takes the values to span 1 whatever the reconstruction holds.",
            "Masks are resized and cut at one half as for every system here: defects are not "
            "eroded.",
        ),
        parameters=97.4,
        gmacs=198.0,
    )

    def __init__(self, task: Task) -> None:
        """Make the networks."""
        super().__init__(task)
        self.reconstructive = reconstructive().to(task.device).eval()
        self.discriminative = discriminative().to(task.device).eval()

    def modules(self) -> tuple[torch.nn.Module, ...]:
        """Return the reconstructive and the discriminative network."""
        return self.reconstructive, self.discriminative

    def stages(self) -> list[Stage]:
        """Return the one stage: 700 epochs of the normal images in batches of 8."""
        task = self.task
        frames = BgrFrames(task, self.size, ROTATED)
        textures = BgrTextures(task.textures, self.size)
        size = task.choose(paper=BATCH, quick=QUICK_BATCH)
        steps = task.choose(paper=EPOCHS * -(-len(frames) // BATCH), quick=QUICK_STEPS)

        def batch(number: int) -> Batch:
            return make_batch(frames, textures, size, np.random.default_rng([task.seed, number]))

        return [
            Descent(
                "both networks",
                steps,
                size,
                self.modules(),
                torch.optim.Adam(parameters(self.modules()), lr=RATE),
                batch,
                lambda batch: self.loss(*(part.to(task.device) for part in batch)),
                rate=partial(learning_rate, steps=steps),
            ).stage(prefetch=task.device)
        ]

    def loss(self, images: Tensor, clean: Tensor, masks: Tensor) -> Tensor:
        """Return squared error and dissimilarity of the repaired image, and the map's focal loss.

        Args:
            images: float32 (N, 3, H, W), with anomalies.
            clean: float32 (N, 3, H, W), without.
            masks: float32 (N, 1, H, W), 1 where there is an anomaly.
        """
        repaired = self.reconstructive(images)
        logits = self.discriminative(torch.cat([repaired, images], dim=1))
        unlike = 1 - structural_similarity(repaired, clean).mean()
        return F.mse_loss(repaired, clean) + unlike + focal_loss(logits, masks)

    def prepare(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Resize without antialiasing; BGR in [0, 1]."""
        return plain_bgr(frame, self.size)

    def network(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the logits of normal and anomalous, (N, 2, H, W)."""
        return (self.discriminative(torch.cat([self.reconstructive(images), images], dim=1)),)

    def answer(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Return the share of anomalous; the score is its highest mean over 21 x 21 pixels."""
        maps = torch.softmax(outputs[0], dim=1)[:, 1]
        return maps, pooled_score(maps)


def learning_rate(step: int, steps: int) -> float:
    """Return 1e-4, a fifth of it from 80 % of the steps on, and a fifth of that from 90 % on."""
    return RATE * 0.2 ** ((10 * step >= 8 * steps) + (10 * step >= 9 * steps))


def structural_similarity(one: Tensor, two: Tensor) -> Tensor:
    """Return the similarity around each pixel, 1 where the images are alike (Wang et al., 2004).

    A pixel's neighbours are weighted by a Gaussian over 11 x 11 pixels; what is beyond the border
    counts as zero.

    Args:
        one: float (N, C, H, W), values spanning 1.
        two: The same shape.

    Returns:
        float (N, C, H, W).
    """
    parts = torch.stack([one, two, one * one, two * two, one * two])
    mean_1, mean_2, square_1, square_2, product = _blurred(parts.flatten(0, 2)).view_as(parts)
    variances = square_1 - mean_1 * mean_1 + square_2 - mean_2 * mean_2
    covariance = product - mean_1 * mean_2
    luminance = (2 * mean_1 * mean_2 + C1) / (mean_1 * mean_1 + mean_2 * mean_2 + C1)
    similar: Tensor = luminance * (2 * covariance + C2) / (variances + C2)
    return similar


def _blurred(planes: Tensor) -> Tensor:
    """Blur planes (N, H, W), first along the height, then along the width."""
    away = torch.arange(WINDOW, device=planes.device, dtype=planes.dtype) - WINDOW // 2
    weights = torch.softmax(-away * away / (2 * SIGMA**2), dim=0)  # exp(...), with a sum of 1
    blurred = F.conv2d(planes[:, None], weights.view(1, 1, -1, 1), padding=(WINDOW // 2, 0))
    blurred = F.conv2d(blurred, weights.view(1, 1, 1, -1), padding=(0, WINDOW // 2))
    return blurred.squeeze(1)
