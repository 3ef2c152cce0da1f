"""Training as the reference does it, to compare with: its steps, and its way to make batches.

Every network runs in every step, the teacher twice, and worker processes prepare image by image.
The samples and the gradients are those of ``loop.LeanSteps`` and ``batches.DeviceLoader``
(``tests/deploy/training/test_steps.py`` and ``test_device_loader.py``).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from destseg_deploy.data.synthesis import synthesize
from destseg_deploy.data.textures import Textures
from destseg_deploy.environment import allowed_cores
from destseg_deploy.models.destseg import DeSTSeg, dest_map, normalize
from destseg_deploy.training.batches import Batch, Sampler
from destseg_deploy.training.loop import segmentation_loss, student_loss

Arrays = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


class LiteralSteps:
    """Computes what the reference computes: every network in every step, the teacher twice.

    It serves as the contender in the measurement of training time (Table S4).
    """

    order = torch.contiguous_format
    """PyTorch's default, as in the reference."""

    def __init__(self, gamma: float) -> None:
        """Take the exponent of the focal loss."""
        self.gamma = gamma

    def enter(self, net: DeSTSeg, phase: str) -> None:
        """Set the modes. Gradients flow into both networks in both phases, as in the reference."""
        net.student_net.train(phase == "student")
        net.segmentation_net.train(phase == "segmentation")

    def loss(self, net: DeSTSeg, phase: str, image: Tensor, clean: Tensor, mask: Tensor) -> Tensor:
        """Return the loss of a batch; see ``Steps``."""
        seen, student = net.features(image)
        logits = net.segment(seen, student, logits=True)
        # The reference clones the image, so its second pass of the teacher cannot be shared.
        origin = clean if phase == "student" else image.clone()
        with torch.no_grad():
            target = [normalize(x) for x in net.teacher_net(origin)]
        dest_map(target, student)  # the reference computes it in every step and never uses it
        if phase == "student":
            return student_loss(target, student)
        return segmentation_loss(logits, mask, self.gamma)


class AnomalyDataset(Dataset[Arrays]):
    """Training samples by number, each made in NumPy as the reference makes it."""

    def __init__(
        self, images: NDArray[np.uint8], textures: Textures, sampler: Sampler, samples: int
    ) -> None:
        """Keep what the samples are made of.

        Args:
            images: uint8 (M, H, W, 3), normal images.
            textures: Textures of the same size. They are read anew for each sample.
            sampler: What each sample consists of.
            samples: Number of samples of the run.
        """
        self.images = images
        self.textures = textures
        self.sampler = sampler
        self.samples = samples

    def __len__(self) -> int:
        """Return the number of samples of the run."""
        return self.samples

    def __getitem__(self, index: int) -> Arrays:
        """Return corrupted and clean image, float32 (3, H, W), and mask, float32 (1, H, W)."""
        plan = self.sampler.plan(index)
        texture = self.textures.read(plan.texture)
        sample = synthesize(self.images[plan.image], texture, plan.choices)
        return (
            np.ascontiguousarray(sample.image.transpose(2, 0, 1)),
            np.ascontiguousarray(sample.clean.transpose(2, 0, 1)),
            sample.mask[None].astype(np.float32),
        )


def reference_batches(
    dataset: AnomalyDataset, batch_size: int, start: int, stop: int, *, workers: int = 0
) -> Iterator[Batch]:
    """Yield batches ``start`` to ``stop - 1`` of the dataset.

    Args:
        dataset: The samples.
        batch_size: Images per batch.
        start: Number of the first batch.
        stop: Number of the batch after the last.
        workers: Processes that prepare batches ahead; 0 prepares them in this process.
    """
    part = Subset(dataset, range(start * batch_size, stop * batch_size))
    pinned = torch.cuda.is_available()
    workers = min(workers, len(allowed_cores()))  # more would wait for each other
    yield from DataLoader(part, batch_size, num_workers=workers, pin_memory=pinned)
