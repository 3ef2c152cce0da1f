"""PatchCore: distances of patch features to a memory bank of normal ones.

Roth et al., Towards Total Recall in Industrial Anomaly Detection, CVPR 2022; methods.md 3.4, the
official IM224 baseline: WideResNet50-2, a coreset of 10 %, one neighbour.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from destseg_bench.baselines.backbones import load_resnet18
from destseg_bench.baselines.coreset import Coreset
from destseg_bench.baselines.frames import TrainingFrames, normalized
from destseg_bench.baselines.nearest import Search, open_search
from destseg_bench.baselines.patch_features import WIDTH, PatchEmbedding
from destseg_bench.baselines.smoothing import enlarge_and_smooth
from destseg_bench.baselines.system import Facts, Stage, Task, steps_of
from destseg_bench.baselines.wide_resnet import CHANNELS as WIDE_CHANNELS
from destseg_bench.baselines.wide_resnet import WideResNet50, load_wide_resnet
from destseg_deploy.errors import BackendError
from destseg_deploy.models.resnet import CHANNELS, ResNet18

WHOLE = 256
CROP = 224
GRID = 28
SIGMA = 4.0
BATCH = 8
PERCENT = {"paper": 10, "quick": 1}
"""Of the normal images' patches, how many the bank holds."""

DIFFERS = (
    "A frame that is not square is resized to 256 x 256, not to 256 on its shorter side.",
    "Unfolding, pooling and enlarging are one convolution per layer with the same result.",
    "The nearest row is found by a matrix product; FAISS is an option.",
    "The quick schedule keeps 1 % of the patches, not 10 %.",
)

SOURCE = "Roth et al., CVPR 2022; methods.md 3.4"
FACTS = Facts("PatchCore", SOURCE, DIFFERS, parameters=24.9, gmacs=9.2)
RESNET18_FACTS = Facts(
    "PatchCore (ResNet18)",
    SOURCE,
    ("The backbone is ResNet18, not WideResNet50-2.", *DIFFERS),
)


@dataclass(frozen=True)
class Backbone:
    """A network whose second and third feature maps, of strides 8 and 16, make the patches.

    Attributes:
        channels: Of these two maps.
        make: Makes it with random weights; it returns a list of feature maps.
        load: Fills it and says where the weights came from.
    """

    channels: tuple[int, int]
    make: Callable[[], nn.Module]
    load: Callable[[nn.Module, Task], str]


def _load_resnet18(network: nn.Module, task: Task) -> str:
    return load_resnet18(cast(ResNet18, network), task)


WIDE_RESNET = Backbone((WIDE_CHANNELS[1], WIDE_CHANNELS[2]), WideResNet50, load_wide_resnet)
RESNET18 = Backbone((CHANNELS[1], CHANNELS[2]), lambda: ResNet18(layers=3), _load_resnet18)


class PatchCore:
    """A backbone, fixed pooling and a bank; see ``System``.

    To time features and search apart, time ``network(images)``, then ``search(features)`` with
    what it returned; what ``answer`` does besides the search is two small matrix products.

    Attributes:
        bank: float32 (rows, 1024); empty until trained or ``stand_in``.
        bank_origin: What ``bank`` holds, in words.
    """

    size = (CROP, CROP)
    window = CROP / WHOLE

    def __init__(self, task: Task, backbone: Backbone = WIDE_RESNET, facts: Facts = FACTS) -> None:
        """Make the networks and a random bank; errors are the backbone loader's."""
        self.facts = facts
        self._task = task
        self.backbone = backbone.make()
        self.weights = backbone.load(self.backbone, task)
        self.backbone = self.backbone.to(task.device).eval().requires_grad_(False)
        self.embedding = PatchEmbedding(backbone.channels).to(task.device).eval()
        self._smooth = torch.from_numpy(enlarge_and_smooth(GRID, CROP, SIGMA)).to(task.device)
        self._search_with = "gemm"
        self.bank = torch.zeros(0, WIDTH, device=task.device)
        self.bank_origin = "nothing"
        self._search: Search | None = None

    def stand_in(self) -> None:
        """Fill the bank with as many random rows as the schedule picks."""
        self.fill_bank(bank_rows(self._task, len(self._task.images)))

    def fill_bank(self, rows: int) -> None:
        """Put random rows into the bank, for time alone: the answers then say nothing."""
        random = torch.Generator().manual_seed(self._task.seed)
        bank = torch.rand(rows, WIDTH, generator=random).to(self._task.device)
        self.set_bank(bank, f"{rows} random rows")

    def set_bank(self, bank: Tensor, origin: str) -> None:
        """Search among these rows from now on, float32 (rows, 1024)."""
        self.bank, self.bank_origin = bank, origin
        self._search = open_search(self._search_with, bank)

    def search_with(self, name: str) -> None:
        """Search by ``gemm`` or ``faiss`` from now on; errors are ``open_search``'s."""
        self._search_with = name
        self.set_bank(self.bank, self.bank_origin)

    def modules(self) -> tuple[nn.Module, ...]:
        """Return backbone and pooling."""
        return self.backbone, self.embedding

    def stages(self) -> list[Stage]:
        """Return the reading of all patches, then the picking of the bank, a step each."""
        frames = TrainingFrames(self._task, self.prepare, 1)  # drops no image
        patches = len(frames) * GRID**2
        picks = bank_rows(self._task, len(frames))
        coreset = Coreset(patches, WIDTH, picks, device=self._task.device, seed=self._task.seed)

        @torch.no_grad()
        def read(number: int) -> Tensor:
            first, last = number * BATCH, min((number + 1) * BATCH, len(frames))
            images = torch.cat([frames.batch(i) for i in range(first, last)])
            (features,) = self.network(images)
            coreset.put(first * GRID**2, features.flatten(0, 1))
            return torch.zeros((), device=features.device)  # nothing is optimised

        return [
            Stage("features", -(-len(frames) // BATCH), BATCH, read, end=coreset.start),
            Stage("coreset", picks, 0, coreset.pick, end=lambda: self._keep(coreset)),
        ]

    def _keep(self, coreset: Coreset) -> None:
        """Take the picked rows; where picking was cut short, random ones keep the bank's size."""
        total, done = len(coreset.picked), coreset.done
        if done < total:
            self.fill_bank(total)
            origin = f"{done} rows of the coreset, {total - done} random rows"
            self.set_bank(torch.cat([coreset.rows(), self.bank[done:]]), origin)
        else:
            self.set_bank(coreset.rows(), f"{done} rows of the coreset")

    def prepare(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Resize to 256 x 256 with antialiasing, normalise as ImageNet's, keep the middle 224."""
        margin = (WHOLE - CROP) // 2
        pixels = normalized(frame, (WHOLE, WHOLE))[
            :, margin : margin + CROP, margin : margin + CROP
        ]
        return np.ascontiguousarray(pixels)

    def network(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the patch features, float32 (N, 784, 1024)."""
        return (self.embedding(self.backbone(images)[1:3]),)

    def search(self, features: Tensor) -> Tensor:
        """Map patch features (N, 784, 1024) to squared distances to the bank, (N, 784).

        Raises:
            BackendError: If there is no bank.
        """
        if self._search is None:
            raise BackendError("PatchCore: no memory bank. Train it, or call stand_in() for time.")
        return self._search(features.flatten(0, 1)).view(features.shape[:2])

    def answer(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Search, enlarge and smooth; the score is the largest distance of a patch, unsmoothed."""
        distances = self.search(outputs[0])
        maps = self._smooth @ distances.view(-1, GRID, GRID) @ self._smooth.T
        return maps, distances.amax(dim=1)


def bank_rows(task: Task, images: int) -> int:
    """Return how many rows a schedule picks from so many normal images, at least 1."""
    patches = images * GRID**2
    rows = {schedule: patches * percent // 100 for schedule, percent in PERCENT.items()}
    return max(1, steps_of(task, **rows))


def open_system(task: Task) -> PatchCore:
    """Make PatchCore for a task; see ``catalogue.open_system``."""
    return PatchCore(task)


def open_resnet18(task: Task) -> PatchCore:
    """Make PatchCore on a ResNet18, for where WideResNet50-2's weights are not at hand."""
    return PatchCore(task, RESNET18, RESNET18_FACTS)
