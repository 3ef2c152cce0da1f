"""PatchCore: distances of patch features to a memory bank of normal ones.

Roth et al., Towards Total Recall in Industrial Anomaly Detection, CVPR 2022, Section 3, as the
authors' code runs its IM224 baseline: WideResNet50-2, a coreset of 10 %, one neighbour.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from destseg_bench.systems.frames import TrainingFrames
from destseg_bench.systems.patchcore.features import (
    WIDE_CHANNELS,
    WIDTH,
    PatchEmbedding,
    WideResNet50,
)
from destseg_bench.systems.patchcore.search import Coreset, enlarge_and_smooth, squared_distances
from destseg_bench.systems.system import Facts, Stage, System, Task, normalized
from destseg_bench.systems.weights import load_pretrained
from destseg_deploy.errors import BackendError
from destseg_deploy.models.resnet import CHANNELS, ResNet18

WHOLE = 256
CROP = 224
GRID = 28
SIGMA = 4.0
BATCH = 8

SOURCE = "Roth et al., CVPR 2022, Section 3"
DIFFERS = (
    "A frame that is not square is resized to 256 x 256, not to 256 on its shorter side.",
    "Unfolding, pooling and enlarging are one convolution per layer with the same result.",
    "The nearest row is found by a matrix product instead of FAISS's exact index.",
    "The quick schedule keeps 1 % of the patches, not 10 %.",
)


class PatchCore(System):
    """A backbone, fixed pooling and a bank.

    To time features and search apart, time ``network(images)`` and ``answer`` of its result; what
    ``answer`` does besides the search is two small matrix products.

    Attributes:
        bank: float32 (rows, 1024); empty until trained or ``stand_in``.
        channels: Channels of the backbone's second and third feature map, of strides 8 and 16,
            which make the patches.
    """

    facts = Facts("PatchCore", SOURCE, DIFFERS, parameters=24.9, gmacs=9.2)
    size = (CROP, CROP)
    window = CROP / WHOLE
    channels = WIDE_CHANNELS[1:3]

    def __init__(self, task: Task) -> None:
        """Make the networks and an empty bank; errors are ``load_pretrained``'s."""
        super().__init__(task)
        self.backbone, weights = self._backbone()
        self.weights = load_pretrained(self.backbone, task, weights)
        self.backbone = self.backbone.to(task.device).eval().requires_grad_(False)
        self.embedding = PatchEmbedding(self.channels).to(task.device).eval()
        self._smooth = torch.from_numpy(enlarge_and_smooth(GRID, CROP, SIGMA)).to(task.device)
        self.bank = torch.zeros(0, WIDTH, device=task.device)

    def _backbone(self) -> tuple[nn.Module, str]:
        """Return a network that maps images to a list of feature maps, and its weights' name."""
        return WideResNet50(), "wide_resnet50_2"

    def modules(self) -> tuple[nn.Module, ...]:
        """Return backbone and pooling."""
        return self.backbone, self.embedding

    def stages(self) -> list[Stage]:
        """Return the reading of all patches, then the picking of the bank, a step each."""
        task = self.task
        frames = TrainingFrames(task, self.prepare, 1)  # batches of one image drop none
        picks = bank_rows(task)
        coreset = Coreset(len(frames) * GRID**2, WIDTH, picks, device=task.device, seed=task.seed)

        @torch.no_grad()
        def read(number: int) -> Tensor:
            first, last = number * BATCH, min((number + 1) * BATCH, len(frames))
            images = torch.cat([frames.batch(i) for i in range(first, last)])
            (features,) = self.network(images)
            coreset.put(first * GRID**2, features.flatten(0, 1))
            return torch.zeros((), device=features.device)  # nothing is optimised

        def keep() -> None:
            # Where picking was cut short to time it, random rows keep the bank's size, on which
            # the time of a search depends.
            self.stand_in()
            self.bank[: coreset.done] = coreset.rows()

        return [
            Stage("features", -(-len(frames) // BATCH), BATCH, read, end=coreset.start),
            Stage("coreset", picks, 0, coreset.pick, end=keep),
        ]

    def stand_in(self) -> None:
        """Fill the bank with as many random rows as the schedule picks."""
        random = torch.Generator().manual_seed(self.task.seed)
        rows = torch.rand(bank_rows(self.task), WIDTH, generator=random)
        self.bank = rows.to(self.task.device)

    def prepare(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Resize to 256 x 256 with antialiasing, normalise as ImageNet's, keep the middle 224."""
        margin = (WHOLE - CROP) // 2
        middle = slice(margin, margin + CROP)
        return np.ascontiguousarray(normalized(frame, (WHOLE, WHOLE))[:, middle, middle])

    def network(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the patch features, float32 (N, 784, 1024)."""
        return (self.embedding(self.backbone(images)[1:3]),)

    def answer(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Search, enlarge and smooth; the score is the largest distance of a patch, unsmoothed.

        Raises:
            BackendError: If there is no bank.
        """
        if not len(self.bank):
            raise BackendError("PatchCore: no memory bank. Train it, or call stand_in() for time.")
        distances = squared_distances(outputs[0].flatten(0, 1), self.bank)
        distances = distances.view(-1, GRID, GRID)
        return self._smooth @ distances @ self._smooth.T, distances.amax(dim=(1, 2))


class PatchCoreResNet18(PatchCore):
    """PatchCore on a ResNet18, for machines without WideResNet50-2's weights."""

    facts = Facts(
        "PatchCore (ResNet18)",
        SOURCE,
        ("The backbone is ResNet18, not WideResNet50-2.", *DIFFERS),
    )
    channels = CHANNELS[1:3]

    def _backbone(self) -> tuple[nn.Module, str]:
        return ResNet18(layers=3), "resnet18"


def bank_rows(task: Task) -> int:
    """Return how many of the normal images' patches the bank holds: 10 %, or 1 % when quick."""
    patches = len(task.images) * GRID**2
    return max(1, patches * task.choose(paper=10, quick=1) // 100)
