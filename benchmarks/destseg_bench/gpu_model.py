"""A model and a category from nothing, so that speed can be measured before anything is trained.

Latency does not depend on the values of weights, but parity does: a network with its initial
weights answers 0.5 everywhere, and one with random BatchNorms amplifies rounding a thousand times.
This one's blocks add little to their shortcuts: its maps differ between images, and half precision
stays within its budget.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from destseg_deploy.data.images import read_images
from destseg_deploy.data.mvtec import list_train
from destseg_deploy.data.sample.category import write_sample
from destseg_deploy.models.destseg import DeSTSeg
from destseg_deploy.models.inference import normalize_pixels
from destseg_deploy.models.resnet import BasicBlock
from destseg_deploy.models.weights import checkpoint_spec, save_checkpoint
from destseg_deploy.spec import FileRecord, TeacherRecord

SPREAD = 0.06
"""Standard deviation of the logits: small enough that half rounds it within its budget."""

BRANCH = 0.3
"""Scale of what a residual block adds to its shortcut; of 1, rounding grows from block to block."""


def write_random_model(folder: Path, size: int) -> tuple[Path, Path]:
    """Write a drawn category and a checkpoint with random weights for it.

    Args:
        folder: Gets ``data/cable`` and ``random.safetensors``.
        size: Height and width of the images and of the network.

    Returns:
        The checkpoint and the category's folder.

    Raises:
        DataError: If the category is there already.
    """
    category = write_sample(folder / "data", size=size, train=16, good=4, per_defect=1)
    images = read_images(list_train(category)[:8], (size, size))
    model = random_model(torch.from_numpy(images.transpose(0, 3, 1, 2)).float())
    path = folder / "random.safetensors"
    spec = checkpoint_spec(
        category.name, (size, size), FileRecord("", ""), teacher=TeacherRecord("random")
    )
    save_checkpoint(model, spec, path)
    return path, category


@torch.no_grad()
def random_model(pixels: torch.Tensor, seed: int = 0) -> DeSTSeg:
    """Return a DeSTSeg with random weights whose statistics fit the pixels, float (N, 3, H, W)."""
    torch.manual_seed(seed)
    model, image = DeSTSeg(), normalize_pixels(pixels)
    norms = [one for one in model.modules() if isinstance(one, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.weight.fill_(1.0)  # the student's start at 0, which would blank half of it
        norm.momentum = 1.0
        norm.train()
    for block in model.modules():
        if isinstance(block, BasicBlock):
            block.bn2.weight.fill_(BRANCH)
    model(image)
    for norm in norms:
        norm.momentum = 0.1
    model.eval()
    last: Any = model.segmentation_net.head[4]
    logits = torch.logit(model(image)[0].clamp(1e-6, 1 - 1e-6))
    last.weight.mul_(SPREAD / logits.std())
    last.bias.sub_(logits.mean()).mul_(SPREAD / logits.std())
    return model
