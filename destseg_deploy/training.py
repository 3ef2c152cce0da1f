"""Training: the paper's two phases, from a folder of normal images to a checkpoint.

Phase one teaches the student to give the teacher's features of the clean image when it sees the
corrupted one. Phase two freezes the student and teaches the segmentation network to find the
corruption in the products of both networks' features (methods.md 3.1.7). Only what contributes a
gradient is computed: no segmentation in phase one, no gradient through the student in phase two.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import SGD, Optimizer

from destseg_deploy.data.loader import AnomalyDataset, Batch, batches, list_textures
from destseg_deploy.data.mvtec import list_train
from destseg_deploy.errors import BackendError, TrainingError
from destseg_deploy.evaluation import score_images
from destseg_deploy.models.destseg import DeSTSeg, cosine_distances, upsample
from destseg_deploy.models.inference import normalize_pixels
from destseg_deploy.models.weights import (
    checkpoint_spec,
    fit_statistics,
    load_teacher,
    save_checkpoint,
)
from destseg_deploy.predictor import Predictor
from destseg_deploy.recipe import PRESETS, Recipe, check_option
from destseg_deploy.runtime.pytorch import PyTorchRuntime
from destseg_deploy.spec import FileRecord, ModelSpec, Threshold
from destseg_deploy.thresholds import from_normal

PRECISIONS = ("auto", "fp32", "bf16")
LOG_EVERY = 10
"""Steps between reads of the loss: each read waits for the device."""


@dataclass(frozen=True)
class Progress:
    """What a training run reports each step.

    Attributes:
        phase: ``student`` or ``segmentation``.
        done: Steps done, of both phases together.
        total: Steps of both phases.
        loss: The latest loss that was read; summed over the batch in phase one, as the paper's.
    """

    phase: str
    done: int
    total: int
    loss: float


def train(
    category: Path,
    output: Path,
    recipe: Recipe = PRESETS["paper"],
    *,
    textures: Path | None = None,
    teacher_weights: Path | None = None,
    teacher: str = "imagenet",
    device: str = "auto",
    precision: str = "auto",
    workers: int = 0,
    false_reject_rate: float = 0.01,
    report: Callable[[Progress], None] = lambda progress: None,
) -> ModelSpec:
    """Train DeSTSeg on a category's normal images and write the checkpoint.

    Args:
        category: A folder in the MVTec AD layout; only ``train/good`` is read.
        output: The checkpoint to write, ``<folder>/<category>.safetensors``.
        recipe: The schedule.
        textures: Folder of texture images such as ``dtd/images``; None for procedural ones.
        teacher_weights: ImageNet weights; None for torchvision's cached or downloaded file.
        teacher: ``imagenet``, or ``random`` for demonstrations.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``fp32``, ``bf16`` (autocast), or ``auto``: bf16 where the device has it.
        workers: Processes that prepare batches.
        false_reject_rate: Aim of the threshold that the held-out images give.
        report: Called after each step.

    Returns:
        The checkpoint's spec; its threshold is None when no image was held out.

    Raises:
        DataError: If images or textures are missing or unreadable.
        WeightsError: If the teacher cannot be had.
        TrainingError: If an option cannot be trained with, or the loss is no longer finite.
        BackendError: If the device is not there.
    """
    place = pick_device(device)
    check_option(precision in PRECISIONS, "precision", precision, ", ".join(PRECISIONS))
    check_option(
        0 < false_reject_rate < 1, "false_reject_rate", false_reject_rate, "between 0 and 1"
    )
    recipe = recipe.for_category(category.name)
    images, held_out = split_holdout(list_train(category), recipe.holdout)
    files = None if textures is None else list_textures(textures)
    model, teacher_record = _initial_model(recipe.seed, teacher_weights, teacher)
    dataset = AnomalyDataset(
        images,
        files,
        (recipe.size, recipe.size),
        rotation=str(recipe.rotation),
        seed=recipe.seed,
        samples=recipe.batch_size * (recipe.student_steps + recipe.segmentation_steps),
    )
    if teacher == "random":
        fit_statistics(model.teacher_net, _first_images(dataset))
    run = _Run(model.to(place), recipe, place, _autocast_type(precision, place))
    started = time.perf_counter()
    losses = run.fit(batches(dataset, recipe.batch_size, workers=workers), report)
    record = {
        "recipe": asdict(recipe),
        "data": str(category),
        "images": len(images),
        "held_out": [path.name for path in held_out],
        "textures": "procedural" if textures is None else str(textures),
        "device": str(place),
        "precision": "fp32" if run.autocast is None else "bf16",
        "seconds": round(time.perf_counter() - started, 1),
        "losses": losses,
    }
    size = (recipe.size, recipe.size)
    empty = FileRecord("", "")
    spec = checkpoint_spec(category.name, size, empty, teacher=teacher_record, training=record)
    if held_out:
        threshold = _held_out_threshold(model, spec, held_out, false_reject_rate)
        spec = replace(spec, threshold=threshold)
    return save_checkpoint(model, spec, output)


def _initial_model(
    seed: int, teacher_weights: Path | None, teacher: str
) -> tuple[DeSTSeg, dict[str, str]]:
    """Return the seeded model with its teacher, and where the teacher came from."""
    torch.manual_seed(seed)
    model = DeSTSeg()
    return model, load_teacher(model.teacher_net, teacher_weights, source=teacher)


def _held_out_threshold(
    model: DeSTSeg, spec: ModelSpec, images: Sequence[Path], rate: float
) -> Threshold:
    """Judge by normal images that were not trained on, in float32 as the model will be served."""
    model = model.cpu()
    scores, peaks = score_images(Predictor(PyTorchRuntime(model, spec)), images)
    return from_normal(scores, peaks, rate)


def _first_images(dataset: AnomalyDataset, count: int = 32) -> Tensor:
    """Return some normal images, float (N, 3, H, W), normalised."""
    stacked = np.stack(dataset.images[:count]).transpose(0, 3, 1, 2)
    return normalize_pixels(torch.from_numpy(stacked).float())


def split_holdout(images: Sequence[Path], share: float) -> tuple[list[Path], list[Path]]:
    """Split normal images into those to train on and those held out, spread evenly.

    Raises:
        TrainingError: If a share was asked for and there are too few images to leave any.
    """
    count = math.ceil(share * len(images))
    if count >= len(images):
        raise TrainingError(
            f"holdout {share} of {len(images)} images leaves none to train on. Lower it."
        )
    chosen = {round((i + 0.5) * len(images) / count - 0.5) for i in range(count)}
    return (
        [path for i, path in enumerate(images) if i not in chosen],
        [path for i, path in enumerate(images) if i in chosen],
    )


def pick_device(name: str) -> torch.device:
    """Return the device of that name; ``auto`` takes CUDA where it is there.

    Raises:
        BackendError: If CUDA was asked for and is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise BackendError(
            f"device {name!r}: this PyTorch ({torch.__version__}) sees no CUDA GPU. Use --device "
            "cpu, or install the driver and a CUDA build of torch."
        )
    return torch.device(name)


def _autocast_type(precision: str, device: torch.device) -> torch.dtype | None:
    """Return bfloat16 where it was asked for, or where ``auto`` finds the instructions for it."""
    if precision == "auto":
        capable = torch.cpu._is_avx512_bf16_supported() if device.type == "cpu" else True
        precision = "bf16" if capable else "fp32"
    return torch.bfloat16 if precision == "bf16" else None


def student_loss(teacher: list[Tensor], student: list[Tensor]) -> Tensor:
    """Return the sum over levels and batch of the mean over pixels of 1 - cos."""
    distances = cosine_distances(teacher, student)
    return torch.stack([d.mean(dim=(1, 2, 3)).sum() for d in distances]).sum()


def segmentation_loss(segmentation: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """Return focal loss plus L1, both means over all pixels.

    Args:
        segmentation: float (N, 1, h, w), in [0, 1].
        mask: float (N, 1, H, W) of 0 and 1; resized to (h, w) and cut at one half.
        gamma: Exponent of the focal loss; no class weights.
    """
    target = (upsample(mask, segmentation.shape[-2:]) >= 0.5).to(segmentation.dtype)
    p = torch.where(target > 0, segmentation, 1 - segmentation)
    focal = -((1 - p) ** gamma) * p.clamp_min(1e-7).log()
    return focal.mean() + functional.l1_loss(segmentation, target)


class _Run:
    """Two phases over one stream of batches; owns the optimisers."""

    def __init__(
        self, model: DeSTSeg, recipe: Recipe, device: torch.device, autocast: torch.dtype | None
    ) -> None:
        """Put the model in channels-last order, the fast one for convolutions on every device."""
        self.model = model
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its stub
        self.recipe = recipe
        self.device = device
        self.autocast = autocast

    def fit(self, stream: Iterator[Batch], report: Callable[[Progress], None]) -> dict[str, float]:
        """Train both phases; return the last losses."""
        r, net = self.recipe, self.model
        sgd = partial(SGD, momentum=r.momentum, weight_decay=r.weight_decay)
        student = sgd(net.student_net.parameters(), r.student_lr)
        groups = [
            {"params": net.segmentation_net.res.parameters(), "lr": r.res_lr},
            {"params": net.segmentation_net.head.parameters(), "lr": r.head_lr},
        ]
        segmentation = sgd(groups, r.head_lr)
        net.train()
        first = self._phase(
            "student", student, islice(stream, r.student_steps), self._student_step, report
        )
        net.student_net.eval().requires_grad_(False)
        second = self._phase("segmentation", segmentation, stream, self._segmentation_step, report)
        net.eval()
        return {"student": first, "segmentation": second}

    def _phase(
        self,
        name: str,
        optimizer: Optimizer,
        stream: Iterator[Batch],
        step: Callable[[Batch], Tensor],
        report: Callable[[Progress], None],
    ) -> float:
        r = self.recipe
        first = name == "student"
        steps, before = (r.student_steps, 0) if first else (r.segmentation_steps, r.student_steps)
        rates = [group["lr"] for group in optimizer.param_groups]
        value = math.nan
        for i, batch in enumerate(stream):
            factor = 0.5 * (1 + math.cos(math.pi * i / steps)) if r.decay == "cosine" else 1.0
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            loss = step(batch)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
            if i % LOG_EVERY == 0 or i + 1 == steps:
                value = _finite(loss.item(), name, i)
            report(Progress(name, before + i + 1, r.student_steps + r.segmentation_steps, value))
        return value

    def _student_step(self, batch: Batch) -> Tensor:
        image, clean = self._pixels(batch[0]), self._pixels(batch[1])
        with self._precision():
            teacher, student = self.model.features(image, clean)
        return student_loss(teacher, student)

    def _segmentation_step(self, batch: Batch) -> Tensor:
        image, mask = self._pixels(batch[0]), batch[2].to(self.device, non_blocking=True)
        with self._precision():
            with torch.no_grad():
                teacher, student = self.model.features(image)
            segmentation = self.model.segment(teacher, student)
        return segmentation_loss(segmentation, mask, self.recipe.gamma)

    def _pixels(self, images: Tensor) -> Tensor:
        moved = normalize_pixels(images.to(self.device, non_blocking=True))
        return moved.contiguous(memory_format=torch.channels_last)

    def _precision(self) -> torch.autocast:
        enabled = self.autocast is not None
        return torch.autocast(self.device.type, self.autocast, enabled=enabled)


def _finite(loss: float, phase: str, step: int) -> float:
    if not math.isfinite(loss):
        raise TrainingError(
            f"the {phase} loss is {loss} at step {step + 1}. Nothing was written. Lower the "
            "learning rate or train in fp32 (--precision fp32); check the images for constant ones."
        )
    return loss
