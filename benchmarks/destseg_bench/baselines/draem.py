"""DRAEM: one network repairs the image, another sees where image and repaired image differ.

Zavrtanik et al., DRAEM - A discriminatively trained reconstruction embedding for surface anomaly
detection, ICCV 2021; methods.md 3.3.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from destseg_bench.baselines.ahead import Ahead
from destseg_bench.baselines.descent import descend
from destseg_bench.baselines.draem_networks import discriminative, reconstructive
from destseg_bench.baselines.draem_synthesis import BgrTextures, synthesize
from destseg_bench.baselines.plain_frames import PlainFrames, plain_bgr
from destseg_bench.baselines.similarity import structural_similarity
from destseg_bench.baselines.system import Facts, Stage, Task, steps_of
from destseg_bench.baselines.two_class import focal_loss, pooled_score

BATCH = 8
EPOCHS = 700
QUICK_BATCH = 2
QUICK_STEPS = 15
"""A step of 8 images takes minutes on a CPU."""
RATE = 1e-4
TURNED = 0.3

FACTS = Facts(
    "DRAEM",
    "Zavrtanik et al., ICCV 2021; methods.md 3.3",
    (
        "The README's 700 epochs are taken, not the 800 of the released checkpoints' names.",
        "The strengths of the texture's augmentations are not in the description: they are those "
        "of the authors' settings, and each augmentation is written here from its meaning.",
        "A texture is resized with antialiasing.",
        "What a rotation uncovers is black.",
        "SSIM takes the values to span 1 whatever the reconstruction holds.",
        "Masks are resized and cut at one half as for every system here: defects are not eroded.",
    ),
    parameters=97.4,
    gmacs=198.0,
)

Batch = tuple[Tensor, Tensor, Tensor]
"""Images with anomalies and without, float32 (N, 3, H, W), and masks, float32 (N, 1, H, W)."""


class Draem:
    """An autoencoder and a U-Net; see ``System``."""

    facts = FACTS
    size = (256, 256)
    window = 1.0
    weights = "none"

    def __init__(self, task: Task) -> None:
        """Make the networks."""
        self._task = task
        self.reconstructive = reconstructive().to(task.device).eval()
        self.discriminative = discriminative().to(task.device).eval()

    def modules(self) -> tuple[torch.nn.Module, ...]:
        """Return the reconstructive and the discriminative network."""
        return self.reconstructive, self.discriminative

    def stages(self) -> list[Stage]:
        """Return the one stage: 700 epochs of the normal images in batches of 8."""
        frames = PlainFrames(self._task, self.size, TURNED)
        textures = BgrTextures(self._task.textures, self.size)
        size = steps_of(self._task, paper=BATCH, quick=QUICK_BATCH)
        paper = EPOCHS * -(-len(frames) // BATCH)
        steps = steps_of(self._task, paper=paper, quick=QUICK_STEPS)
        parameters = [p for module in self.modules() for p in module.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=RATE)

        def make(number: int) -> Batch:
            rng = np.random.default_rng([self._task.seed, number])
            return make_batch(frames, textures, size, rng)

        batches = Ahead(make, steps, self._task.device)

        def step(number: int) -> Tensor:
            self._train(True)
            images, clean, masks = (part.to(self._task.device) for part in batches(number))
            loss = self.loss(images, clean, masks)
            optimizer.param_groups[0]["lr"] = learning_rate(number, steps)
            return descend(optimizer, loss)

        def end() -> None:
            batches.close()
            self._train(False)

        return [Stage("both networks", steps, size, step, end=end)]

    def stand_in(self) -> None:
        """Do nothing: inference needs the networks alone."""

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

    def _train(self, on: bool) -> None:
        for module in self.modules():
            module.train(on)


def make_batch(
    frames: PlainFrames, textures: BgrTextures, size: int, rng: np.random.Generator
) -> Batch:
    """Draw a batch of some size on the host; the same generator gives the same."""
    samples = [synthesize(frames.pick(rng), textures.pick(rng), rng) for _ in range(size)]
    images = np.stack([sample.image for sample in samples]).transpose(0, 3, 1, 2)
    clean = np.stack([sample.clean for sample in samples]).transpose(0, 3, 1, 2)
    masks = np.stack([sample.mask[None] for sample in samples]).astype(np.float32)
    return (
        torch.from_numpy(np.ascontiguousarray(images)),
        torch.from_numpy(np.ascontiguousarray(clean)),
        torch.from_numpy(masks),
    )


def learning_rate(step: int, steps: int) -> float:
    """Return 1e-4, a fifth of it from 80 % of the steps on, and a fifth of that from 90 % on."""
    return RATE * 0.2 ** ((10 * step >= 8 * steps) + (10 * step >= 9 * steps))


def open_system(task: Task) -> Draem:
    """Make DRAEM for a task; see ``catalogue.open_system``."""
    return Draem(task)
