"""CutPaste: a ResNet18 learns to tell normal images from two kinds of pasted ones.

Li et al., CutPaste: Self-Supervised Learning for Anomaly Detection and Localization, CVPR 2021,
Section 2; no code of the authors is published. The image score is the Mahalanobis distance of an
embedding from the normal ones (Section 2.3).
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from destseg_bench.systems.cutpaste.augment import paste_patch, paste_scar
from destseg_bench.systems.cutpaste.density import GaussianDensity
from destseg_bench.systems.frames import TrainingFrames
from destseg_bench.systems.system import Facts, Stage, System, Task
from destseg_bench.systems.training import Descent, parameters
from destseg_bench.systems.weights import RANDOM, load_resnet18
from destseg_deploy.data.resize import resize_image
from destseg_deploy.models.resnet import ResNet18, init_residual
from destseg_deploy.spec import IMAGENET_MEAN, IMAGENET_STD

KINDS = 3
"""Normal, with a patch, with a scar."""

BATCH = 32
QUICK_BATCH = 4
"""Normal images of a step; the network sees each of them in three kinds."""

EPOCHS, UPDATES = 256, 256
QUICK_STEPS = 48
RATE = 0.03
EMBEDDING = 512


class CutPaste(System):
    """A ResNet18 and a Gaussian density of its embeddings."""

    facts = Facts(
        "CutPaste",
        "Li et al., CVPR 2021, Section 2",
        (
            "One network of the 3-way variant, where the paper's accuracy is of an ensemble.",
            "An epoch is 256 updates, as the paper says; the unofficial code makes 256 in all.",
            "All layers learn from the first step on; the unofficial code freezes them for 20.",
            "The hidden layer of the head is one of 512, then one of 128.",
            "Images are not augmented but by pasting.",
            "The map is GradCAM of the score at layer4, since the paper's patch network for "
            "localisation is not described in full.",
        ),
    )

    def __init__(self, task: Task) -> None:
        """Make the networks; errors are ``load_resnet18``'s."""
        super().__init__(task)
        self.backbone = ResNet18()
        init_residual(self.backbone, zero_last=False)
        trunk, self.weights = load_resnet18(task)
        if self.weights != RANDOM:
            self.backbone.load_state_dict(trunk.state_dict(), strict=False)
            self.weights += ", layer4 random" if trunk.layers == 3 else ""
        self.backbone = self.backbone.to(task.device).eval()
        self.head = _head().to(task.device).eval()
        self.density = GaussianDensity(EMBEDDING).to(task.device)

    def modules(self) -> tuple[nn.Module, ...]:
        """Return the backbone; the head only teaches it."""
        return (self.backbone,)

    def stages(self) -> list[Stage]:
        """Return the classification of pasted images, then the embedding of the normal ones."""
        # Pasting runs on the host; batches of one image are an endless stream that drops none.
        host = replace(self.task, device=torch.device("cpu"))
        frames = TrainingFrames(host, self._unscaled, 1)
        return [self._classification(frames), self._density(frames)]

    def _classification(self, frames: TrainingFrames) -> Stage:
        task = self.task
        size = task.choose(paper=BATCH, quick=QUICK_BATCH)
        steps = task.choose(paper=EPOCHS * UPDATES, quick=QUICK_STEPS)
        learning = (self.backbone, self.head)
        optimizer = torch.optim.SGD(parameters(learning), lr=RATE, momentum=0.9, weight_decay=3e-5)

        def batch(step: int) -> tuple[Tensor, Tensor]:
            images = torch.cat([frames.batch(step * size + i) for i in range(size)])
            return three_kinds(images, np.random.default_rng([task.seed, step, 1]))

        def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
            images, kinds = (part.to(task.device) for part in batch)
            return F.cross_entropy(self.head(self.backbone(images)[3].mean(dim=(2, 3))), kinds)

        return Descent(
            "classification",
            steps,
            size,
            learning,
            optimizer,
            batch,
            loss,
            rate=partial(cosine_rate, steps=steps),
        ).stage(prefetch=task.device)

    def _density(self, frames: TrainingFrames) -> Stage:
        """Return a step per normal image; the density is fitted to those seen."""
        seen: dict[int, Tensor] = {}

        @torch.no_grad()
        def step(number: int) -> Tensor:
            images = standardized(frames.batch(number)).to(self.task.device)
            seen[number] = embedding(self.network(images)[0])
            return self.density.distance(seen[number]).squeeze(0)

        def end() -> None:
            if len(seen) > 1:  # fewer when single steps were timed
                self.density.fit(torch.cat(list(seen.values())))

        return Stage("density", len(frames), 1, step, end=end)

    def _unscaled(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Resize with antialiasing, RGB in [0, 1], float32 (3, *size)."""
        pixels = resize_image(frame, self.size).astype(np.float32) / 255
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def stand_in(self) -> None:
        """Fit the density to random embeddings."""
        random = torch.Generator().manual_seed(self.task.seed)
        drawn = torch.rand(2 * EMBEDDING, EMBEDDING, generator=random)
        self.density.fit(F.normalize(drawn, dim=1).to(self.task.device))

    def network(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the features of layer4, float32 (N, 512, 8, 8)."""
        return (self.backbone(images)[3],)

    def answer(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Score by the Mahalanobis distance; the map is its GradCAM, bilinearly enlarged."""
        scores, cam = grad_cam(self.density, outputs[0])
        maps = F.interpolate(cam[:, None], self.size, mode="bilinear", align_corners=False)
        return maps.squeeze(1), scores


def three_kinds(images: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return images as they are, with a patch and with a scar, and their kinds.

    Args:
        images: float32 (N, 3, H, W), RGB in [0, 1].
        random: Every choice is drawn from it.

    Returns:
        float32 (3 N, 3, H, W), normalised as ImageNet's, and int64 (3 N,): 0, 1 and 2.
    """
    normal = list(images.permute(0, 2, 3, 1).numpy())
    patched = [paste_patch(image, random) for image in normal]
    scarred = [paste_scar(image, random) for image in normal]
    pixels = torch.from_numpy(np.stack([*normal, *patched, *scarred])).permute(0, 3, 1, 2)
    return standardized(pixels.contiguous()), torch.arange(KINDS).repeat_interleave(len(normal))


def standardized(pixels: Tensor) -> Tensor:
    """Normalise RGB in [0, 1], (N, 3, H, W), as ImageNet's."""
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    return (pixels - mean[:, None, None]) / std[:, None, None]


def embedding(features: Tensor) -> Tensor:
    """Map features (N, C, H, W) to their mean over positions, scaled to length 1, (N, C)."""
    return F.normalize(features.mean(dim=(2, 3)), dim=1)


def grad_cam(density: GaussianDensity, features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distance of each image and where in its features it comes from.

    With pooled features f, e = f / |f| and d = sqrt((e - m)' P (e - m)), the gradient is known:
    dd/df = (g - (g.e) e) / |f|, where g = P (e - m) / d. GradCAM weighs the channels by it.

    Args:
        density: Of embeddings of normal images.
        features: float32 (N, C, H, W).

    Returns:
        Distances (N,), and maps (N, H, W): the positive part of the weighted sum of channels.
    """
    pooled = features.mean(dim=(2, 3))
    length = pooled.norm(dim=1, keepdim=True).clamp(min=1e-12)
    unit = pooled / length
    distance = density.distance(unit)
    # An embedding at the mean has no direction away from it: its map is 0, not NaN.
    slope = (unit - density.mean) @ density.precision / distance.clamp(min=1e-12)[:, None]
    slope = (slope - (slope * unit).sum(dim=1, keepdim=True) * unit) / length
    weights = slope / (features.shape[2] * features.shape[3])
    return distance, torch.einsum("nc,nchw->nhw", weights, features).clamp(min=0)


def cosine_rate(step: int, steps: int) -> float:
    """Return the learning rate of a step, from 0.03 at the first down to 0 after the last."""
    return RATE * (1 + math.cos(math.pi * step / steps)) / 2


def _head() -> nn.Sequential:
    widths = (EMBEDDING, 512, 128)
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(widths[-1], KINDS))
